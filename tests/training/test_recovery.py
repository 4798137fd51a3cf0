"""Steps whose loss or gradient is not finite: never taken, and what a run does about them."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import WORKERS, output, ranks, run_ranks, wait_for
from runs import audit, make_digits, metrics, status, weights, write_config

from distgan.config.schema import Optimizer
from distgan.distributed.process_group import World
from distgan.image_spec import square
from distgan.models import MODELS
from distgan.training.gan_step import GanStep
from distgan.training.optimizers import build_optimizer
from distgan.training.step_inputs import LatentSampler, StepBatch, StepHyperparams, StepOptions

FAULT = [str(WORKERS / "nan_run.py"), "260"]  # within the iteration that ends at 264 images


def a_batch(number: int) -> StepBatch:
    positions = np.arange(number * 6, number * 6 + 6)
    images = torch.from_numpy(np.random.default_rng(number).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8))
    return StepBatch(images, None, *map(torch.from_numpy, LatentSampler(0, 4)(positions)))


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd", "rmsprop"])
@pytest.mark.parametrize(
    ("value", "passes", "bad_at"), [(float("nan"), 1, 0), (float("nan"), 1, 2), (float("inf"), 3, 0)]
)
def test_a_bad_step_leaves_everything_as_it_was(
    kind: str, value: float, passes: int, bad_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, moments, step counts and batch norm's running statistics; as if the batch had never been.

    Also where it is the very first one, in which optimizers allocate their state; memory that nobody has written to
    is NaN here.
    """
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    was = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        found = [_after_four_steps(kind, value, passes, bad) for bad in (-1, bad_at)]
    finally:
        torch.use_deterministic_algorithms(was[0], warn_only=was[1])
    for without, having in zip(*found):
        torch.testing.assert_close(dict(having), dict(without), rtol=0, atol=0)


def _after_four_steps(kind: str, value: float, passes: int, bad_at: int) -> list[dict]:
    """State of networks and optimizers; before step `bad_at`, there is one with this value among its latents."""
    torch.manual_seed(0)
    sizes = {"base_channels": 4, "max_channels": 8, "norm": "batch"}
    G = MODELS["dcgan"].generator(square(16), 4, 0, **sizes, embed_dim=1)
    D = MODELS["dcgan"].discriminator(square(16), 0, **sizes)
    step = GanStep(World(), G, D, StepOptions("hinge", accumulation_steps=passes, restore_buffers=True))
    opt_g, opt_d = (build_optimizer(Optimizer(name=kind, betas=(0.5, 0.9)), net) for net in (G, D))
    for number in range(4):
        if number == bad_at:
            bad = a_batch(9)
            bad.z_d[4] = bad.z_g[4] = value
            step.d_step(bad, opt_d, StepHyperparams())
            step.g_step(bad, opt_g, StepHyperparams())
            assert step.stats.skipped()[0] == 2
        step.d_step(a_batch(number), opt_d, StepHyperparams())
        step.g_step(a_batch(number), opt_g, StepHyperparams())
    return [G.state_dict(), D.state_dict(), opt_g.state_dict()["state"], opt_d.state_dict()["state"]]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return write_config(folder / "tiny.yaml", make_digits(folder / "digits"))


def last_row(run: Path) -> dict[str, float]:
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])


@pytest.mark.multi
def test_a_run_fails_before_it_saves_anything(tmp_path: Path, config: Path) -> None:
    """By default. One rank alone meets the fault, and all end alike; the config of the last line would go on."""
    run, log = tmp_path / "run", tmp_path / "log"
    own = ["train", str(config), "train.images=480", f"run.dir={run}"]
    assert run_ranks(2, [*FAULT, "1", *own], log) == [4, 4], output(log, 2)
    told = output(log)
    assert "1 step(s) of D and 1 step(s) of G not taken, since not finite: Loss/D 1 times" in told
    assert "step-000000000240" in told
    assert "train.on_nan=skip or rollback" in told
    assert status(run)["state"] == "failed"
    assert max((run / "checkpoints").glob("step-*")).name == "step-000000000240"
    assert last_row(run)["Progress/images"] == 240


@pytest.mark.multi
def test_a_run_that_skips_goes_on(tmp_path: Path, config: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    own = ["train", str(config), "train.images=360", f"run.dir={run}", "train.on_nan=skip", "train.nan_limit=2"]
    assert run_ranks(2, [*FAULT, "1", *own], log) == [0, 0], output(log, 2)
    assert "not finite: 2 of at most 2" in output(log)
    rows = {row["Progress/images"]: row["Optim/skipped_steps"] for row in metrics(run)}
    assert rows[360] == 2
    assert sum(rows.values()) == 2
    less = [*own, "train.nan_limit=1", f"run.dir={tmp_path / 'less'}"]
    assert run_ranks(2, [*FAULT, "1", *less], log) == [4, 4]
    assert "a larger train.nan_limit" in output(log)


@pytest.mark.multi
@pytest.mark.parametrize(
    ("every", "fault_at"), [pytest.param("120", "200", marks=pytest.mark.slow), ("100k", "100")]
)  # with the latter, back to the start
def test_a_run_that_rolls_back_goes_on_with_other_noise(
    tmp_path: Path, config: Path, every: str, fault_at: str
) -> None:
    whole, log, fault = tmp_path / "whole", tmp_path / "log", [FAULT[0], fault_at]
    own = ["train", str(config), "train.images=360", "data.audit=true", f"checkpoint.every={every}"]
    own += ["train.on_nan=rollback", "train.tick=60"]
    assert run_ranks(2, [*fault, "2", *own, f"run.dir={whole}"], log) == [0, 0], output(log, 2)
    assert output(log).count("with other noise (") == 2  # the second attempt is no better
    rows = metrics(whole)
    assert [row["Progress/images"] for row in rows] == sorted({row["Progress/images"] for row in rows})
    assert last_row(whole)["Optim/rollbacks"] == 2
    assert sorted(audit(whole)) == list(range(360))

    # Stopped after the rollbacks and taken up again, it is the same run.
    broken = tmp_path / "broken"
    command = [*fault, "2", *own, f"run.dir={broken}"]
    with ranks(2, command, log) as started:
        path = broken / "metrics.jsonl"
        wait_for(lambda: path.exists() and '"Optim/rollbacks": 2.0' in path.read_text(), told=lambda: output(log, 2))
        started[0].send_signal(signal.SIGTERM)
        assert [process.wait(60) for process in started] == [75, 75], output(log, 2)
    assert run_ranks(2, command, log) == [0, 0], output(log, 2)
    assert weights(broken) == weights(whole)
    assert metrics(broken) == rows
    assert audit(broken) == audit(whole)


@pytest.mark.multi
def test_rollbacks_end_at_their_limit(tmp_path: Path, config: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    own = ["train", str(config), "train.images=480", f"run.dir={run}", "train.on_nan=rollback", "train.nan_limit=1"]
    assert run_ranks(1, [*FAULT, "9", *own], log) == [4]
    assert "a larger train.nan_limit" in output(log)
    assert status(run)["state"] == "failed"
