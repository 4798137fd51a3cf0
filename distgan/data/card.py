"""The card of a data set: `dataset.json`, which `distgan pack` leaves beside its shards."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from distgan.data.address import is_local, local_path, public


def read(shards: str) -> dict:
    """The card beside a local shard, or in a folder of shards; {} where there is none."""
    if not is_local(shards):
        return {}
    path = Path(local_path(shards)).expanduser()
    try:
        card = json.loads(((path if path.is_dir() else path.parent) / "dataset.json").read_text())
    except (OSError, ValueError, RecursionError):  # a data set needs no card
        return {}
    return card if isinstance(card, dict) else {}


def by_folder(urls: Sequence[str]) -> dict[str, dict]:
    """The card of each folder that shards are in, in their order; {} of one that has no card."""
    firsts = {os.path.dirname(url): url for url in reversed(urls)}
    return {public(folder): read(firsts[folder]) for folder in dict.fromkeys(map(os.path.dirname, urls))}


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
