"""The balance controller rescues a run that fails without it: D's rate is eight times G's, and the loss saturates."""

import numpy as np
import pytest
import torch
from judge_digits import DIGITS, features
from PIL import Image
from runs import make_digits

from distgan.cli.main import main
from distgan.inference.loading import load_generator
from distgan.metrics.frechet import Gaussian, Moments, distance, root

SIDE = 16
CONFIG = """
data: {{shards: {shards}, resolution: 16}}
run: {{dir: {run}}}
model: {{z_dim: 64, G: {{base_channels: 16, max_channels: 128}}, D: {{base_channels: 16, max_channels: 128}}}}
loss: {{name: minimax}}
optim: {{G: {{lr: 1e-3}}, D: {{lr: 8e-3}}}}
ema: {{half_life: 2k}}
train: {{batch: 64, images: 64k}}
sample: {{every: 0}}
checkpoint: {{every: 64k}}
wandb: {{mode: disabled}}
balance: {{adapt: "{adapt}"}}
"""


def gaussian(pictures: list[np.ndarray]) -> Gaussian:
    return Moments.of(torch.from_numpy(features(pictures))).gaussian()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_whose_discriminator_wins_at_once_is_rescued(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Fréchet distances of the digits' 8 x 8 pixels; that of the mean digit alone is 3.5, of two real halves 0.05."""
    folder = tmp_path_factory.mktemp("rescue")
    shards = make_digits(folder / "digits", SIDE)
    with np.load(DIGITS) as data:
        scans = [Image.fromarray(scan).resize((SIDE, SIDE), Image.Resampling.LANCZOS) for scan in data["images"]]
    real = gaussian([np.asarray(scan) for scan in scans])
    found = {}
    for adapt in ("", "d_lr"):
        run = folder / f"run-{adapt}"
        config = folder / f"{adapt}.yaml"
        config.write_text(CONFIG.format(shards=shards, run=run, adapt=adapt))
        assert main(["train", str(config)]) == 0
        fake = gaussian(list(load_generator(str(run)).pictures(range(len(scans)), seed=1)))
        found[adapt] = distance(real, fake, root(real.cov))
    assert found[""] > 3.5
    assert found["d_lr"] < 1.5
    print(found)
