"""A run that is killed and started again with the same command is the unbroken run, bit for bit."""

import random
import signal
import time
from pathlib import Path

import pytest
from processes import output, ranks, train, wait_for
from runs import audit, make_digits, metrics, status, weights, write_config


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return write_config(folder / "tiny.yaml", make_digits(folder / "digits"))


def kill_midway(world: int, log: Path, run: Path, arguments: list[str], after_lines: int, delay: float) -> None:
    """Start the run and SIGKILL all ranks some time after it wrote `after_lines` lines of metrics."""
    path = run / "metrics.jsonl"
    with ranks(world, ["-m", "distgan", "train", *arguments], log) as started:
        wait_for(
            lambda: (
                (path.exists() and path.read_text().count("\n") >= after_lines)
                or any(process.poll() is not None for process in started)
            )
        )
        time.sleep(delay)
        assert all(process.poll() is None for process in started), output(log, world)
        for process in started:
            process.send_signal(signal.SIGKILL)


@pytest.mark.multi
@pytest.mark.parametrize("world", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)])
def test_killed_and_resumed_equals_unbroken(tmp_path: Path, config: Path, world: int) -> None:
    arguments = [str(config), "train.images=840", "data.audit=true"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(world, tmp_path / "log-whole", *arguments, f"run.dir={whole}")
    again = [*arguments, f"run.dir={broken}"]
    delay = random.Random(world).uniform(0, 0.2)
    kill_midway(world, tmp_path / "log-broken", broken, again, after_lines=3, delay=delay)
    assert status(broken)["state"] == "running"
    train(world, tmp_path / "log-broken", *again)

    assert "resuming from" in output(tmp_path / "log-broken", world)
    assert weights(broken) == weights(whole)
    assert metrics(broken) == metrics(whole)
    assert audit(broken) == audit(whole)
    assert sorted(audit(whole)) == list(range(840))
    assert status(broken)["state"] == "finished"
    assert status(broken)["world"] == world


@pytest.mark.multi
def test_a_stop_between_two_lines_loses_nothing_of_the_next_one(tmp_path: Path, config: Path) -> None:
    """SIGTERM saves at once, with the sums of the unfinished line; exit code 75; then the same command goes on."""
    arguments = [str(config), "train.images=480", "train.tick=120", "checkpoint.every=100k"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(2, tmp_path / "log-whole", *arguments, f"run.dir={whole}")
    again, log = [*arguments, f"run.dir={broken}"], tmp_path / "log-broken"
    with ranks(2, ["-m", "distgan", "train", *again], log) as started:
        path = broken / "metrics.jsonl"
        wait_for(lambda: path.exists() and path.read_text().count("\n") >= 1)
        started[1].send_signal(signal.SIGTERM)  # one rank's signal is enough
        assert [process.wait(60) for process in started] == [75, 75], output(log, 2)
    assert status(broken)["state"] == "preempted"
    stopped_at = status(broken)["images"]
    assert 0 < stopped_at < 480
    train(2, log, *again)
    assert weights(broken) == weights(whole)
    assert metrics(broken) == metrics(whole)
    before = (broken / "metrics.jsonl").stat().st_mtime
    train(2, log, *again)  # a finished run has nothing to do
    assert (broken / "metrics.jsonl").stat().st_mtime == before


@pytest.mark.multi
@pytest.mark.parametrize(
    "plan",  # ranks, micro-batch and threads of each leg
    [
        pytest.param([(3, 2, 2), (1, 4, 3), (2, 3, 1)], id="3-1-2"),
        pytest.param([(2, 3, 1), (3, 2, 2), (1, 4, 3), (4, 1, 2)], id="2-3-1-4", marks=pytest.mark.slow),
    ],
)
def test_legs_on_other_ranks_see_the_same_samples_and_agree(
    tmp_path: Path, config: Path, plan: list[tuple[int, int, int]]
) -> None:
    """Legs on other numbers of ranks, with other micro-batches and threads, against one unbroken run on one rank."""
    num_images = 120 * len(plan)
    common = [str(config), "data.audit=true", "optim.G.lr=1e-4", "optim.D.lr=1e-4"]
    whole, legs = tmp_path / "whole", tmp_path / "legs"
    train(1, tmp_path / "log-whole", *common, f"train.images={num_images}", f"run.dir={whole}")
    for number, (world, micro, threads) in enumerate(plan, 1):
        leg = [
            f"train.images={120 * number}",
            f"train.micro_batch={micro}",
            f"data.decode_threads={threads}",
            f"run.dir={legs}",
        ]
        train(world, tmp_path / f"log-{world}", *common, *leg)
    assert audit(legs) == audit(whole)
    assert sorted(audit(whole)) == list(range(num_images))
    rows = {row["Progress/images"]: row for row in metrics(whole)}
    compared = 0
    for row in metrics(legs):
        for name in ("Loss/D", "Loss/G", "Loss/r1", "Loss/r2", "Logits/real_minus_fake"):
            assert row[name] == pytest.approx(rows[row["Progress/images"]][name], rel=1e-4), (
                row["Progress/images"],
                name,
            )
            compared += 1
    assert compared == len(plan) * 5
