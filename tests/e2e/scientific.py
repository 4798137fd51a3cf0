"""Train on made-up measurements whose law is known, and compare what is generated with it.

    scientific.py FOLDER [--images 150k]

Images are fields of 16 x 16 points in five bands of float32: smooth Gaussian noise, mixed over the bands by a known
covariance, around means that move with a number t from 0 to 1, the condition. For several t, the script prints the
means of the bands as they must be and as they are generated; then the covariance of the bands around these means, and
the correlation of neighbors.
"""

import argparse
import csv
from pathlib import Path

import numpy as np

from distgan import load_generator
from distgan.__main__ import main

SIDE, NUM = 16, 4000
MEANS = np.array([-2.0, -0.5, 0.0, 1.0, 4.0])
SLOPES = np.array([1.0, -1.0, 0.0, 0.5, -2.0])  # of the means, by t
SETTINGS = [
    "data.channels=5",
    "data.dtype=float32",
    "data.resolution=16",
    "data.condition=[t]",
    "model.conditional=true",
    "model.z_dim=64",
    *(f"model.{net}.{key}" for net in "GD" for key in ("base_channels=32", "max_channels=128")),
    "loss.r1=0.5",
    "loss.r2=0.5",
    "loss.penalty_interval=4",
    "optim.G.lr=5e-4",
    "optim.D.lr=5e-4",
    "ema.half_life=5k",
    "train.batch=32",
    "wandb.mode=disabled",
]


def covariance() -> np.ndarray:
    """The covariance of the bands."""
    mix = np.random.default_rng(0).normal(size=(5, 5))
    return mix @ mix.T / 5 + 0.3 * np.eye(5)


def fields(t: np.ndarray, seed: int) -> np.ndarray:
    """Fields of these t, float32 [N, 16, 16, 5]."""
    noise = np.random.default_rng(seed).normal(size=(len(t), 5, SIDE, SIDE))
    frequency = np.fft.fftfreq(SIDE)
    keep = np.exp(-60 * (frequency[:, None] ** 2 + frequency**2))
    smooth = np.fft.ifft2(np.fft.fft2(noise) * keep).real / np.sqrt((keep**2).mean())
    mixed = np.einsum("ij,njhw->nhwi", np.linalg.cholesky(covariance()), smooth)
    return (mixed + (MEANS + t[:, None] * SLOPES)[:, None, None]).astype(np.float32)


def neighbors(x: np.ndarray) -> float:
    """The mean correlation of neighbors in a row, over the bands."""
    x = x - x.mean((0, 1, 2))
    return float(((x[:, :, 1:] * x[:, :, :-1]).mean((0, 1, 2)) / (x**2).mean((0, 1, 2))).mean())


def report(run: str) -> None:
    """Print what was generated beside what it should be."""
    G = load_generator(run, "cpu")
    print(f"{'t':>5} {'means of the bands: true':>40} {'generated':>40}")
    around = []
    for t in (0.0, 0.25, 0.5, 0.75, 1.0):
        made = np.stack(list(G.pictures(range(1000), 1, f"t={t}")))
        true, found = MEANS + t * SLOPES, made.mean((0, 1, 2))
        print(f"{t:5.2f} {' '.join(f'{x:7.2f}' for x in true):>40} {' '.join(f'{x:7.2f}' for x in found):>40}")
        around.append(made - found)
    made, real = np.concatenate(around), fields(np.zeros(5000), 2) - MEANS
    error = np.linalg.norm(np.cov(made.reshape(-1, 5).T) - covariance()) / np.linalg.norm(covariance())
    print(f"covariance of the bands: {error:.1%} from the true one (Frobenius norm)")
    print(f"correlation of neighbors: {neighbors(made):.3f}, of the real fields {neighbors(real):.3f}")


def run(folder: Path, images: str) -> None:
    t = np.random.default_rng(1).random(NUM).round(4)
    (folder / "fields").mkdir(parents=True)
    with open(folder / "table.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "t"])
        for i, field in enumerate(fields(t, 1)):
            np.save(folder / "fields" / f"{i:05d}.npy", field)
            rows.writerow([f"{i:05d}.npy", t[i]])
    shards, config = folder / "shards", folder / "fields.yaml"
    kind = ["--channels", "5", "--dtype", "float32", "--table", str(folder / "table.csv"), "--condition", "t"]
    assert main(["pack", str(folder / "fields"), str(shards), *kind]) == 0
    config.write_text(f"data: {{shards: {shards}}}\n")
    assert main(["train", str(config), *SETTINGS, f"train.images={images}", f"run.dir={folder / 'run'}"]) == 0
    report(str(folder / "run"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", default="150k")
    options = parser.parse_args()
    run(options.folder, options.images)
