"""Generated digits are of use: a classifier that saw nothing else reads real ones that no training has seen."""

import os
from pathlib import Path

import numpy as np
import pytest
from judge_digits import DIGITS, features
from PIL import Image
from processes import ROOT

from distgan import load_generator, train
from distgan.data.encode import PackOptions
from distgan.data.pack import pack

SIDE = 32
HELD_OUT = 297  # of 1,797, the last ones, by other writers than most of the rest
NUM = 10_000


def accuracy(pictures: list[np.ndarray], labels: np.ndarray, unseen: list[np.ndarray], truth: np.ndarray) -> float:
    from sklearn.svm import SVC  # takes seconds, also where this test is left out

    classifier = SVC(gamma="scale", C=10).fit(features(pictures), labels)
    return float((classifier.predict(features(unseen)) == truth).mean())


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_generated_digits_train_a_classifier(tmp_path: Path) -> None:
    with np.load(DIGITS) as data:
        scans, labels = data["images"], data["labels"]
    np.savez(tmp_path / "seen.npz", images=scans[:-HELD_OUT], labels=labels[:-HELD_OUT])
    pack(str(tmp_path / "seen.npz"), str(tmp_path / "digits"), PackOptions(resolution=SIDE), workers=1)
    own = (f"data.shards={tmp_path / 'digits'}", f"run.dir={tmp_path / 'run'}", "wandb.mode=disabled", "sample.every=0")
    images = os.environ.get("DISTGAN_DIGITS_IMAGES", "150k")
    assert train(ROOT / "configs" / "digits32.yaml", *own, f"train.images={images}", f"checkpoint.every={images}") == 0

    real = [np.asarray(Image.fromarray(scan).resize((SIDE, SIDE), Image.Resampling.LANCZOS)) for scan in scans]
    unseen, truth = real[-HELD_OUT:], labels[-HELD_OUT:]
    made = list(load_generator(tmp_path / "run").pictures(range(NUM), seed=1))
    by_real = accuracy(real[:-HELD_OUT], labels[:-HELD_OUT], unseen, truth)
    by_generated = accuracy(made, np.arange(NUM) % 10, unseen, truth)
    print(f"trained on {len(real) - HELD_OUT} real digits: {by_real:.1%}; on {NUM} generated ones: {by_generated:.1%}")
    assert by_real > 0.9
    assert by_generated > 0.8
