"""The conditions of a data set: what its cards say of them, and which values a run takes of a sample's part."""

import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from distgan.condition_spec import Conditions, Field
from distgan.data import dataset_card
from distgan.data.condition_table import PART, to_bytes
from distgan.data.image_format import CorruptImage
from distgan.errors import DataError
from distgan.storage.byte_ranges import ByteRangeReader
from distgan.storage.untrusted import MAX_JSON_BYTES, json_of, parse
from distgan.storage.urls import is_local, public

ALL = "all"  # in place of names


class ConditionParts:
    """The conditions that a run takes of each sample, in its own order.

    Attributes:
        conditions: Their fields, with statistics over all cards.

    Args:
        fields: All that a sample's part holds.
        names: Those that are taken.

    Raises:
        DataError: There is no such field.
    """

    def __init__(self, fields: Sequence[Field], names: Sequence[str]) -> None:
        known = [one.name for one in fields]
        if unknown := [name for name in names if name not in known and name != ALL]:
            raise DataError(f"data.condition={unknown[0]}: the data set has no such condition, only {', '.join(known)}")
        chosen = known if ALL in names else list(names)
        places = np.split(np.arange(sum(one.length for one in fields)), np.cumsum([one.length for one in fields])[:-1])
        self._columns = np.concatenate([places[known.index(name)] for name in chosen])
        self._num = sum(one.length for one in fields)
        self._head = to_bytes([0.0] * self._num)[: -4 * self._num]
        try:
            self.conditions = Conditions([fields[known.index(name)] for name in chosen])
        except ValueError as error:
            raise DataError(f"data.condition: {error}") from None

    def parse(self, data: bytes) -> np.ndarray:
        """Return the values of a sample's part, float32 [R]. Raises CorruptImage for others than the card says."""
        if data[: len(self._head)] != self._head or len(data) != len(self._head) + 4 * self._num:
            raise CorruptImage(f"{PART} does not hold {self._num} numbers of float32, as the data set's card says")
        values = np.frombuffer(data, "<f4", self._num, len(self._head))[self._columns].astype(np.float32)
        if not self.conditions.accepts(values):
            raise CorruptImage(f"{PART} holds {values.tolist()[:8]}, which the data set's card does not allow")
        return values


def read_fields(urls: Sequence[str], source: ByteRangeReader) -> list[Field]:
    """Return the conditions that the cards of all shards describe, with statistics over all of them.

    Raises:
        DataError: There are none, or those of two folders differ.
    """
    found = {os.path.dirname(url): _of_card(url, source) for url in dict.fromkeys(map(_card_beside, urls))}
    folder, fields = next(iter(found.items()))
    for other, of_other in found.items():
        if [_kind(one) for one in of_other] != [_kind(one) for one in fields]:
            raise DataError(
                f"the cards of {public(folder)} and {public(other)} describe other conditions: pack both from the same "
                "columns, as one set if classes differ"
            )
    return [_joined([of_one[i] for of_one in found.values()]) for i in range(len(fields))]


def _card_beside(url: str) -> str:
    return f"{os.path.dirname(url)}/{dataset_card.FILE}"


def _of_card(url: str, source: ByteRangeReader) -> list[Field]:
    """Return the conditions of a card. Raises DataError where it has none."""
    advice = "`distgan pack SOURCE OUT --condition COLUMN ...` makes shards with conditions"
    if is_local(url):
        card: object = dataset_card.read(os.path.dirname(url))
    else:
        try:
            size = source.size(url)
            card = json_of(source.read(url, 0, min(size, MAX_JSON_BYTES)), public(url), allow_nan=True)
        except DataError as error:
            raise DataError(f"data.condition needs the card that describes conditions: {error}; {advice}") from None
    fields = card.get("conditions") if isinstance(card, dict) else None
    if not fields:
        raise DataError(f"{public(os.path.dirname(url))} has no card that describes conditions: {advice}")
    parsed = parse(list[Field], fields, f"{public(url)}: conditions")
    try:
        Conditions(parsed)
    except ValueError as error:
        raise DataError(f"{public(url)}: {error}") from None
    return parsed


def _kind(one: Field) -> tuple[object, ...]:
    return one.name, one.kind, one.length, tuple(one.classes)


def _joined(parts: Sequence[Field]) -> Field:
    """Return the statistics of several sets as of one."""
    first = parts[0]
    if len(parts) == 1:
        return first
    # A set where it is always unknown has no mean to add; cards without counts weigh the same.
    known = [one.known for one in parts] if any(one.known for one in parts) else [1] * len(parts)
    means, stds = np.array([one.mean for one in parts]), np.array([one.std for one in parts])
    mean = float(np.average(means, weights=known)) if first.kind != "vector" else 0.0
    spread = np.average(stds**2 + (means - mean) ** 2, weights=known) if first.kind != "flag" else 1.0
    counts = {name: sum(getattr(one, name) for one in parts) for name in ("known", "missing")}
    return replace(first, mean=mean, std=float(np.sqrt(spread)), **counts)


def with_dropout(conditions: Conditions, dropout: float) -> Conditions:
    """Return the conditions of a run that drops them: each that may be unknown says so."""
    return Conditions([replace(one, may_be_unknown=one.missing > 0 or dropout > 0) for one in conditions.fields])
