"""Classes that have no image are told and never drawn; other real images may have more classes than the model."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import make_digits, untrained, write_config

from distgan import load_generator
from distgan.cli.main import main
from distgan.data.synthetic import write_shards
from distgan.errors import ConfigError
from distgan.evaluation.evaluate import _class_counts
from distgan.evaluation.target import open_target
from distgan.image_spec import square
from distgan.inference.export import card
from distgan.inference.generate import generate
from distgan.inference.request import GenerateOptions, parse_labels
from distgan.inference.trained_generator import TrainedGenerator
from distgan.metrics.frechet import Gaussian
from distgan.metrics.per_class import class_distances, probe_accuracies, share_classes
from distgan.metrics.registry import Features

TOY = ("eval.extractor=toy", "eval.num_images=150", "eval.every=120")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return write_config(folder / "tiny.yaml", make_digits(folder / "digits"), more="wandb: {mode: disabled}\n")


def test_the_reference_may_have_more_classes(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTGAN_CACHE", str(tmp_path / "cache"))
    write_shards(tmp_path / "more", 200, square(16), classes=20)
    own = (*TOY, f"eval.reference={tmp_path / 'more'}/*.tar")
    assert main(["check", str(config), *own]) == 0
    run, report = tmp_path / "run", tmp_path / "report.json"
    assert main(["train", str(config), *own, "train.images=120", f"run.dir={run}"]) == 0
    assert len((run / "evals.jsonl").read_text().splitlines()) == 1
    assert (
        main(["evaluate", str(run), "eval.metrics=fd", "eval.num_images=150", "--seeds", "1", "--out", str(report)])
        == 0
    )
    found = json.loads(report.read_text())
    assert "classes" not in found
    assert any("no values by class" in word for word in found["warnings"])
    capsys.readouterr()
    assert main(["check", str(config), *TOY, f"eval.reference={config}"]) != 0  # opened, so a mistake is told


def test_classes_of_one_name_are_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    centers = 9 * torch.eye(4)
    labels = {"generated": torch.arange(900) % 3, "real": torch.arange(900) % 3}
    at = {"generated": [0, 1, 2], "real": [2, 3, 0]}  # cat, dog, fox; fox, elk, cat
    sides = []
    for side, own in labels.items():
        points = centers[torch.tensor(at[side])[own]] + torch.randn(900, 4, generator=generator)
        sides.append(Features(Gaussian(900, points.mean(0).double(), points.T.cov().double()), points, None, own))
    fake, real = sides
    shared_real, shared_fake, others = share_classes(real, fake, ["fox", "elk", "cat"], ["cat", "dog", "fox"])
    assert others == ["elk", "dog"]
    assert torch.equal(shared_fake.labels, fake.labels[fake.labels != 1])
    assert torch.equal(shared_real.labels, torch.tensor([2, -1, 0])[real.labels[real.labels != 1]])
    assert torch.equal(shared_real.points, real.points[real.labels != 1])
    accuracy = probe_accuracies(shared_real, shared_fake, 3)["probe_generated"]
    assert accuracy > 0.95 > 0.5 > probe_accuracies(real, fake, 3)["probe_generated"]
    assert class_distances(shared_real, shared_fake, 3).keys() == {0, 2}


def test_classes_without_an_image_are_told(tmp_path: Path, config: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["check", str(config), "data.classes=12"]) == 0
    assert "classes: 2 of 12 have no image and are not trained: 10, 11" in capsys.readouterr().out
    assert main(["check", str(config)]) == 0
    assert "have no image" not in capsys.readouterr().out
    assert main(["check", str(config), *TOY, "data.classes=12", "eval.labels=3,11"]) == 2
    assert "class 11 has no image in the training data" in capsys.readouterr().err


@pytest.fixture(scope="module", params=["checkpoint", "export"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator of 4 classes that never saw classes 1 and 3."""
    folder = tmp_path_factory.mktemp("generator")
    run = untrained(folder / "run", classes=4, unseen=[1, 3])
    if request.param == "checkpoint":
        return run
    assert main(["export", str(run), str(folder / "export")]) == 0
    return folder / "export"


def test_a_generator_draws_the_classes_it_saw_alone(path: Path, tmp_path: Path) -> None:
    G = load_generator(path, "cpu")
    assert (G.num_classes, G.seen, parse_labels("", G)) == (4, [0, 2], [0, 2])
    mine = [0, 2, 0, 2, 0]
    assert torch.equal(G(5, seed=3), G(5, mine, seed=3))
    assert torch.equal(G(torch.ones(5, 8)), G(torch.ones(5, 8), mine))
    assert all(np.array_equal(a, b) for a, b in zip(G.pictures(range(1, 4)), G.pictures(range(1, 4), labels=[2, 0, 2])))
    for kind, more in (("png", {}), ("shards", {"balance": True})):
        generate(str(path), str(tmp_path / kind), GenerateOptions(kind, 6, **more))
    assert sorted(file.parent.name for file in (tmp_path / "png").rglob("*.png")) == ["000"] * 3 + ["002"] * 3
    told = json.loads((tmp_path / "shards" / "dataset.json").read_text())
    assert told["class_counts"] == [3, 0, 3, 0]
    generate(str(path), str(tmp_path / "grid.png"), GenerateOptions("grid", 6))
    assert "classes 0 to 3, but not 1, 3" in card(G, "safetensors", "x") and "labels=2)" in card(G, "safetensors", "x")


def test_evaluations_of_a_generator_draw_the_classes_it_saw_alone(path: Path) -> None:
    own = ["eval.num_images=100", "eval.labels=uniform", "eval.reference=unused.npz"]
    subject = open_target(str(path), own, torch.device("cpu"))
    assert subject.origin["weights"] == "average of G, half-life 500 images"  # of the training, in an export too
    drawn = subject.images(0, _class_counts(subject, None, None)).labels
    assert set(drawn.tolist()) == {0, 2}
    with pytest.raises(ConfigError, match="class 3 has no image in the training data"):
        open_target(str(path), [*own, "eval.labels=0,3"], torch.device("cpu"))


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda G: G(2, [0, 3]), "label 3: the training data had no image of this class"),
        (lambda G: G(torch.ones(1, 8), 1), "label 1: the training data had no image"),
        (lambda G: parse_labels("0-3", G), "--labels 0-3: class 1 had no image in the training data; leave it out"),
    ],
)
def test_to_ask_for_a_class_without_images_is_an_error(
    path: Path, ask: Callable[[TrainedGenerator], object], told: str
) -> None:
    with pytest.raises((ValueError, ConfigError), match=told):
        ask(load_generator(path, "cpu"))


def test_checkpoints_from_before_have_seen_all_classes(tmp_path: Path) -> None:
    assert load_generator(untrained(tmp_path / "run"), "cpu").seen == [0, 1, 2]


def test_a_run_keeps_which_classes_had_no_image(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTGAN_CACHE", str(tmp_path / "cache"))
    run, report = tmp_path / "run", tmp_path / "report.json"
    train = ["train", str(config), f"run.dir={run}", "data.classes=13", "train.images=120"]
    assert main(train) == 0
    assert load_generator(run, "cpu").spec.unseen == [10, 11, 12]
    own = ["eval.extractor=toy", "eval.num_images=150", "eval.metrics=fd", "--seeds", "1", "--out", str(report)]
    assert main(["evaluate", str(run), *own, "eval.labels=uniform"]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(run), *own, "eval.labels=3,11"]) == 2
    assert "class 11 has no image in the training data" in capsys.readouterr().err

    write_shards(tmp_path / "other", 200, square(16), classes=11)  # which has class 10
    names = [f"k{label}" for label in range(11)]
    (tmp_path / "other" / "dataset.json").write_text(json.dumps({"classes": names}))
    more = [f"data.shards={tmp_path / 'other'}/*.tar", "run.allow_data_change=true", "train.images=180"]
    assert main([*train, *more]) == 0
    assert load_generator(run, "cpu").spec.unseen == [11, 12]

    write_shards(
        tmp_path / "reference", 200, square(16), classes=20
    )  # more than the model has, named from the last one on
    (tmp_path / "reference" / "dataset.json").write_text(
        json.dumps({"classes": [*(f"new{i}" for i in range(10)), *names[:0:-1]]})
    )
    assert main(["evaluate", str(run), *own, "eval.labels=0-10", f"eval.reference={tmp_path / 'reference'}/*.tar"]) == 0
    found = json.loads(report.read_text())
    assert found["classes"]["probe_generated"] is not None
    assert "values by class are without 11 that one side alone names: new0, new1, new2 ..." in found["warnings"]
