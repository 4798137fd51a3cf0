"""Runs that start from other weights: what is taken, what is made of it, what is refused."""

import fcntl
import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from processes import ROOT
from processes import train as train_ranks
from runs import train, weights
from safetensors.torch import save_file
from torch import Tensor, nn

from distgan.cli.main import main
from distgan.config.load import load
from distgan.config.schema import Config, image_spec
from distgan.errors import ConfigError, DataError
from distgan.inference.trained_generator import Spec
from distgan.inference.weight_source import WeightSource, read_source
from distgan.models.r3gan import Downsample, Upsample
from distgan.storage import checkpoint, checkpoint_folder
from distgan.training import transfer
from distgan.training.factory import build_nets
from distgan.training.transfer import Fitted, Target

NETS = {"dcgan": "digits32", "r3gan": "r3gan-cifar10-small", "stylegan2": "stylegan2-small"}


def configured(*settings: str, family: str = "dcgan") -> Config:
    small = ("model.G.base_channels=8", "model.D.base_channels=8") if family == "dcgan" else ()
    more = ("data.shards=x", "data.resolution=16", "model.conditional=true", "model.z_dim=8", "run.dir=y")
    return load(str(ROOT / "configs" / f"{NETS[family]}.yaml"), [*more, *small, *settings])


def nets(settings: Config, num_classes: int, seed: int = 0) -> dict[str, nn.Module]:
    settings.train.seed = seed
    G, D = build_nets(settings, num_classes)
    return {"G": G, "D": D}


def source(named: dict[str, nn.Module], settings: Config, num: int, names: list[str] | None = None) -> WeightSource:
    weights = {part: {k: v.clone() for k, v in net.state_dict().items()} for part, net in named.items()}
    image = image_spec(settings.data)
    size = [image.height, image.width]
    spec = Spec(settings.model.family, size, 8, num, channels=image.channels, class_names=names or [])
    return WeightSource(Path("there"), weights, spec, "0" * 64)


def start(
    now: dict[str, nn.Module], settings: Config, given: WeightSource, num: int, names: list[str], *classes: str
) -> dict[str, Fitted]:
    """Give networks the weights of a source, as a run does."""
    target = Target(settings.model.family, image_spec(settings.data), num, names, [])
    transfer.require_fitting(given, target)
    matched = transfer.match_classes(list(classes), given, target)
    found = {}
    for part, net in now.items():
        found[part] = transfer.fit(net, given.nets[part], given, target, is_D=part == "D", classes=matched)
        transfer.load(net, found[part])
    return found


def out(net: nn.Module, labels: list[int]) -> Tensor:
    z = torch.linspace(-1, 1, 8).expand(len(labels), 8)
    return net(z, torch.tensor(labels))


def test_shared_classes_make_the_same_images_and_others_begin_at_the_mean() -> None:
    settings = configured()
    before, now = nets(settings, 3), nets(settings, 4, seed=1)
    fits = start(now, settings, source(before, settings, 3, ["a", "b", "c"]), 4, ["b", "x", "c", "y"], "y=a")
    assert torch.equal(out(now["G"], [0, 2, 3]), out(before["G"], [1, 2, 0]))
    table = before["G"].embed.weight
    torch.testing.assert_close(now["G"].embed.weight[1], table.mean(0))
    assert [(part, [*fit.made], fit.new, fit.left) for part, fit in fits.items()] == [
        (part, ["embed.weight"], [], []) for part in ("G", "D")
    ]


@pytest.mark.parametrize(("names", "same"), [(["a", "b", "c"], True), (["c", "b", "a"], False), ([], True)])
def test_as_many_classes_are_the_same_ones_unless_names_say_otherwise(names: list[str], same: bool) -> None:
    settings = configured()
    before, now = nets(settings, 3), nets(settings, 3, seed=1)
    start(now, settings, source(before, settings, 3, ["a", "b", "c"]), 3, names)
    assert torch.equal(out(now["G"], [0, 1]), out(before["G"], [0 if same else 2, 1]))


def test_classes_are_given_to_networks_that_had_none() -> None:
    settings, plain = configured(), configured("model.conditional=false")
    before, now = nets(plain, 0), nets(settings, 3, seed=1)
    fits = start(now, settings, source(before, plain, 0), 3, [])
    z = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    for labels in ([0, 1], [2, 2]):
        torch.testing.assert_close(now["G"](z, torch.tensor(labels)), before["G"](z, None))
    assert fits["G"].made == {"layers.0.0.weight": "zeros for the class"}


def test_gray_and_colors_begin_as_the_same_function() -> None:
    gray, colors = configured("data.channels=1"), configured()
    images = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    labels = torch.tensor([0, 2])
    before, now = nets(gray, 3), nets(colors, 3, seed=1)
    start(now, colors, source(before, gray, 3), 3, [])
    torch.testing.assert_close(out(now["G"], [0, 1]), out(before["G"], [0, 1]).expand(-1, 3, -1, -1))
    torch.testing.assert_close(now["D"](images.expand(-1, 3, -1, -1), labels), before["D"](images, labels))

    before, now = nets(colors, 3), nets(gray, 3, seed=1)
    start(now, gray, source(before, colors, 3), 3, [])
    torch.testing.assert_close(now["D"](images, labels), before["D"](images.expand(-1, 3, -1, -1), labels))
    last = before["G"].layers[-1][0]
    torch.testing.assert_close(now["G"].layers[-1][0].weight, last.weight.mean(1, keepdim=True))
    torch.testing.assert_close(now["G"].layers[-1][0].bias, last.bias.mean(0, keepdim=True))


def test_r3gan_grows_and_makes_the_same_images_at_first() -> None:
    small, large = configured(family="r3gan"), configured("data.resolution=32", family="r3gan")
    before, now = nets(small, 3), nets(large, 3, seed=1)
    for net in before.values():  # as after training: residual branches do something
        for weight in net.parameters():
            nn.init.normal_(weight, std=0.2, generator=torch.Generator().manual_seed(weight.numel()))
    start(now, large, source(before, small, 3), 3, [])
    torch.testing.assert_close(out(now["G"], [0, 2]), Upsample(3)(out(before["G"], [0, 2])), rtol=1e-4, atol=1e-4)
    images, labels = out(now["G"], [0, 1]).detach(), torch.tensor([0, 1])
    torch.testing.assert_close(
        now["D"](images, labels), before["D"](Downsample(3)(images), labels), rtol=1e-4, atol=1e-3
    )


def test_stylegan2_starts_as_the_same_function_though_its_scales_are_of_its_inputs() -> None:
    small = ("model.G.w_dim=8", "model.G.channel_base=64", "model.D.channel_base=64")
    gray, colors = (configured(*small, f"data.channels={num}", family="stylegan2") for num in (1, 3))
    before, now = nets(gray, 3), nets(colors, 4, seed=1)
    start(now, colors, source(before, gray, 3, ["a", "b", "c"]), 4, ["c", "x", "a", "b"])
    images = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.testing.assert_close(out(now["G"], [0, 2]), out(before["G"], [2, 0]).expand(-1, 3, -1, -1))
    torch.testing.assert_close(
        now["D"](images.expand(-1, 3, -1, -1), torch.tensor([0, 2])), before["D"](images, torch.tensor([2, 0]))
    )


def test_what_other_networks_hold_is_refused_or_told() -> None:
    settings = configured()
    before = nets(settings, 3)
    given = source(before, settings, 3)
    wide = configured("model.G.base_channels=16", "model.D.base_channels=16")
    fits = start(nets(wide, 3), wide, given, 3, [])  # some are of the same shape
    assert "layers.0.0.weight" in fits["G"].new and "layers.0.0.weight" in fits["G"].left
    others = {part: {f"other.{name}": value for name, value in net.items()} for part, net in given.nets.items()}
    for wrong, now, message in (
        (given, configured(family="r3gan"), "networks are of the family dcgan, and model.family=r3gan"),
        (given, configured("data.resolution=32"), "Only r3gan grows; set data.resolution=16"),
        (WeightSource(Path("there"), others, None, ""), settings, "none of its 7 tensors is of the generator"),
    ):
        with pytest.raises((ConfigError, DataError), match=message):
            start(nets(settings, 3), now, wrong, 3, [])
    with pytest.raises(ConfigError, match="there is no class 'x'"):
        start(nets(settings, 3), settings, given, 3, [], "x=1")


def test_files_of_tensors_are_read_in_the_usual_forms(tmp_path: Path) -> None:
    settings = configured()
    named = nets(settings, 3)
    G, D = named["G"].state_dict(), named["D"].state_dict()
    flat = {f"{part}.{name}": value for part, net in named.items() for name, value in net.state_dict().items()}
    save_file(flat, tmp_path / "all.safetensors")
    save_file(G, tmp_path / "one.safetensors")
    torch.save({"g_ema": G, "d": D, "iteration": 3}, tmp_path / "both.pt")
    torch.save(G, tmp_path / "one.pth")
    for name, parts in (("all.safetensors", "G D"), ("one.safetensors", ""), ("both.pt", "G_ema D"), ("one.pth", "")):
        read = read_source(str(tmp_path / name), "run")
        assert sorted(read.nets) == sorted(parts.split() or [""])
        part = read.nets[parts.split(" ")[0]]
        assert part.keys() == G.keys()
        assert all(torch.equal(part[key], G[key]) for key in G)
        assert len(read.sha256) == 64


class Evil:
    def __reduce__(self) -> tuple:
        return exec, ("raise SystemExit('code of a file ran')",)


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    torch.save({"G": Evil()}, tmp_path / "evil.pt")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    torch.save({"weights": {"a": torch.zeros(3)}, "lr": 1}, tmp_path / "foreign.pt")
    torch.save({"a": torch.tensor([1.0, float("nan")])}, tmp_path / "nan.pt")
    torch.save({"a": torch.zeros(1).expand(2**30)}, tmp_path / "huge.pt")
    with zipfile.ZipFile(tmp_path / "nan.pt") as whole, zipfile.ZipFile(tmp_path / "zip.pt", "w", 8) as packed:
        for entry in whole.infolist():
            packed.writestr(entry.filename, whole.read(entry))
    (tmp_path / "old.pt").write_bytes(b"\x80\x02.")
    (tmp_path / "text.safetensors").write_text("no tensors")
    (tmp_path / "net.pkl").write_bytes(b"x")
    for name, message in (
        ("evil.pt", "to load that would run code"),
        ("list.pt", "it holds a list, not a state dict"),
        ("foreign.pt", "no state dict in it, only weights, lr"),
        ("nan.pt", "a is not finite"),
        ("huge.pt", "without as many numbers"),
        ("zip.pt", "compressed, which torch.save never does"),
        ("old.pt", "other pickles are not opened, since they run code"),
        ("text.safetensors", "no tensors in it"),
        ("net.pkl", "a pickle runs code where it is opened"),
        ("nothing.pt", "no such file"),
        ("nothing", "no such file or folder"),
    ):
        with pytest.raises(DataError, match=message):
            read_source(str(tmp_path / name), "run")


def test_a_run_starts_from_another_and_resumes_without_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    digits, data = str(ROOT / "distgan" / "data" / "digits.npz"), str(tmp_path / "data")
    assert main(["pack", digits, data, "--resolution", "16"]) == 0
    small = ["model.G.base_channels=8", "model.D.base_channels=8", "train.batch=16", "data.resolution=16"]
    train = ["train", str(ROOT / "configs" / "digits32.yaml"), f"data.shards={data}", *small]
    assert main([*train, f"run.dir={tmp_path}/a", "train.images=32"]) == 0
    new = [*train, f"run.dir={tmp_path}/b", f"init.from={tmp_path}/a", "optim.D.freeze=2"]
    capsys.readouterr()
    assert main(["check", *new[1:], "train.images=32"]) == 0
    assert "init: G_ema from G_ema: " in capsys.readouterr().out
    assert main([*new, "train.images=32"]) == 0
    record = json.loads((tmp_path / "b" / "init.json").read_text())
    assert record["from"].endswith("/a/checkpoints/step-000000000032")
    assert record["nets"]["D"]["taken"] == 8
    last = [checkpoint.load(next((tmp_path / name / "checkpoints").glob("step-*")))[0] for name in "ab"]
    moved = {name for name, value in last[1]["D"].items() if not torch.equal(value, last[0]["D"][name])}
    assert not moved & {"stages.0.0.weight", "stages.0.0.bias", "stages.1.0.weight", "stages.1.0.bias"}
    assert moved
    assert main(["report", f"{tmp_path}/b"]) == 0
    assert record["sha256"] in (tmp_path / "b" / "report.html").read_text()
    (tmp_path / "a").rename(tmp_path / "gone")
    assert main([*new, "train.images=48"]) == 0  # resumed: its source is not read again
    capsys.readouterr()
    assert main([*train, f"run.dir={tmp_path}/c", f"init.from={tmp_path}/a"]) == 3
    assert main([*train, f"run.dir={tmp_path}/c", f"init.from={tmp_path}/c"]) == 2
    assert "this is the run itself" in capsys.readouterr().err


def newest(run: Path) -> Path:
    return checkpoint_folder.newest_first(run / "checkpoints")[0]


@pytest.fixture
def trained(tmp_path: Path, config: Path) -> Path:
    assert train(config, tmp_path / "source", "train.images=24", "train.seed=9") == 0
    return tmp_path / "source"


def test_a_run_starts_at_zero_from_each_form_and_resumes_without_it(
    tmp_path: Path, config: Path, trained: Path
) -> None:
    tensors = checkpoint.load(newest(trained))[0]
    torch.save({name: tensors[name] for name in ("G", "D", "G_ema")} | {"args": {"lr": 1}}, tmp_path / "all.pt")
    assert main(["export", str(trained), str(tmp_path / "export")]) == 0
    whole = tmp_path / "whole"
    assert train(config, whole, "train.images=24", f"init.from={trained}") == 0
    for number, form in enumerate((newest(trained), tmp_path / "all.pt")):
        run = tmp_path / f"run{number}"
        assert train(config, run, "train.images=24", f"init.from={form}") == 0
        assert weights(run) == weights(whole)
    for number, form in enumerate((newest(trained) / "D.safetensors", tmp_path / "export")):
        run = tmp_path / f"part{number}"
        assert train(config, run, "train.images=12", f"init.from={form}") == 0
        assert "starts new" in (run / "log.txt").read_text()
    broken, own = tmp_path / "broken", f"init.from={trained}"
    assert train(config, broken, "train.images=12", own) == 0
    record = json.loads((broken / "init.json").read_text())
    assert len(record["sha256"]) == 64
    assert record["from"] == str(newest(trained))
    shutil.rmtree(trained)
    assert main(["check", str(config), f"run.dir={broken}", own]) == 0
    assert train(config, broken, "train.images=24", own) == 0
    assert weights(broken) == weights(whole)
    assert main(["report", str(broken)]) == 0
    assert record["sha256"] in (broken / "report.html").read_text()


@pytest.mark.multi
@pytest.mark.parametrize("sync", ["ddp", "flat"])
def test_all_ranks_start_from_what_the_first_one_read(tmp_path: Path, config: Path, trained: Path, sync: str) -> None:
    """A step with a learning rate of zero leaves the weights of the source, on two ranks as on one."""
    run, again = tmp_path / "two", ["optim.G.lr=0", "optim.D.lr=0", "ema.half_life=0", "train.images=12"]
    own = [f"run.dir={run}", f"init.from={trained}", f"train.grad_sync={sync}"]
    train_ranks(2, tmp_path / "log", str(config), *again, *own)
    of_source, of_run = (checkpoint.load(newest(one))[0] for one in (trained, run))
    for name in ("G", "D"):
        assert all(torch.equal(of_run[name][key], value) for key, value in of_source[name].items())


def test_a_run_that_is_being_trained_is_no_source_but_its_checkpoints_are(tmp_path: Path, trained: Path) -> None:
    with open(trained / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="being trained now"):
            read_source(str(trained), str(tmp_path / "new"))
        assert isinstance(read_source(str(newest(trained)), str(tmp_path / "new")), WeightSource)


def test_going_on_and_starting_from_weights_exclude_one_another(config: Path, trained: Path) -> None:
    with pytest.raises(ConfigError, match="goes on with a run"):
        load(str(config), [f"run.resume={trained}", f"init.from={trained}"])
    with pytest.raises(ConfigError, match="none of G, D, G_ema"):
        load(str(config), [f"init.from={trained}", "init.parts=[E]"])
