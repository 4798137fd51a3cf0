"""Compare fine-tuning with training from nothing: digits 0 to 4 first, then 5 to 9, or all ten, in a small budget.

    python tests/e2e/fine_tuning.py FOLDER [--images 20000] [--seeds 3]

It writes data sets and runs into FOLDER, and prints the Frechet distance of each run, on features of the small
extractor that the demo uses. A run that is finished there already is not trained again. Takes minutes on two cores.
"""

import argparse
import statistics
from pathlib import Path

import numpy as np
from PIL import Image

import distgan
from distgan.cli.main import main
from distgan.storage.run_dir import RunDir

DIGITS = Path(distgan.__file__).parent / "data" / "digits.npz"
SETS = {"0-4": range(5), "5-9": range(5, 10), "ten": range(10)}
CONFIG = """
data: {resolution: 16}
model:
  conditional: true
  z_dim: 64
  G: {base_channels: 16, max_channels: 64}
  D: {base_channels: 16, max_channels: 64}
loss: {name: rpgan, r1: 0.2, r2: 0.2, penalty_interval: 4}
optim: {G: {lr: 1e-3}, D: {lr: 1e-3}}
ema: {half_life: 5k}
train: {batch: 64, tick: 20k}
sample: {every: 0}
checkpoint: {every: 1M}
eval: {extractor: toy, metrics: [fd], every: 10M, num_images: 5000}
wandb: {mode: disabled}
"""


def make_sets(folder: Path) -> None:
    """Write shards of each set of digits, whose classes have names."""
    digits = np.load(DIGITS)
    for name, wanted in SETS.items():
        if (folder / "shards" / name).exists():
            continue
        for number, (image, label) in enumerate(zip(digits["images"], digits["labels"])):
            if int(label) in wanted:
                file = folder / "images" / name / f"digit{label}" / f"{number:04d}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(file)
        main(["pack", str(folder / "images" / name), str(folder / "shards" / name), "--resolution", "16"])


def distance(folder: Path, name: str, shards: str, images: int, *more: str) -> float:
    """Train a run where it is not finished; returns the Frechet distance of its end."""
    run, config = folder / "runs" / name, folder / "config.yaml"
    config.write_text(CONFIG)
    own = [f"data.shards={folder / 'shards' / shards}", f"run.dir={run}", f"train.images={images}", *more]
    if main(["train", str(config), *own]) != 0:
        raise SystemExit(f"{name} failed")
    return float(RunDir(run).evaluations()[-1]["Metrics/fd_toy_5k_full"])


def compare(folder: Path, images: int, seeds: int, source_images: int) -> None:
    """Print a line for each set of digits."""
    make_sets(folder)
    print(f"source: {distance(folder, 'source', '0-4', source_images):.4f}", flush=True)
    for shards in ("5-9", "ten"):
        found: dict[str, list[float]] = {"from nothing": [], "fine-tuned": []}
        for seed in range(1, seeds + 1):
            for kind, more in (("from nothing", []), ("fine-tuned", [f"init.from={folder / 'runs' / 'source'}"])):
                name = f"{shards}-{kind.replace(' ', '-')}-{seed}"
                found[kind].append(distance(folder, name, shards, images, f"train.seed={seed}", *more))
        for kind, values in found.items():
            listed = ", ".join(f"{value:.4f}" for value in values)
            print(f"RESULT {shards} {kind}: mean {statistics.mean(values):.4f} of {listed}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--source-images", type=int, default=100_000)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    compare(options.folder, options.images, options.seeds, options.source_images)
