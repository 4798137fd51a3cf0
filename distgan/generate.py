"""A checkpoint -> images, without the trainer."""

import math
from pathlib import Path

import torch
from torch import nn

from distgan import build, checkpoint, sample
from distgan.checkpoint import DamagedError
from distgan.config import Config
from distgan.configfile import from_dict
from distgan.errors import ConfigError, DataError
from distgan.ranks import local_rank


def load_generator(path: str | Path) -> tuple[nn.Module, Config, int]:
    """The average generator of a run's newest checkpoint or of a given one, its config, and its number of classes."""
    where = checkpoint.find(Path(path).expanduser())
    try:
        tensors, state = checkpoint.load(where)
    except DamagedError as damage:
        raise DataError(f"{where}: {damage}") from None
    config = from_dict(state["config"])
    G, _ = build.build_nets(config, state["num_classes"])
    G.load_state_dict(tensors["G_ema"])
    G.to(f"cuda:{local_rank() % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu")
    return G.eval().requires_grad_(False), config, state["num_classes"]


def generate(
    path: str,
    num: int,
    out: str,
    *,
    kind: str,
    seed: int,
    labels: str = "",
    columns: int = 0,
    rank: int = 0,
    world: int = 1,
) -> str:
    """Write `num` images as single PNG files into a folder, or as one grid; returns a line that says where.

    Args:
        labels: Classes that the images take in turn, "0,3" or "0-9"; empty for all. A grid has a row for each.
        rank, world: Each of several processes writes its share of the files, without a word to the others.
    """
    for name, value, least in (("num", num, 1), ("columns", columns, 0)):
        if value < least:
            raise ConfigError(f"--{name} {value}: at least {least}")
    G, config, num_classes = load_generator(path)
    chosen = _parse_labels(labels, num_classes)
    target = Path(out).expanduser()
    if target.exists() and target.is_dir() == (kind == "grid"):
        raise ConfigError(f"--out {out} is {'a folder, a grid is one file' if kind == 'grid' else 'a file'}")
    if kind == "grid":
        if rank > 0:
            return ""
        columns = columns or (-(-num // len(chosen)) if chosen else math.ceil(math.sqrt(num)))
        each = [chosen[i // columns % len(chosen)] for i in range(num)] if chosen else None
        pictures = list(sample.generate(G, config.model.z_dim, seed, range(num), each))
        target.parent.mkdir(parents=True, exist_ok=True)
        sample.save_png(target, sample.grid(pictures, columns))
        return f"{num} images: {target}"
    mine = [i for i in range(num) if i // sample.CHUNK % world == rank]
    each = [chosen[i % len(chosen)] for i in mine] if chosen else [None] * len(mine)
    target.mkdir(parents=True, exist_ok=True)
    pictures = sample.generate(G, config.model.z_dim, seed, mine, each if chosen else None)
    for i, label, picture in zip(mine, each, pictures):
        folder = target if label is None else target / f"{label:03d}"  # class folders, as `distgan pack` reads them
        folder.mkdir(exist_ok=True)
        sample.save_png(folder / f"{i:08d}.png", picture)
    return f"{num} images: {target}"


def _parse_labels(text: str, num_classes: int) -> list[int]:
    """ "0,3,7-9" -> [0, 3, 7, 8, 9]."""
    if not text:
        return list(range(num_classes))
    if not num_classes:
        raise ConfigError("--labels: this generator was trained without classes (model.conditional=false)")
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.isdecimal() or not (last or first).isdecimal():
            raise ConfigError(f"--labels {text}: write class numbers as 0,3,7 or 0-9")
        if not int(first) <= int(last or first) < num_classes:
            raise ConfigError(f"--labels {text}: the classes are 0 to {num_classes - 1}")
        found += range(int(first), int(last or first) + 1)
    return found
