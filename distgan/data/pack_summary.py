"""What `pack` did: counts while it works, lines for a person afterwards."""

import os
from collections import Counter
from dataclasses import dataclass, field

from distgan.data.pixels import Pixels

SKIPPED = "skipped.jsonl"
UNLABELLED = "without a label"


@dataclass
class PackSummary:
    """What `pack` did; the data set card holds the same."""

    samples: int = 0
    classes: list[str] | None = None
    class_counts: list[int] | None = None
    sizes: Counter = field(default_factory=Counter)
    skipped: Counter = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)  # reason -> the first source it happened to
    notes: Counter = field(default_factory=Counter)
    lacking: str = ""  # why there are no labels
    origin: str = ""  # where the labels come from
    assumed: list[str] = field(default_factory=list)
    shards: list[dict] = field(default_factory=list)
    pixels: Pixels = field(default_factory=Pixels)
    range: tuple[float, float] | None = None  # of values that became black and white, where it was given


def tally(summary: PackSummary, before: str) -> str:
    """What was skipped, and why; nothing at all where nothing was."""
    text = ", ".join(
        f"{count:,} {reason}" + (f" (e.g. {summary.examples[reason]})" if reason in summary.examples else "")
        for reason, count in summary.skipped.most_common()
    )
    return before + text if text else ""


def report(summary: PackSummary, out: str, seconds: float) -> list[str]:
    """The summary as lines for a person."""
    total = sum(shard["bytes"] for shard in summary.shards)
    size = "x".join(map(str, summary.sizes.most_common(1)[0][0])) if len(summary.sizes) == 1 else "of their own sizes"
    lines = [f"{summary.samples:,} images {size} in {len(summary.shards)} shard(s), {total / 1e6:,.1f} MB: {out}"]
    if summary.classes:
        least, most = min(summary.class_counts), max(summary.class_counts)
        classes = f"{len(summary.classes)} classes with {least:,} to {most:,} images: {_names(summary.classes)}"
        lines.append(f"labels from {summary.origin}: {classes}; {summary.skipped[UNLABELLED]:,} images without a label")
    else:
        lines.append("no class labels" + (f": {summary.lacking}" if summary.lacking else ""))
    lines += [f"assumed: {text}" for text in summary.assumed]
    if summary.skipped:
        listed = os.path.join(out, SKIPPED)
        lines.append(f"skipped {sum(summary.skipped.values()):,}{tally(summary, ': ')}; each of them: {listed}")
    if summary.notes:
        lines.append("changed: " + ", ".join(f"{count:,} {note}" for note, count in summary.notes.most_common()))
    lines += summary.pixels.facts(summary.range)
    lines += [f"warning: {line}" for line in summary.pixels.warnings(summary.range)]
    lines.append(f"{summary.samples / max(seconds, 1e-9):,.0f} images/s")
    return lines


def _names(classes: list[str]) -> str:
    return ", ".join(classes[:10]) + (" ..." if len(classes) > 10 else "")
