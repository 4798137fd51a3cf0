"""Evaluations in the middle of a run: they change nothing of it, obey stops, and know the best checkpoint."""

import json
import signal
from pathlib import Path

import pytest
import torch
from processes import output, ranks, train, wait_for
from runs import audit, make_digits, metrics, status, weights, write_config

from distgan.cli.main import main
from distgan.evaluation import periodic
from distgan.evaluation.measure import ExtractedFeatures, Measurement
from distgan.storage import checkpoint_folder

TOY = ("eval.extractor=toy", "eval.num_images=150", "eval.every=120")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return write_config(folder / "tiny.yaml", make_digits(folder / "digits"), more="wandb: {mode: disabled}\n")


def evals(run: Path) -> list[dict]:
    """The rows of evals.jsonl, without what depends on the machine."""
    rows = [json.loads(line) for line in (run / "evals.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("Perf/")} for row in rows]


@pytest.mark.multi
@pytest.mark.parametrize(("world", "norm"), [(1, "batch"), (2, "none")])
def test_evaluations_change_no_bit_of_the_training(tmp_path: Path, config: Path, world: int, norm: str) -> None:
    """Where the best is saved too, batch norm on several ranks averages its statistics then, as in every save."""
    own = [str(config), "train.images=240", "data.audit=true", f"model.G.norm={norm}"]
    plain, evaluated = tmp_path / "plain", tmp_path / "evaluated"
    train(world, tmp_path / "log-plain", *own, f"run.dir={plain}")
    train(world, tmp_path / "log", *own, *TOY, f"run.dir={evaluated}", DISTGAN_CACHE=str(tmp_path / "cache"))
    assert [row["Progress/images"] for row in evals(evaluated)] == [120, 240]
    assert weights(evaluated) == weights(plain)
    assert metrics(evaluated) == metrics(plain)
    assert audit(evaluated) == audit(plain)


@pytest.mark.multi
def test_killed_and_resumed_has_the_evaluations_of_the_unbroken_run(tmp_path: Path, config: Path) -> None:
    own = [str(config), "train.images=480", *TOY, "checkpoint.keep_last=1"]
    whole, broken, log = tmp_path / "whole", tmp_path / "broken", tmp_path / "log"
    train(2, tmp_path / "log-whole", *own, f"run.dir={whole}")
    path = broken / "evals.jsonl"
    with ranks(2, ["-m", "distgan", "train", *own, f"run.dir={broken}"], log) as started:
        wait_for(lambda: path.exists() and path.read_text().count("\n") >= 2, told=lambda: output(log, 2))
        for process in started:
            process.send_signal(signal.SIGKILL)
    train(2, log, *own, f"run.dir={broken}")
    assert evals(broken) == evals(whole)
    assert weights(broken) == weights(whole)
    best = checkpoint_folder.read_best(whole / "checkpoints")
    assert checkpoint_folder.read_best(broken / "checkpoints") == best
    assert (broken / "checkpoints" / best["checkpoint"]).is_dir()


@pytest.mark.multi
@pytest.mark.parametrize(
    "images", [pytest.param(360, id="midway"), pytest.param(240, id="at the end", marks=pytest.mark.slow)]
)
def test_a_stop_is_obeyed_in_the_middle_and_the_evaluation_made_up_for(
    tmp_path: Path, config: Path, images: int
) -> None:
    """One rank's signal is enough; the run that goes on ends as if it had not been stopped."""
    run, whole, log = tmp_path / "run", tmp_path / "whole", tmp_path / "log"
    own = [str(config), f"train.images={images}", "eval.extractor=toy", "eval.every=240"]
    train(2, tmp_path / "log-whole", *own, "eval.num_images=150", f"run.dir={whole}")
    endless, cache = [*own, "eval.num_images=1M", f"run.dir={run}"], str(tmp_path / "empty")
    with ranks(2, ["-m", "distgan", "train", *endless], log, DISTGAN_CACHE=cache) as started:
        wait_for(lambda: "reading" in output(log, 2), told=lambda: output(log, 2))  # the evaluation has begun
        started[1].send_signal(signal.SIGTERM)
        assert [process.wait(40) for process in started] == [75, 75], output(log, 2)
    assert not (run / "evals.jsonl").exists()
    assert (status(run)["state"], status(run)["images"]) == ("preempted", 240)
    train(2, log, *own, "eval.num_images=150", f"run.dir={run}")
    assert evals(run) == evals(whole)
    assert weights(run) == weights(whole)
    assert status(run)["state"] == "finished"
    before = (run / "evals.jsonl").read_text()
    train(2, log, *own, "eval.num_images=150", f"run.dir={run}")
    assert (run / "evals.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [("fd", [5, 3, 4, float("nan"), 3], 48), ("is", [5, 3, 7, float("nan"), 7], 72), ("pr", [1, 1, 1, 1, 1], 0)],
)
def test_the_best_checkpoint_is_kept(
    tmp_path: Path, config: Path, metric: str, values: list[float], best: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no checkpoint was due; of equal ones, the first."""
    told = iter(values)
    names = {"fd": ["fd"], "is": ["is"], "pr": ["precision_k3", "recall_k3"]}[metric]

    def measured(*_: object, **__: object) -> Measurement:
        value = next(told)
        return Measurement(dict.fromkeys(names, (value, 0.0)), [], 0.0, ExtractedFeatures(150, 0, 0, 0))

    monkeypatch.setattr(periodic, "measure", measured)
    run = tmp_path / "run"
    own = [*TOY, "eval.every=24", f"eval.metrics=[{metric}]", f"run.dir={run}"]
    own += ["checkpoint.every=10k", "checkpoint.keep_last=1"]
    assert main(["train", str(config), *own, "train.images=120"]) == 0
    kept = {path.name for path in (run / "checkpoints").glob("step-*")}
    assert f"step-{120:012d}" in kept
    found = checkpoint_folder.read_best(run / "checkpoints")
    if best:
        key = f"Metrics/{metric}_toy_150_full"
        assert found == {"checkpoint": f"step-{best:012d}", "metric": key, "value": values[best // 24 - 1]}
        assert found["checkpoint"] in kept
        nan = evals(run)[3][key]
        assert nan is None
    else:
        assert found == {}
    told = iter([0.5])
    assert main(["train", str(config), *own, "train.images=144"]) == 0
    assert {path.name for path in (run / "checkpoints").glob("step-*")} >= {found.get("checkpoint", f"step-{144:012d}")}


def test_a_run_taken_back_forgets_its_later_evaluations(tmp_path: Path, config: Path) -> None:
    run = tmp_path / "run"
    own = ["train", str(config), *TOY, "eval.every=24", f"run.dir={run}"]
    own += ["checkpoint.every=24", "checkpoint.keep_last=9"]
    assert main([*own, "train.images=96"]) == 0
    rows = evals(run)
    back = run / "checkpoints" / f"step-{48:012d}"
    assert main([*own, "train.images=72", f"run.resume={back}"]) == 0
    assert evals(run) == rows[:3]
    assert (run / "evals.orphan-48.jsonl").read_text().count("\n") == 2
    best = checkpoint_folder.read_best(run / "checkpoints")
    assert (run / "checkpoints" / best["checkpoint"]).is_dir()


def test_the_randomness_of_others_is_left_alone(tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even of a generator that draws while it generates."""
    from distgan.inference import sampling

    drawn, images = [], sampling.Sampler.images

    def drawing(*arguments: object) -> object:
        drawn.append(torch.rand(1).item())
        return images(*arguments)

    torch.manual_seed(5)
    expected = torch.rand(3)[0]
    monkeypatch.setattr(sampling.Sampler, "images", drawing)
    torch.manual_seed(5)
    assert main(["train", str(config), *TOY, f"run.dir={tmp_path / 'run'}", "train.images=240", "sample.every=0"]) == 0
    assert len(drawn) == 2 * 3
    assert torch.rand(1) == expected


@pytest.mark.parametrize(
    ("overrides", "code", "told"),
    [
        (("eval.extractor=inception",), 2, "the weights of inception are missing"),
        (("eval.weights=/nowhere.pth", "eval.extractor=efficientnet_lite0"), 2, "/nowhere.pth"),
        (("eval.labels=10",), 2, "the classes are 0 to 9"),
        (("eval.num_images=1",), 2, "eval.num_images=1: must be at least 2"),
        (("eval.metrics=[fd,sfid]",), 2, "eval.metrics='sfid': choose one of fd, kid"),
        (("eval.best_metric=is",), 2, "eval.best_metric=is is not measured"),
        (("eval.reference=/nowhere.npz",), 3, "No such file"),
    ],
)
def test_what_cannot_be_evaluated_is_told_before_the_training(
    tmp_path: Path, config: Path, overrides: tuple[str, ...], code: int, told: str, capsys: pytest.CaptureFixture
) -> None:
    run = tmp_path / "run"
    assert main(["train", str(config), *TOY, f"run.dir={run}", *overrides]) == code
    assert told in capsys.readouterr().err
    assert not (run / "metrics.jsonl").exists()
    if "eval.reference" not in overrides[0]:
        assert main(["check", str(config), *TOY, *overrides]) == code
        assert told in capsys.readouterr().err


def test_check_tells_of_the_evaluations(config: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["check", str(config), *TOY]) == 0
    told = capsys.readouterr().out
    assert (
        "evaluation: every 120 images, fd, kid of 150 images by toy:none:tanh:16:bilinear:v1; best kept by fd" in told
    )
