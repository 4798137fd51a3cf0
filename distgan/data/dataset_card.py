"""The card of a data set: `dataset.json`, which `distgan pack` leaves next to its shards."""

import functools
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypedDict, get_type_hints

from distgan.condition_spec import Field
from distgan.errors import DataError
from distgan.image_spec import MAX_CHANNELS, DType, ImageSpec
from distgan.storage.home import user_path
from distgan.storage.untrusted import Between, Count, Name, Share, parse, read_json
from distgan.storage.urls import is_local, local_path, public

log = logging.getLogger("distgan")

FILE = "dataset.json"


class Card(TypedDict, total=False):
    """The fields of a card that are read; other tools' files of that name may have fields of their own."""

    samples: Count
    resolution: Annotated[int, Between(1, 2**20)] | None
    classes: list[Name] | None
    class_counts: list[Count] | None
    conditions: list[Field] | None
    crop: Name
    filter: Name
    image: Name
    skipped: dict[str, Count]
    changed: dict[str, Count]
    values: list[float] | None
    range: list[float] | None
    cut_away: Share
    channels: Annotated[int, Between(1, MAX_CHANNELS)]
    dtype: DType
    alpha: bool
    height: Annotated[int, Between(1, 2**20)] | None
    width: Annotated[int, Between(1, 2**20)] | None
    quantiles: list[float] | None
    aspect: float
    source: Name
    made_by: Name
    digest: Name


def read(shards: str) -> Card:
    """Return the card next to a local shard, or in a folder of shards; {} where there is none.

    A data set needs no card: fields that cannot be used are left out, with a warning.
    """
    if not is_local(shards):
        return {}
    path = user_path(local_path(shards))
    file = (path if path.is_dir() else path.parent) / FILE
    try:
        status = os.stat(file)
    except (OSError, ValueError):
        return {}
    return _read(file, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=64)
def _read(file: Path, mtime_ns: int, size: int) -> Card:
    """Read a card as it is now; the cache warns of what is wrong with it once."""
    try:
        values = parse(dict[str, object], read_json(file, allow_nan=True), file)
    except (OSError, DataError) as error:
        log.warning(f"warning: {error}: skipped")
        return {}
    for name, hint in get_type_hints(Card, include_extras=True).items():
        try:
            parse(hint, values.get(name, None), f"{file}: {name}") if name in values else None
        except DataError as error:
            log.warning(f"warning: {error}: skipped")
            del values[name]
    return values  # type: ignore[return-value]  # as was checked


def mean_aspect(urls: Sequence[str]) -> float:
    """Return the mean of width over height before the images were stretched, as their cards say; 0: they were not."""
    cards = list(by_folder(urls).values())
    known = [(card.get("samples", 1), card["aspect"]) for card in cards if card.get("aspect", 0) > 0]
    if not known or len(known) < len(cards):
        return 0.0
    return sum(num * aspect for num, aspect in known) / max(1, sum(num for num, _ in known))


def by_folder(urls: Sequence[str]) -> dict[str, Card]:
    """Return the card of each folder that shards are in, in their order; {} of one that has no card."""
    return {public(folder): read(url) for url, folder in _firsts(urls).items()}


def join_classes(urls: Sequence[str]) -> tuple[list[str], list[list[int]]]:
    """Match the classes of sets that were packed apart, by the names that their cards give them.

    Returns:
        Names of classes 0, 1 ...: the first set's, then those that others add; and for each shard the class that its
        label i becomes, empty where labels stay as they are. Without names, or in one folder, all stay.

    Raises:
        DataError: some sets name their classes and others do not, so nobody knows which are the same.
    """
    named = {folder: _class_names(read(url)) for url, folder in _firsts(urls).items()}
    without = [folder for folder, names in named.items() if not names]
    if without and len(without) < len(named):
        other = next(folder for folder, names in named.items() if names)
        raise DataError(
            f"data.shards: the card of {public(other)} names its classes ({', '.join(named[other][:3])} ...), and "
            f"{public(without[0])} has no card that does: which of them are the same? Pack both from one folder, or "
            f'write {{"classes": ["first", "second", ...]}} to {public(without[0])}/dataset.json, or set '
            "model.conditional=false"
        )
    names = list(dict.fromkeys(name for of_one in named.values() for name in of_one))
    number = {name: i for i, name in enumerate(names)}
    moved = {folder: [number[name] for name in of_one] for folder, of_one in named.items()}
    stay = {folder for folder, numbers in moved.items() if numbers == list(range(len(numbers)))}
    return names, [[] if os.path.dirname(url) in stay else moved[os.path.dirname(url)] for url in urls]


def _firsts(urls: Sequence[str]) -> dict[str, str]:
    """Map one shard of each folder to the folder, in the shards' order."""
    firsts: dict[str, str] = {}
    for url in urls:
        firsts.setdefault(os.path.dirname(url), url)
    return {url: folder for folder, url in firsts.items()}


def _class_names(card: Card) -> list[str]:
    """Return the names of classes 0, 1 ...; none where a card has none, or nothing but numbers."""
    names = card.get("classes") or []
    is_numbers = names == [str(i) for i in range(len(names))]
    return [] if is_numbers or len(set(names)) < len(names) else names


def mismatches(card: Card, image: ImageSpec) -> list[str]:
    """Return where a run's images are other than those that its data set was packed as, and how to train on these."""
    if "samples" not in card or not (card.get("height") or card.get("resolution") or "dtype" in card):
        return []  # no card of `pack`, or images as they were found
    channels, dtype, alpha = card.get("channels", 3), card.get("dtype", "uint8"), card.get("alpha", False)
    found = []
    if alpha and not image.alpha:
        found.append("the images have alpha, which is put on data.background: data.alpha=channel keeps it")
    elif channels != image.channels and not (image.alpha and channels - alpha == image.num_colors):
        found.append(f"the images have {channels} channel(s), data.channels is {image.channels}: set it to {channels}")
    if dtype == "uint8" and image.dtype != "uint8":
        found.append(
            f"the numbers are stored as uint8, data.dtype is {image.dtype}: set it to uint8, or keep more of each "
            f"number by `distgan pack --dtype {image.dtype}`"
        )
    elif dtype != image.dtype and image.dtype != "float32":  # which holds all of uint16
        found.append(f"the numbers are stored as {dtype}, data.dtype is {image.dtype}: data.dtype={dtype} keeps them")
    return found


def value_range(card: Card) -> tuple[float, float] | None:
    """Return which of a deeper set's values are black and white; None where it was packed without, or as 8 bits."""
    given = card.get("range")
    if card.get("dtype", "uint8") == "uint8" or not given or len(given) != 2 or not given[0] < given[1]:
        return None
    return given[0], given[1]


def facts(card: Card) -> list[tuple[str, str]]:
    """Return names and values of what a card says; what it lacks is left out."""
    classes, counts = card.get("classes") or [], card.get("class_counts") or []
    batch_plan = f" with {min(counts):,} to {max(counts):,} images" if counts else ""
    resolution = card.get("resolution")
    height, width = card.get("height") or resolution, card.get("width") or resolution
    rows = [
        ("images", f"{card['samples']:,}" if "samples" in card else ""),
        ("size", f"{width}x{height} pixels" if height and width else "their own"),
        ("channels", _channels(card)),
        ("classes", f"{len(classes)}{batch_plan}" if classes else "none"),
        ("conditions", ", ".join(str(one["name"]) for one in card.get("conditions") or [])),  # type: ignore[index]
        ("resampling", ", ".join(filter(None, (card.get("crop"), card.get("filter"))))),
        ("stored as", card.get("image", "")),
        ("skipped", _tally(card.get("skipped", {}))),
        ("changed", _tally(card.get("changed", {}))),
        ("source", card.get("source", "")),
        ("made by", card.get("made_by", "")),
        ("digest", card.get("digest", "")[:16]),
    ]
    return [(name, value) for name, value in rows if value]


def _channels(card: Card) -> str:
    """Return channels and type where they are not three of 8 bits."""
    if "channels" not in card:
        return ""
    return f"{card['channels']}{' with alpha' if card.get('alpha') else ''} of {card.get('dtype', 'uint8')}"


def _tally(counts: dict[str, int]) -> str:
    """Map {"enlarged": 3} to "3 enlarged"."""
    return ", ".join(f"{n:,} {what}" for what, n in counts.items())
