"""What a classifier trained on the real digits makes of generated ones, and whether they are as varied.

    judge_digits.py RUN_OR_CHECKPOINT [--num 1000] [--at-least 0.97]

With --at-least, exits with 1 where a smaller share of the digits is read as their label.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from distgan import load_generator

DIGITS = Path(__file__).parents[2] / "distgan" / "data" / "digits.npz"


def features(pictures: list[np.ndarray]) -> np.ndarray:
    """Pictures of any size, gray or in color, as 64 numbers in 0..1, like the original scans; [N, 64]."""
    small = [
        np.asarray(Image.fromarray(p.squeeze()).convert("L").resize((8, 8), Image.Resampling.BOX)) for p in pictures
    ]
    return np.stack(small).reshape(len(small), 64) / 255


def spread(points: np.ndarray, labels: np.ndarray) -> float:
    """Mean variance within a class."""
    return float(np.mean([points[labels == label].var(axis=0).sum() for label in np.unique(labels)]))


def judge(checkpoint: str, num: int = 1000) -> tuple[float, float]:
    """Of `num` generated digits, the classes in turn: the share whose label is found, and spread over the real."""
    from sklearn.svm import SVC  # takes seconds, and no other test needs it

    G = load_generator(checkpoint)
    side = G.resolution
    with np.load(DIGITS) as data:
        scans, real_labels = [Image.fromarray(scan) for scan in data["images"]], data["labels"]
    real = features([np.asarray(scan.resize((side, side), Image.Resampling.LANCZOS)) for scan in scans])
    labels = np.arange(num) % G.num_classes
    fake = features(list(G.pictures(range(num), seed=1)))
    found = SVC(gamma="scale", C=10).fit(real, real_labels).predict(fake)
    return float((found == labels).mean()), spread(fake, labels) / spread(real, real_labels)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--num", type=int, default=1000)
    parser.add_argument("--at-least", type=float, default=0.0)
    options = parser.parse_args()
    agreement, variety = judge(options.checkpoint, options.num)
    print(
        f"a classifier trained on the real digits reads {agreement:.1%} of {options.num} generated ones as their "
        f"label; they vary {variety:.0%} as much as the real ones"
    )
    sys.exit(agreement < options.at_least)
