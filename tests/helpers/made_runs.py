"""Run folders written by hand, without training: what plots and reports have to cope with."""

import json
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image


def rows(num: int = 40, *, every: int = 1000, **more: float) -> list[dict[str, float]]:
    """Lines of metrics as a run writes them; `more` are keys of every line, written with one _ for the slash."""
    return [
        {
            "Progress/images": i * every,
            "Progress/kimg": i * every / 1000,
            "Loss/D": 1 / i,
            "Loss/G": 0.5 + 0.1 * math.sin(i),
            "Loss/gp": 0.0,
            "Logits/real_minus_fake": float(i),
            "Optim/grad_norm_D": 10.0 ** (-i / 10),
            "Optim/grad_norm_G": 2.0,
            "Perf/img_per_sec": 500.0,
            "Perf/total_hours": i / 3600,
            **{name.replace("_", "/", 1): value for name, value in more.items()},
        }
        for i in range(1, num + 1)
    ]


def jsonl(lines: Iterable[dict]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def make_run(folder: Path, lines: Iterable[dict] | None = None, *, evals: Iterable[dict] = (), grids: int = 0) -> Path:
    """A finished run with the given lines of metrics, and sample grids of 64 x 96 pixels, each of one grey level."""
    (folder / "samples").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text(jsonl(rows() if lines is None else lines))
    (folder / "status.json").write_text(json.dumps({"state": "finished", "total_images": 100_000, "world": 2}))
    (folder / "config.yaml").write_text("data: {shards: [/no/such/shards], resolution: 32}\ntrain: {batch: 48}\n")
    start = {"time": "2030-01-02T03:04:05", "host": "node7", "command": "python -m distgan train x.yaml"}
    (folder / "environment.json").write_text(json.dumps({"starts": [{**start, "packages": {"torch": "9.9"}}]}))
    (folder / "log.txt").write_text("kimg 1\nfinished\n")
    if evals:
        (folder / "evals.jsonl").write_text(jsonl(evals))
    for i in range(grids):
        Image.fromarray(np.full((64, 96, 3), 5 * i, np.uint8)).save(folder / "samples" / f"fakes-{i:06d}.png")
    if grids:
        Image.fromarray(np.full((64, 96, 3), 200, np.uint8)).save(folder / "samples" / "reals.png")
    return folder
