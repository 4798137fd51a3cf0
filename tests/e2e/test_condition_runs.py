"""Runs with a mixed condition: killed and resumed is unbroken, other ranks see the same, and it is learned."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import lines, require_resumed, write_config
from runs import train as train_here

from distgan import load_generator
from distgan.cli.main import main
from distgan.data.encode import PackOptions
from distgan.data.pack import pack
from distgan.data.pack_entry import ListingOptions
from distgan.image_spec import ImageSpec

NUM = 240
TOY = ["eval.extractor=toy", "eval.num_images=200"]


def make_set(folder: Path, seed: int = 0, num: int = NUM, unknown: bool = True) -> Path:
    """Images whose gray level is their heat, of three classes; `side` says which half is darker."""
    rng = np.random.default_rng(seed)
    heat, side, labels = rng.uniform(0, 1, num), rng.integers(0, 2, num), rng.integers(0, 3, num)
    images = np.repeat((55 + 200 * heat).astype(np.uint8)[:, None, None], 16, 1).repeat(16, 2)
    for image, which in zip(images, side):
        image[:, 8 * which : 8 * which + 8] //= 2
    shown = 10 + 30 * heat
    if unknown:
        shown[::7] = np.nan
    folder.mkdir(parents=True)
    np.savez(folder / "a.npz", images=images, labels=labels, heat=shown, side=side, code=rng.normal(size=(num, 4)))
    wanted = ListingOptions(conditions=("heat", "side", "code", "cls"))
    pack(str(folder / "a.npz"), str(folder / "shards"), PackOptions(), wanted, workers=1)
    return folder / "shards"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    path = write_config(folder / "tiny.yaml", make_set(folder / "set"))
    text = path.read_text().replace("conditional: true", "conditional: true\n  condition_dropout: 0.2")
    path.write_text(text.replace("resolution: 16}", "resolution: 16, condition: [heat, side, code, cls]}"))
    return path


@pytest.mark.multi
def test_killed_on_two_ranks_and_resumed_equals_unbroken_and_one_rank(tmp_path: Path, config: Path) -> None:
    arguments = [str(config), "train.images=480", "data.audit=true"]
    whole, single = require_resumed(tmp_path, arguments, lambda run: lines(run / "metrics.jsonl") >= 2)
    states = [json.loads(max((run / "checkpoints").glob("step-*/state.json")).read_text()) for run in (single, whole)]
    assert states[0]["conditions"] == states[1]["conditions"]
    assert states[0]["examples"] == states[1]["examples"]
    assert len(states[0]["examples"]) == NUM
    legends = [(run / "samples" / "fakes.txt").read_text() for run in (single, whole)]
    assert legends[0] == legends[1]
    assert legends[0].startswith("row 1: heat=")


KINDS = {
    "gray": (ImageSpec(64, 64, 1), ["data.channels=1", "data.resolution=64"]),
    "alpha": (ImageSpec(64, 96, 4, alpha=True), ["data.channels=4", "data.alpha=channel", "data.resolution=[64,96]"]),
    "bands": (
        ImageSpec(48, 48, 5, "float32", -3, 2),
        ["data.channels=5", "data.dtype=float32", "data.range=[-3,2]", "data.resolution=48"],
    ),
}


@pytest.mark.multi
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_images_of_any_kind_with_mixed_conditions_resume_as_they_were(tmp_path: Path, kind: str) -> None:
    """Killed on two ranks and resumed is unbroken, bit for bit; one rank sees the same images, and learns the same."""
    image, own = KINDS[kind]
    rng = np.random.default_rng(0)
    values = {"heat": rng.random(96), "side": rng.integers(0, 2, 96), "labels": rng.integers(0, 3, 96)}
    pixels = rng.uniform(image.low, image.high, (96, *image.shape)).astype(image.dtype)
    np.savez(tmp_path / "a.npz", images=pixels, **values)
    options = PackOptions(channels=image.channels, dtype=image.dtype, alpha=image.alpha)
    wanted = ListingOptions(conditions=("heat", "side", "cls"), channels=image.channels)
    pack(str(tmp_path / "a.npz"), str(tmp_path / "shards"), options, wanted, workers=1)
    config = write_config(tmp_path / "tiny.yaml", tmp_path / "shards")
    start = [str(config), *own, "data.condition=[heat,side,cls]", "model.conditional=true", "train.images=96"]
    start += ["augment.pipe=ada", "data.audit=true", "checkpoint.every=48"]
    require_resumed(tmp_path, start, lambda run: any((run / "checkpoints").glob("step-*/manifest.json")))


def test_other_conditions_are_other_networks(tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert train_here(config, run, "train.images=240") == 0
    for overrides, message in (
        (["data.condition=[side,heat,code,cls]"], "of other networks: data.condition was"),
        (["data.condition=[]", "model.condition_dropout=0"], "of other networks: data.condition was"),
        (["data.condition=[heat,size]"], "data.condition=size: the data set has no such condition"),
        (["model.conditional=false"], "set model.conditional=true, or data.condition=[]"),
        (["data.balance=classes"], "data.balance=classes balances by the class alone"),
        (["eval.labels=uniform"], "leave it out"),
        (["model.condition_dropout=0.4"], "model.condition_dropout was 0.2, is 0.4"),
    ):
        assert train_here(config, run, "train.images=480", *overrides) in (2, 3)
        assert message in capsys.readouterr().err
    # Other data, allowed: the networks keep the statistics that they were trained with.
    other = make_set(tmp_path / "other", seed=1)
    more = [f"data.shards={other}", "run.allow_data_change=true", "train.images=480"]
    before = json.loads(max((run / "checkpoints").glob("step-*/state.json")).read_text())["conditions"]
    assert train_here(config, run, *more) == 0
    assert json.loads(max((run / "checkpoints").glob("step-*/state.json")).read_text())["conditions"] == before

    out = tmp_path / "report.json"
    assert main(["evaluate", str(run), *TOY, "--seeds", "1", "--out", str(out)]) == 0
    found = json.loads(out.read_text())["conditions"]
    assert list(found) == ["heat", "side", "code", "cls"]
    assert set(found["heat"]) == {"error", "r2", "error_real", "r2_real"}
    assert set(found["side"]) == set(found["cls"]) == {"accuracy", "accuracy_real"}
    assert found["heat"]["r2_real"] > 0.9  # the gray level, which any features show
    assert found["side"]["accuracy_real"] > 0.9


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_condition_has_its_effect(tmp_path: Path) -> None:
    """The gray level of generated images follows the heat, and the darker half the side."""
    path = write_config(tmp_path / "c.yaml", make_set(tmp_path / "set", num=2000, unknown=False))
    path.write_text(path.read_text().replace("resolution: 16}", "resolution: 16, condition: [heat, side]}"))
    settings = ["train.images=24k", "train.batch=32", "optim.G.lr=2e-3", "optim.D.lr=2e-3", "sample.every=0"]
    assert main(["train", str(path), f"run.dir={tmp_path / 'run'}", "checkpoint.every=24k", *settings]) == 0
    G = load_generator(tmp_path / "run", "cpu")
    for side in (0, 1):
        levels = [float(G(64, f"heat={heat},side={side}", seed=1).mean()) for heat in (13, 25, 37)]
        truth = [(55 + 200 * (heat - 10) / 30) * 0.75 / 127.5 - 1 for heat in (13, 25, 37)]
        assert levels == pytest.approx(truth, abs=0.15)
        images = G(64, f"heat=25,side={side}", seed=1)
        halves = torch.stack([images[..., :8].mean(), images[..., 8:].mean()])
        assert int(halves.argmin()) == side
    out = tmp_path / "report.json"
    assert main(["evaluate", str(tmp_path / "run"), *TOY, "--seeds", "1", "--out", str(out)]) == 0
    found = json.loads(out.read_text())["conditions"]
    assert found["heat"]["r2"] > 0.8
    assert found["side"]["accuracy"] > 0.9
