"""Classes that have no image are told and never drawn; other real images may have more classes than the model."""

import json
from pathlib import Path

import pytest
from runs import make_digits, write_config

from distgan.cli import main
from distgan.data.synthetic import write_shards

TOY = ("eval.extractor=toy", "eval.num=150", "eval.every=120")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return write_config(folder / "tiny.yaml", make_digits(folder / "digits"), more="wandb: {mode: disabled}\n")


def test_the_reference_may_have_more_classes(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTGAN_CACHE", str(tmp_path / "cache"))
    write_shards(tmp_path / "more", 200, 16, classes=20)
    own = (*TOY, f"eval.reference={tmp_path / 'more'}/*.tar")
    assert main(["check", str(config), *own]) == 0
    run, report = tmp_path / "run", tmp_path / "report.json"
    assert main(["train", str(config), *own, "train.images=120", f"run.dir={run}"]) == 0
    assert len((run / "evals.jsonl").read_text().splitlines()) == 1
    assert main(["evaluate", str(run), "eval.metrics=fd", "--out", str(report)]) == 0
    found = json.loads(report.read_text())
    assert "classes" not in found
    assert any("no values by class" in word for word in found["warnings"])
    capsys.readouterr()
    assert main(["check", str(config), *TOY, f"eval.reference={config}"]) != 0  # opened, so a mistake is told


def test_classes_without_an_image_are_told(tmp_path: Path, config: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["check", str(config), "data.classes=12"]) == 0
    assert "classes: 2 of 12 have no image and are not trained: 10, 11" in capsys.readouterr().out
    assert main(["check", str(config)]) == 0
    assert "have no image" not in capsys.readouterr().out
    assert main(["check", str(config), *TOY, "data.classes=12", "eval.labels=3,11"]) == 2
    assert "class 11 has no image in the training data" in capsys.readouterr().err
