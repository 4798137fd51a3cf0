"""How many generated digits a classifier trained on the real ones reads as what they were meant to be.

Usage: judge_digits.py RUN_OR_CHECKPOINT [NUM]
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.svm import SVC

from distgan import sample
from distgan.data.image import fit
from distgan.generate import load_generator

DIGITS = Path(__file__).parent.parent / "distgan" / "data" / "digits.npz"


def features(pictures: list[np.ndarray]) -> np.ndarray:
    """Pictures of any size as the 64 numbers of the original scans, in 0..1."""
    small = [np.asarray(Image.fromarray(p).convert("L").resize((8, 8), Image.Resampling.BOX)) for p in pictures]
    return np.stack(small).reshape(len(small), 64) / 255


def agreement(checkpoint: str, num: int = 1000) -> float:
    """The share of `num` generated digits, the classes in turn, whose label the classifier finds."""
    G, config, num_classes = load_generator(checkpoint)
    with np.load(DIGITS) as data:
        real = [fit(np.repeat(image[..., None], 3, 2), config.data.resolution) for image in data["images"]]
        judge = SVC(gamma="scale", C=10).fit(features(real), data["labels"])
    labels = [i % num_classes for i in range(num)]
    fake = list(sample.generate(G, config.model.z_dim, 1, range(num), labels))
    return float((judge.predict(features(fake)) == labels).mean())


if __name__ == "__main__":
    num = int(sys.argv[2]) if len(sys.argv) > 2 else 1000
    share = agreement(sys.argv[1], num)
    print(f"a classifier trained on the real digits reads {share:.1%} of {num} generated ones as their label")
