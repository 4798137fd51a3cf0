"""The conditions of generated images: those of real images, drawn by number, or those that a user names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from distgan.condition_spec import Conditions, Field, values_of
from distgan.rng import host_rng


@dataclass(frozen=True)
class ConditionExamples:
    """Conditions with their values for some real images, from which generated images take theirs.

    Attributes:
        conditions: The fields and their statistics.
        rows: Values of real images, float32 [N, R].
    """

    conditions: Conditions
    rows: np.ndarray

    @staticmethod
    def of_lists(fields: Sequence[Field], rows: Sequence[Sequence[float | None]]) -> "ConditionExamples":
        """Return the conditions of lists, as a checkpoint has them. Raises ValueError where they do not fit."""
        conditions = Conditions(fields)
        if not rows or any(len(row) != conditions.num_values for row in rows):
            raise ValueError(f"examples of conditions: expected some rows of {conditions.num_values} values")
        values = values_of(rows)
        if not all(map(conditions.accepts, values)):
            raise ValueError("examples of conditions: a value that a field cannot have")
        return ConditionExamples(conditions, values)

    def drawn(self, seed: int, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return values for images by their numbers, each of a real image by (seed, number); float32 [n, R]."""
        bits = host_rng.bits(host_rng.key(seed, "conditions"), np.asarray(numbers, np.int64))
        return self.rows[(bits % np.uint64(len(self.rows))).astype(np.int64)]

    def chosen(self, given: np.ndarray | None, numbers: Sequence[int] | np.ndarray, seed: int) -> np.ndarray:
        """Return values for images by their numbers, [n, R]: the given ones [K, R] in turn, or those of real images."""
        return self.drawn(seed, numbers) if given is None else given[np.asarray(numbers, np.int64) % len(given)]

    def encoded(self, seed: int, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return what networks are given for them, float32 [n, V]."""
        return self.conditions.encode(self.drawn(seed, numbers))

    def named(
        self, given: str | Mapping[str, object] | Sequence[str | Mapping[str, object]], swept: str = ""
    ) -> np.ndarray:
        """Return the values of one condition or several, float32 [n, R]; see `Conditions.values`. Raises ValueError.

        Args:
            swept: Name of a field that may be missing, since it gets other values afterwards.
        """
        several = [given] if isinstance(given, (str, Mapping)) else given
        return np.stack([self.conditions.values(one, optional=swept) for one in several])

    def sweep(self, text: str) -> tuple[int, np.ndarray, list[str]]:
        """Return the place in a row, the values and their names of "age=10:80:8" or "kind=cat;dog".

        The first form is FIRST:LAST:NUMBER, evenly spaced. Raises ValueError.
        """
        name, _, listed = text.partition("=")
        names = self.conditions.names
        if name not in names:
            raise ValueError(f"no condition {name!r}, only {', '.join(names)}")
        one = self.conditions.fields[names.index(name)]
        if one.kind == "vector":
            raise ValueError(f"{name} is a vector, which has no order")
        place = sum(before.length for before in self.conditions.fields[: names.index(name)])
        first_last_num = listed.split(":")
        if len(first_last_num) == 3:
            try:
                first, last, num = float(first_last_num[0]), float(first_last_num[1]), int(first_last_num[2])
            except ValueError:
                raise ValueError(f"{text}: write {name}=FIRST:LAST:NUMBER, such as {name}=0:1:8") from None
            if not 2 <= num <= 1000:
                raise ValueError(f"{text}: 2 to 1,000 values")
            values = [one.checked(np.array([value], np.float32)) for value in np.linspace(first, last, num)]
        else:
            values = [one.parse(word) for word in listed.split(";")]
        if any(np.isnan(value).any() for value in values) or len(values) < 2:
            raise ValueError(f"{text}: two values or more, {name}=FIRST:LAST:NUMBER or {name}=ONE;OTHER")
        return place, np.concatenate(values), [f"{name}={one.text(value)}" for value in values]
