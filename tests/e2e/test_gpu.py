"""What only a GPU shows: its kernels agree with the CPU's, and a resume is exact with deterministic ones."""

from pathlib import Path

import pytest
import torch
from processes import train
from runs import make_digits, metrics, status, weights, write_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here"),
]
CONDITIONS = ["train.deterministic=strict", "wandb.mode=disabled"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return write_config(folder / "tiny.yaml", make_digits(folder / "digits"))


def test_the_gpu_trains_as_the_cpu_does(config: Path, tmp_path: Path) -> None:
    for name, variables in (("gpu", {}), ("cpu", {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""})):
        arguments = [str(config), f"run.dir={tmp_path / name}", "train.images=240", *CONDITIONS]
        train(1, tmp_path / f"log-{name}", *arguments, **variables)
    for ours, theirs in zip(metrics(tmp_path / "gpu"), metrics(tmp_path / "cpu")):
        for key in ("Loss/D", "Loss/G", "Loss/r1", "Logits/real_minus_fake"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-2, abs=1e-3), key


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_is_the_unbroken_one(precision: str, config: Path, tmp_path: Path) -> None:
    common = [str(config), f"train.precision={precision}", *CONDITIONS]
    train(1, tmp_path / "log-whole", *common, "train.images=960", f"run.dir={tmp_path / 'whole'}")
    for images in (480, 960):
        train(1, tmp_path / "log-legs", *common, f"train.images={images}", f"run.dir={tmp_path / 'legs'}")
    assert status(tmp_path / "legs")["state"] == "finished"
    assert weights(tmp_path / "legs") == weights(tmp_path / "whole")
    assert metrics(tmp_path / "legs") == metrics(tmp_path / "whole")
