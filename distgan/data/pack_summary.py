"""Report what `pack` did: counts while it works, readable lines afterwards."""

import os
from collections import Counter
from dataclasses import dataclass, field

from distgan.condition_spec import Field
from distgan.data.encode import PackOptions
from distgan.data.pixels import Pixels

SKIPPED = "skipped.jsonl"
UNLABELED = "without a label"


@dataclass
class PackSummary:
    """The result of `pack`; the card of the data set holds the same.

    Attributes:
        samples: How many were written.
        classes, class_counts: Names of the classes and samples of each; None and [] without labels.
        sizes, notes: How many images have which width and height, and which change was made to how many.
        skipped: How many images were left out, by reason.
        examples: The first image of each reason.
        lacking, origin, assumed: Why there are no labels, where they come from, and what was assumed.
        shards: Name, bytes, samples and sha256 of each shard.
        options: How images were stored.
        conditions: The conditions of each image, with their statistics.
        sum_aspect: Width over height of all images before they were fitted, added up.
    """

    samples: int = 0
    classes: list[str] | None = None
    class_counts: list[int] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)
    lacking: str = ""
    origin: str = ""
    assumed: list[str] = field(default_factory=list)
    shards: list[dict] = field(default_factory=list)
    pixels: Pixels = field(default_factory=Pixels)
    options: PackOptions = field(default_factory=PackOptions)
    sum_aspect: float = 0.0
    conditions: list[Field] = field(default_factory=list)

    @property
    def aspect(self) -> float:
        """Return the mean of width over height before images were fitted."""
        return self.sum_aspect / max(1, self.samples)

    @property
    def is_stretched(self) -> bool:
        """Return whether stored images have other proportions than they had."""
        options = self.options
        if options.crop != "stretch" or not options.height:
            return False
        return abs(self.aspect * options.height / options.width - 1) > 0.005


def tally(summary: PackSummary, before: str) -> str:
    """Return what was skipped, and why; nothing at all where nothing was."""
    examples = {reason: f" (e.g. {name})" for reason, name in summary.examples.items()}
    text = ", ".join(
        f"{count:,} {'with ' * reason[:1].isdigit()}{reason}{examples.get(reason, '')}"
        for reason, count in summary.skipped.most_common()
    )
    return before + text if text else ""


def report(summary: PackSummary, out: str, seconds: float) -> list[str]:
    """Return the summary as readable lines."""
    total = sum(shard["bytes"] for shard in summary.shards)
    size = "of their own sizes"
    if len(summary.sizes) == 1:
        (width, height), _ = summary.sizes.most_common(1)[0]
        size = f"of {width}x{height} pixels"
    lines = [f"{summary.samples:,} images {size} in {len(summary.shards)} shard(s), {total / 1e6:,.1f} MB: {out}"]
    if summary.classes:
        least, most = min(summary.class_counts), max(summary.class_counts)
        classes = f"{len(summary.classes)} classes with {least:,} to {most:,} images: {_names(summary.classes)}"
        lines.append(f"labels from {summary.origin}: {classes}; {summary.skipped[UNLABELED]:,} images without a label")
    else:
        lines.append("no class labels" + (f": {summary.lacking}" if summary.lacking else ""))
    if summary.conditions:
        names = ",".join(one.name for one in summary.conditions)
        lines.append(
            f"conditions: {', '.join(map(_condition, summary.conditions))}; train with data.condition=[{names}]"
        )
    lines += [f"assumed: {text}" for text in summary.assumed]
    if summary.skipped:
        listed = os.path.join(out, SKIPPED)
        lines.append(f"skipped {sum(summary.skipped.values()):,}{tally(summary, ': ')}; each of them: {listed}")
    if summary.notes:
        lines.append("changed: " + ", ".join(f"{count:,} {note}" for note, count in summary.notes.most_common()))
    lines += _kind(summary)
    lines += summary.pixels.facts(summary.options.range, summary.options.dtype)
    lines += [f"warning: {line}" for line in summary.pixels.warnings(summary.options.range, summary.options.dtype)]
    lines.append(f"{summary.samples / max(seconds, 1e-9):,.0f} images/s")
    return lines


def _condition(one: Field) -> str:
    """Return a condition as text, with what it is like over all images."""
    what = {
        "number": f"number, {one.mean:.4g} +- {one.std:.4g}",
        "flag": f"flag, set on {one.mean:.1%}",
        "class": f"{len(one.classes)} classes",
        "vector": f"vector of {one.length}",
    }[one.kind]
    return f"{one.name} ({what}{f', unknown of {one.missing:,}' if one.missing else ''})"


def _kind(summary: PackSummary) -> list[str]:
    """Return the settings by which a run trains on images of other channels, types or proportions."""
    options, keys = summary.options, []
    if options.channels != 3:
        keys.append(f"data.channels={options.channels}")
    if options.alpha:
        keys.append("data.alpha=channel")
    if options.dtype != "uint8":
        keys.append(f"data.dtype={options.dtype}")
    if options.height != options.width:
        keys.append(f"data.resolution={options.spec.setting}")
    lines = [f"stored as {options.suffix}; train with {' '.join(keys)}"] if keys else []
    if summary.is_stretched:
        lines.append(
            f"stretched: width over height was {summary.aspect:.3f} on average, and is "
            f"{options.width / options.height:.3f}"
        )
    return lines


def _names(classes: list[str]) -> str:
    return ", ".join(classes[:10]) + (" ..." if len(classes) > 10 else "")
