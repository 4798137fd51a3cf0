"""Runs that start from other weights: what is taken, what is made of it, what is refused."""

import json
from pathlib import Path

import pytest
import torch
from processes import ROOT
from safetensors.torch import save_file
from torch import Tensor, nn

from distgan.cli.main import main
from distgan.config.load import load
from distgan.config.schema import Config
from distgan.errors import ConfigError, DataError
from distgan.image_spec import ImageSpec, square
from distgan.storage import checkpoint
from distgan.training.factory import build_nets
from distgan.training.initial_weights import Source, initialize, read_source

IMAGE = square(16)


def config(*settings: str) -> Config:
    small = ("model.G.base_channels=8", "model.D.base_channels=8", "model.z_dim=8", "train.batch=8")
    more = ("data.shards=x", "data.resolution=16", "model.conditional=true", "init.source=x", "run.dir=y")
    return load(str(ROOT / "configs" / "digits32.yaml"), [*more, *small, *settings])


def nets(settings: Config, num_classes: int, seed: int = 0) -> dict[str, nn.Module]:
    settings.train.seed = seed
    G, D = build_nets(settings, num_classes)
    G_ema, _ = build_nets(settings, num_classes)
    return {"G": G, "D": D, "G_ema": G_ema}


def source(named: dict[str, nn.Module], image: ImageSpec = IMAGE, **more: object) -> Source:
    weights = {part: {k: v.clone() for k, v in net.state_dict().items()} for part, net in named.items()}
    return Source("there", weights, {}, "dcgan", image, **more)


def out(net: nn.Module, labels: list[int]) -> Tensor:
    z = torch.linspace(-1, 1, 8).expand(len(labels), 8)
    return net(z, torch.tensor(labels))


def test_shared_classes_make_the_same_images_and_others_begin_at_the_mean() -> None:
    settings = config()
    before, now = nets(settings, 3), nets(settings, 4, seed=1)
    fits = initialize(
        now, settings, source(before, class_names=["a", "b", "c"], num_classes=3), ["b", "x", "c", "y"], 4
    )
    assert torch.equal(out(now["G"], [0, 2]), out(before["G"], [1, 2]))
    table = before["G"].embed.weight
    torch.testing.assert_close(now["G"].embed.weight[1], table.mean(0))
    assert torch.equal(now["G"].embed.weight[1], now["G"].embed.weight[3])
    assert [(fit.part, fit.made, fit.new, fit.left) for fit in fits] == [
        (part, ["embed.weight"], [], []) for part in ("G", "D", "G_ema")
    ]


@pytest.mark.parametrize(("names", "same"), [(["a", "b", "c"], True), (["c", "b", "a"], False), ([], True)])
def test_as_many_classes_are_the_same_ones_unless_names_say_otherwise(names: list[str], same: bool) -> None:
    settings = config()
    before, now = nets(settings, 3), nets(settings, 3, seed=1)
    initialize(now, settings, source(before, class_names=["a", "b", "c"], num_classes=3), names, 3)
    assert torch.equal(out(now["G"], [0]), out(before["G"], [0 if same else 2]))
    assert torch.equal(out(now["G_ema"], [0, 1]), out(before["G_ema"], [0 if same else 2, 1]))


def test_without_names_another_number_of_classes_begins_at_the_mean() -> None:
    settings = config()
    before, now = nets(settings, 3), nets(settings, 2, seed=1)
    initialize(now, settings, source(before, num_classes=3), ["b", "c"], 2)
    torch.testing.assert_close(now["D"].embed.weight, before["D"].embed.weight.mean(0).expand(2, -1))


def test_gray_and_colors_begin_as_the_same_function() -> None:
    gray, colors = config("data.channels=1"), config()
    images = torch.rand(2, 1, 16, 16) * 2 - 1
    labels = torch.tensor([0, 2])
    before, now = nets(gray, 3), nets(colors, 3, seed=1)
    initialize(now, colors, source(before, square(16, 1), num_classes=3), [], 3)
    torch.testing.assert_close(out(now["G"], [0, 1]), out(before["G"], [0, 1]).expand(-1, 3, -1, -1))
    torch.testing.assert_close(now["D"](images.expand(-1, 3, -1, -1), labels), before["D"](images, labels))

    before, now = nets(colors, 3), nets(gray, 3, seed=1)
    initialize(now, gray, source(before, num_classes=3), [], 3)
    torch.testing.assert_close(now["D"](images, labels), before["D"](images.expand(-1, 3, -1, -1), labels))
    last = before["G"].layers[-1][0]
    torch.testing.assert_close(now["G"].layers[-1][0].weight, last.weight.mean(1, keepdim=True))
    torch.testing.assert_close(now["G"].layers[-1][0].bias, last.bias.mean(0, keepdim=True))


def test_parts_are_chosen_and_an_average_that_is_not_begins_as_g() -> None:
    settings = config("init.parts=[G]")
    before, now = nets(settings, 3), nets(settings, 3, seed=1)
    first = {name: value.clone() for name, value in now["D"].state_dict().items()}
    initialize(now, settings, source(before, num_classes=3), [], 3)
    assert all(torch.equal(value, first[name]) for name, value in now["D"].state_dict().items())
    for name, value in before["G"].state_dict().items():
        assert torch.equal(now["G"].state_dict()[name], value)
        assert torch.equal(now["G_ema"].state_dict()[name], value)


def test_what_other_networks_hold_is_refused_or_told() -> None:
    settings = config()
    before, now = nets(settings, 3), nets(settings, 3, seed=1)
    wide = config("model.G.base_channels=16", "model.D.base_channels=16")
    fits = initialize(nets(wide, 3), wide, source(before, num_classes=3), [], 3)  # some are of the same shape
    assert any("[64, 32, 4, 4] there" in name or "there" in name for name in fits[0].new)
    given = source(before, num_classes=3)
    others = {part: {f"other.{name}": value for name, value in net.items()} for part, net in given.nets.items()}
    for wrong, message in (
        (Source("there", given.nets, {}, "r3gan", given.image), "its networks are of model.family=r3gan, not dcgan"),
        (Source("there", given.nets, {}, "dcgan", square(32)), "images of 32x32 pixels, and data.resolution is 16"),
        (Source("there", others, {}, "dcgan", given.image), "no weight of G fits by name and shape"),
    ):
        with pytest.raises(ConfigError, match=message):
            initialize(now, settings, wrong, [], 3)
    without_d = Source("there", {"G_ema": given.nets["G_ema"]}, {}, "dcgan", given.image, num_classes=3)
    fits = initialize(now, settings, without_d, [], 3)
    assert fits[1].line == "init: D: 0 tensors taken, 1 new (all: the source has none)"
    assert torch.equal(out(now["G"], [1]), out(before["G_ema"], [1]))


def test_files_of_tensors_are_read_in_the_usual_forms(tmp_path: Path) -> None:
    settings = config()
    named = nets(settings, 3)
    flat = {f"{part}.{name}": value for part, net in named.items() for name, value in net.state_dict().items()}
    G, D = named["G"].state_dict(), named["D"].state_dict()
    save_file(flat, tmp_path / "all.safetensors")
    save_file(G, tmp_path / "one.safetensors")
    torch.save({"g_ema": G, "d": D, "iteration": 3}, tmp_path / "both.pt")
    torch.save({f"module.{name}": value for name, value in G.items()}, tmp_path / "ddp.pth")
    for name, parts in (
        ("all.safetensors", {"G", "D", "G_ema"}),
        ("one.safetensors", {"G"}),
        ("both.pt", {"G_ema", "D"}),
        ("ddp.pth", {"G"}),
    ):
        read = read_source(str(tmp_path / name))
        assert read.nets.keys() == parts
        part = read.nets["G" if "G" in parts else "G_ema"]
        assert part.keys() == G.keys()
        assert all(torch.equal(part[key], G[key]) for key in G)
        assert len(str(read.origin["sha256"])) == 64


class Evil:
    def __reduce__(self) -> tuple:
        return exec, ("raise SystemExit('code of a file ran')",)


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    torch.save({"G": Evil()}, tmp_path / "evil.pt")
    torch.save({"epoch": 3}, tmp_path / "epoch.pt")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    torch.save({"a": torch.tensor([1.0, float("nan")])}, tmp_path / "nan.pt")
    (tmp_path / "text.safetensors").write_text("no tensors")
    (tmp_path / "net.pkl").write_bytes(b"x")
    for name, error, message in (
        ("evil.pt", DataError, "not read as plain tensors, since anything else could run code"),
        ("epoch.pt", DataError, "epoch is a int, not a tensor"),
        ("list.pt", DataError, "it holds a list, not tensors by name"),
        ("nan.pt", DataError, "a is not finite"),
        ("text.safetensors", DataError, "no tensors in it"),
        ("net.pkl", ConfigError, "runs code when it is read"),
        ("nothing.pt", DataError, "no such file or folder"),
    ):
        with pytest.raises(error, match=message):
            read_source(str(tmp_path / name))


def test_a_run_starts_from_another_and_resumes_without_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    digits, data = str(ROOT / "distgan" / "data" / "digits.npz"), str(tmp_path / "data")
    assert main(["pack", digits, data, "--resolution", "16"]) == 0
    small = ["model.G.base_channels=8", "model.D.base_channels=8", "train.batch=16", "data.resolution=16"]
    train = ["train", str(ROOT / "configs" / "digits32.yaml"), f"data.shards={data}", *small]
    assert main([*train, f"run.dir={tmp_path}/a", "train.images=32"]) == 0
    new = [*train, f"run.dir={tmp_path}/b", f"init.source={tmp_path}/a", "optim.D.freeze=2"]
    capsys.readouterr()
    assert main(["check", *new[1:], "train.images=32"]) == 0
    assert "init: G_ema: 7 tensors taken" in capsys.readouterr().out
    assert main([*new, "train.images=32"]) == 0
    record = json.loads((tmp_path / "b" / "init.json").read_text())
    assert record["origin"]["checkpoint"] == "step-000000000032"
    last = [checkpoint.load(next((tmp_path / name / "checkpoints").glob("step-*")))[0] for name in "ab"]
    moved = {name for name, value in last[1]["D"].items() if not torch.equal(value, last[0]["D"][name])}
    assert not moved & {"stages.0.0.weight", "stages.0.0.bias", "stages.1.0.weight", "stages.1.0.bias"}
    assert moved
    assert main(["report", f"{tmp_path}/b"]) == 0
    assert "Started from other weights" in (tmp_path / "b" / "report.html").read_text()
    (tmp_path / "a").rename(tmp_path / "gone")
    assert main([*new, "train.images=48"]) == 0  # resumed: its source is not read again
    capsys.readouterr()
    assert main([*train, f"run.dir={tmp_path}/c", f"init.source={tmp_path}/a"]) in (2, 3)
    assert main([*train, f"run.dir={tmp_path}/c", f"init.source={tmp_path}/c"]) == 2
    assert "is run.dir itself" in capsys.readouterr().err
