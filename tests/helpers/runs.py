"""Tiny runs for the tests: a data set of real digits, a config, and what to compare of two runs."""

import atexit
import functools
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from processes import ranks, wait_for
from processes import train as train_ranks

from distgan.cli.main import main
from distgan.config.load import load
from distgan.config.records import to_dict
from distgan.config.schema import restores
from distgan.data.encode import PackOptions
from distgan.data.pack import pack
from distgan.models import MODELS
from distgan.models.networks import run_generator
from distgan.storage.checkpoint import save
from distgan.training.factory import build_nets

PACKAGE = Path(__file__).parents[2] / "distgan"
CONFIG = """
model:
  conditional: true
  z_dim: 8
  G: {base_channels: 8, max_channels: 16}
  D: {base_channels: 8, max_channels: 16}
loss: {r1: 1, r2: 1, penalty_interval: 2}
optim: {G: {lr: 1e-3}, D: {lr: 1e-3}}
ema: {half_life: 500}
train: {batch: 12, tick: 120}
sample: {every: 600, rows: 2, columns: 3}
checkpoint: {every: 240}
"""


def make_digits(folder: Path, resolution: int = 16, shard_mb: float = 0.4) -> Path:
    """The embedded digits as shards."""
    return shutil.copytree(_digits(resolution, shard_mb), folder, dirs_exist_ok=True)


@functools.cache
def _digits(resolution: int, shard_mb: float) -> Path:
    """Packed once in a process of pytest."""
    folder = Path(tempfile.mkdtemp(prefix="digits-"))
    atexit.register(shutil.rmtree, folder)
    options = PackOptions(resolution=resolution)
    pack(str(PACKAGE / "data" / "digits.npz"), str(folder), options, shard_mb=shard_mb, workers=1)
    return folder


def write_config(path: Path, shards: Path, resolution: int = 16, more: str = "") -> Path:
    path.write_text(f"data: {{shards: {shards}, resolution: {resolution}}}\n{CONFIG}{more}")
    return path


def untrained(
    run: Path, *overrides: str, classes: int = 3, resolution: int = 16, unseen: Sequence[int] | None = None
) -> Path:
    """A run folder with a checkpoint of networks as they start, but for the statistics of batch norm."""
    run.mkdir(parents=True)
    config = load(str(write_config(run / "config.yaml", run / "no-shards", resolution)), [f"run.dir={run}", *overrides])
    G, D = build_nets(config, classes)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for _ in range(20):
            labels = torch.arange(8) % classes if classes else None
            pictures = torch.rand(8, 3, resolution, resolution) if restores(config) else None
            run_generator(G.train(), torch.randn(8, config.model.z_dim), pictures, labels)
    nets = {"G": G.state_dict(), "D": D.state_dict(), "G_ema": G.state_dict()}
    state = {"images": 1000, "num_classes": classes, "revision": MODELS[config.model.family].revision}
    known = {} if unseen is None else {"unseen": list(unseen)}  # older checkpoints do not have it
    save(run / "checkpoints", 1000, nets, state | known | {"config": to_dict(config)})
    return run


def train(config: Path, run: Path, *overrides: str) -> int:
    return main(["train", str(config), f"run.dir={run}", *overrides])


def weights(run: Path) -> dict[str, str]:
    """A hash of every tensor file of the newest checkpoint."""
    newest = max((run / "checkpoints").glob("step-*"))
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(newest.glob("*.safetensors"))}


def metrics(run: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl, without what depends on the machine."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(("Perf/", "Resources/"))} for row in rows]


def audit(run: Path) -> dict[int, str]:
    """Which sample stood at each position; a position that was consumed twice is an error."""
    found: dict[int, str] = {}
    for path in (run / "audit").glob("rank*.jsonl"):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            assert record["position"] not in found, f"position {record['position']} twice"
            found[record["position"]] = f"{record['shard']}/{record['key']}"
    return found


def status(run: Path) -> dict:
    return json.loads((run / "status.json").read_text())


def lines(file: Path) -> int:
    return file.read_text().count("\n") if file.exists() else 0


def require_resumed(tmp_path: Path, arguments: list[str], is_time: Callable[[Path], bool]) -> tuple[Path, Path]:
    """A run killed on two ranks and resumed is the unbroken one, bit for bit, and one rank learns the same.

    Returns the unbroken run and that of one rank.
    """
    whole, broken, single = (tmp_path / name for name in ("whole", "broken", "single"))
    train_ranks(2, tmp_path / "log-whole", *arguments, f"run.dir={whole}")
    again = [*arguments, f"run.dir={broken}"]
    with ranks(2, ["-m", "distgan", "train", *again], tmp_path / "log-broken") as started:
        wait_for(lambda: is_time(broken))
        for process in started:
            process.kill()
    train_ranks(2, tmp_path / "log-broken", *again)
    assert weights(broken) == weights(whole)
    assert metrics(broken) == metrics(whole)
    assert audit(broken) == audit(whole)
    train_ranks(1, tmp_path / "log-single", *arguments, f"run.dir={single}")
    assert audit(single) == audit(whole)
    for one, other in zip(metrics(single), metrics(whole), strict=True):
        assert one["Loss/D"] == pytest.approx(other["Loss/D"], rel=1e-3)
    return whole, single
