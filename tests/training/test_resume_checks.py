"""Going on from a checkpoint: what does not fit is refused before anything is written, changes are told and kept."""

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import make_digits, train, untrained, weights, write_config

from distgan.cli.main import main
from distgan.config.schema import Config
from distgan.config.schema import Optimizer as OptimizerSettings
from distgan.distributed.process_group import World
from distgan.errors import DataError
from distgan.evaluation.target import open_target
from distgan.models import MODELS
from distgan.storage import checkpoint, checkpoint_folder
from distgan.training import memory_format, optimizers, recovery
from distgan.training.checkpointer import load_optimizer


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_digits(tmp_path_factory.mktemp("data") / "digits")


@pytest.fixture
def config(tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    return str(write_config(tmp_path / "tiny.yaml", digits))


def test_a_run_keeps_its_memory_format_and_reads_each_checkpoint_once(
    tmp_path: Path, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for run, images in ((whole, 48), (broken, 24), (broken, 48)):
        assert train(config, run, f"train.images={images}", "train.memory_format=channels_last") == 0
    assert weights(whole) == weights(broken)
    newest, log = checkpoint_folder.newest_first(broken / "checkpoints")[0], broken / "log.txt"
    assert recovery.saved_memory_format(newest) == "channels_last"
    assert "memory format" not in log.read_text()

    tensors, state = checkpoint.load(newest)
    del state["memory format"]  # as an earlier version wrote it
    checkpoint.save(broken / "checkpoints", 48, tensors, state)
    assert recovery.saved_memory_format(newest) == "contiguous"
    shutil.copytree(newest, newest.with_name("step-000000000060"))
    (newest.with_name("step-000000000060") / "G.safetensors").write_bytes(b"")
    read: list[str] = []
    verify = checkpoint_folder.verify
    monkeypatch.setattr(checkpoint_folder, "verify", lambda path: (read.append(path.name), verify(path)))
    formats = []

    def as_on_a_gpu(config: Config, world: World, saved: Callable[[], str], *_: object) -> str:
        formats.append(saved())
        return "channels_last"

    monkeypatch.setattr(memory_format, "choose", as_on_a_gpu)
    assert train(config, broken, "train.images=72") == 0
    assert (formats, read) == (["contiguous"], ["step-000000000060", "step-000000000048"])
    assert log.read_text().count("skipping a corrupt checkpoint") == 1
    assert "memory format: contiguous before, channels_last now" in log.read_text()


def test_another_number_of_classes_is_refused_by_check_and_train(
    tmp_path: Path, config: str, capsys: pytest.CaptureFixture
) -> None:
    run = tmp_path / "run"
    own = [f"run.dir={run}", "run.allow_data_change=true", "run.allow_config_change=true"]
    assert main(["train", config, *own, "train.images=24"]) == 0
    red = np.zeros((16, 16, 3), np.uint8)
    files = {
        f"{i:03d}.{part}": data for i in range(24) for part, data in (("png", png(red)), ("cls", str(i % 3).encode()))
    }
    shards = write_shards(tmp_path / "other", files)
    capsys.readouterr()
    for command in ("check", "train"):
        assert main([command, config, *own, "train.images=48", f"data.shards={shards}"]) == 2
        told = capsys.readouterr().err
        assert "it knows 10 classes, these shards give 3 classes" in told, told


def test_changed_settings_are_told_and_kept_and_allowed_once(
    tmp_path: Path, config: str, capsys: pytest.CaptureFixture
) -> None:
    run = tmp_path / "run"
    first = ["train", config, f"run.dir={run}", "train.images=24"]
    assert main(first) == 0
    changed = ["optim.G.lr=5e-4", "train.images=48"]
    assert main(["train", str(run), *changed]) == 2  # not without permission
    assert main(["train", str(run), *changed, "run.allow_config_change=true"]) == 0
    log = (run / "log.txt").read_text()
    assert "changed since the checkpoint: optim.G.lr: [0.001] -> [0.0005]" in log
    assert "changed since the checkpoint: run." not in log
    starts = json.loads((run / "environment.json").read_text())["starts"]
    assert starts[-1]["changes"]["optim.G.lr"] == [[0.001], [0.0005]]
    assert "allow_config_change: false" in (run / "config.yaml").read_text()
    capsys.readouterr()
    assert main(["train", str(run), "optim.G.lr=1e-4", "train.images=72"]) == 2  # it was allowed for one start
    assert "optim.G.lr was [0.0005], is [0.0001]" in capsys.readouterr().err


def test_a_run_from_elsewhere_that_has_nothing_left_is_refused_before_a_folder_is_made(
    tmp_path: Path, config: str, capsys: pytest.CaptureFixture
) -> None:
    elsewhere, run = tmp_path / "elsewhere", tmp_path / "run"
    assert main(["train", config, f"run.dir={elsewhere}", "train.images=24"]) == 0
    own = [config, f"run.dir={run}", f"run.resume={elsewhere}"]
    short = (
        ("train.images=24", "has seen 24 images, which train.images=24 counts: nothing would be trained"),
        ("train.max_minutes=1e-6", "which train.max_minutes=1e-06 counts: nothing would be trained"),
    )
    for setting, reason in short:
        for command in ("check", "train"):
            capsys.readouterr()
            assert main([command, *own, setting]) == 2
            assert reason in capsys.readouterr().err
            assert not run.exists()
    (elsewhere / "checkpoints" / "step-000000000024" / "state.json").unlink()
    named = elsewhere / "checkpoints" / "step-000000000024"
    for command in ("check", "train"):
        assert main([command, config, f"run.dir={run}", f"run.resume={named}"]) == 3
        assert "state.json is missing" in capsys.readouterr().err
        assert not run.exists()


def test_weights_of_another_revision_are_refused_by_check_and_train(
    tmp_path: Path, config: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    assert main(["train", config, f"run.dir={run}", "train.images=24"]) == 0
    later = MODELS["dcgan"].revision + 1
    monkeypatch.setitem(MODELS, "dcgan", MODELS["dcgan"]._replace(revision=later, revised="its filter is another one"))
    for command in ("check", "train"):
        capsys.readouterr()
        assert main([command, str(run), f"run.dir={run}", "train.images=48"]) == 3
        assert "since then, its filter is another one" in capsys.readouterr().err


def test_other_data_at_the_same_address_are_told(tmp_path: Path, config: str) -> None:
    run, shards = tmp_path / "run", make_digits(tmp_path / "moving")
    first = ["train", config, f"run.dir={run}", f"data.shards={shards}"]
    assert main([*first, "train.images=24"]) == 0
    shutil.rmtree(shards)
    make_digits(shards, shard_mb=0.2)
    assert main([*first, "train.images=48", "run.allow_data_change=true"]) == 0
    assert "changed since the checkpoint: data: '" in (run / "log.txt").read_text()
    assert "data" in json.loads((run / "environment.json").read_text())["starts"][-1]["changes"]


KINDS = [(name, momentum) for name in ("adam", "adamw", "sgd", "rmsprop") for momentum in (0.0, 0.9)]


def stepped(settings: OptimizerSettings, num: int = 1) -> tuple[torch.optim.Optimizer, torch.nn.Module]:
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 2)
    optimizer = optimizers.build_optimizer(settings, net)
    for _ in range(num):
        optimizer.zero_grad()
        net(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()
    return optimizer, net


@pytest.mark.parametrize(("name", "momentum"), KINDS)
def test_what_an_optimizer_keeps_is_known(name: str, momentum: float) -> None:
    settings = OptimizerSettings(name=name, lr=[0.1], betas=(momentum, 0.9))
    kept = checkpoint.optimizer_tensors(*stepped(settings))
    assert {key.rpartition("/")[2] for key in kept} == optimizers.optimizer_slots(settings, torch.nn.Linear(3, 2))


@pytest.mark.parametrize(("name", "momentum"), KINDS)
def test_an_optimizer_of_another_kind_begins_anew(name: str, momentum: float) -> None:
    """Whatever the checkpoint holds, the first step is that of a fresh optimizer, unless both keep the same."""
    settings = OptimizerSettings(name=name, lr=[0.1], betas=(momentum, 0.9))
    for other, its_momentum in KINDS:
        before = OptimizerSettings(name=other, lr=[0.1], betas=(its_momentum, 0.9))
        saved = checkpoint.optimizer_tensors(*stepped(before))
        for found in (saved, {}):
            going_on, net = stepped(settings)
            goes_on = load_optimizer("G", settings, going_on, net, found)
            now, then = (optimizers.optimizer_slots(one, net) for one in (settings, before))
            fits = now == (then if found else set())
            assert goes_on == fits
            if fits:
                continue
            fresh, twin = stepped(settings, 0)
            twin.load_state_dict(net.state_dict())
            for optimizer, one in ((going_on, net), (fresh, twin)):
                optimizer.zero_grad()
                one(torch.ones(4, 3)).square().sum().backward()
                optimizer.step()
            assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters()))


def test_a_run_goes_on_with_another_optimizer(tmp_path: Path, config: str) -> None:
    run = tmp_path / "run"
    assert main(["train", config, f"run.dir={run}", "train.images=24"]) == 0
    assert main(["train", str(run), "train.images=48", "optim.D.name=rmsprop", "run.allow_config_change=true"]) == 0
    told = (run / "log.txt").read_text()
    assert "of D's optimizer, which optim.D does not use: the optimizer starts from zero" in told


def test_an_exported_folder_is_said_to_be_one(tmp_path: Path, config: str, capsys: pytest.CaptureFixture) -> None:
    out, run = tmp_path / "exported", tmp_path / "run"
    assert main(["export", str(untrained(tmp_path / "elsewhere")), str(out)]) == 0
    for command in ("check", "train"):
        assert main([command, config, f"run.dir={run}", f"run.resume={out}"]) == 3
        assert "what `distgan export` wrote: a generator alone" in capsys.readouterr().err
        assert not run.exists()


def test_commands_say_which_checkpoint_they_take_and_take_the_best(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = untrained(tmp_path / "run")
    with pytest.raises(DataError, match="no best checkpoint"):
        checkpoint_folder.find(run / "best")
    folder = run / "checkpoints"
    checkpoint_folder.record_best(folder, {"checkpoint": "step-000000001000", "metric": "fd", "value": 1.0})
    called_best = untrained(tmp_path / "best")
    asked = (
        (run, "the newest good one"),
        (run / "best", "the best one"),
        (folder / "best", "the best one"),
        (folder / "step-000000001000", "named"),
        (called_best, "the newest good one"),
    )
    for number, (path, why) in enumerate(asked):
        told = f"step-000000001000, after 1,000 images ({why})"
        for command in (
            ["generate", str(path), "--num", "8", "--keep-best", "0.5", "--out", str(tmp_path / f"made-{number}")],
            ["export", str(path), str(tmp_path / f"exported-{number}")],
        ):
            caplog.clear()
            assert main(command) == 0
            assert caplog.text.count("checkpoint: ") == caplog.text.count(told) == 1, caplog.text
        caplog.clear()
        open_target(str(path), ["eval.reference=none.npz"], torch.device("cpu"))
        assert caplog.text.count("checkpoint: ") == caplog.text.count(told) == 1, caplog.text


def test_a_damaged_checkpoint_that_commands_pass_over_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = untrained(tmp_path / "run")
    damaged = run / "checkpoints" / "step-000000002000"
    shutil.copytree(run / "checkpoints" / "step-000000001000", damaged)
    (damaged / "G_ema.safetensors").write_bytes(b"cut")
    assert main(["export", str(run), str(tmp_path / "out")]) == 0
    assert "skipping a corrupt checkpoint: step-000000002000: G_ema.safetensors" in caplog.text
    assert "step-000000001000, after 1,000 images" in caplog.text


def test_a_number_of_images_is_refused_for_pictures_that_exist(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(png(np.full((16, 16, 3), 80 * number, np.uint8)))
    asked = ["evaluate", str(folder), "eval.reference=none.npz", "eval.extractor=toy", "eval.num_images=2"]
    assert main(asked) == 2
    assert "has 3 images, and all of them are measured" in capsys.readouterr().err


def test_images_that_cannot_be_used_fail_the_check(tmp_path: Path, config: str, capsys: pytest.CaptureFixture) -> None:
    file = io.BytesIO()
    Image.fromarray(np.zeros((16, 16), np.float32), "F").save(file, "tiff")
    parts = {f"{i:03d}.{part}": data for i in range(24) for part, data in (("tiff", file.getvalue()), ("cls", b"0"))}
    shards = write_shards(tmp_path / "floats", parts)
    assert main(["check", config, f"data.shards={shards}"]) == 3
    assert "float pixels" in capsys.readouterr().err


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def write_shards(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    with tarfile.open(folder / "000.tar", "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return folder
