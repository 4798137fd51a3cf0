"""The card of a data set: `dataset.json`, which `distgan pack` leaves beside its shards."""

import json
import os
from collections.abc import Sequence

from distgan.errors import DataError
from distgan.storage.home import user_path
from distgan.storage.urls import is_local, local_path, public


def read(shards: str) -> dict:
    """The card beside a local shard, or in a folder of shards; {} where there is none."""
    if not is_local(shards):
        return {}
    path = user_path(local_path(shards))
    try:
        card = json.loads(((path if path.is_dir() else path.parent) / "dataset.json").read_text())
    except (OSError, ValueError, RecursionError):  # a data set needs no card
        return {}
    return card if isinstance(card, dict) else {}


def by_folder(urls: Sequence[str]) -> dict[str, dict]:
    """The card of each folder that shards are in, in their order; {} of one that has no card."""
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
    """One shard of each folder -> the folder, in the shards' order."""
    firsts: dict[str, str] = {}
    for url in urls:
        firsts.setdefault(os.path.dirname(url), url)
    return {url: folder for folder, url in firsts.items()}


def _class_names(card: dict) -> list[str]:
    """Names of classes 0, 1 ...; none where a card has none, or nothing but the numbers themselves."""
    found = card.get("classes")
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        return []
    is_numbers = found == [str(i) for i in range(len(found))]
    return [] if is_numbers or len(set(found)) < len(found) else found


def facts(card: dict) -> list[tuple[str, str]]:
    """What a card says, for a person; what it lacks is left out."""
    classes = card.get("classes") if isinstance(card.get("classes"), list) else []
    counts = [n for n in card.get("class_counts") or [] if isinstance(n, int)]
    spread = f" with {min(counts):,} to {max(counts):,} images" if counts else ""
    resolution = card.get("resolution")
    found = [
        ("images", _number(card.get("samples"))),
        ("size", f"{resolution} x {resolution} pixels" if resolution else "their own"),
        ("classes", f"{len(classes)}{spread}" if classes else "none"),
        ("resampling", ", ".join(str(card[name]) for name in ("crop", "filter") if card.get(name))),
        ("stored as", str(card.get("image") or "")),
        ("skipped", _tally(card.get("skipped"))),
        ("changed", _tally(card.get("changed"))),
        ("source", str(card.get("source") or "")),
        ("made by", str(card.get("made_by") or "")),
        ("digest", str(card.get("digest") or "")[:16]),
    ]
    return [(name, value) for name, value in found if value]


def _tally(counts: object) -> str:
    """{"enlarged": 3} -> "3 enlarged"."""
    return ", ".join(f"{_number(n)} {what}" for what, n in counts.items()) if isinstance(counts, dict) else ""


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value or "")
