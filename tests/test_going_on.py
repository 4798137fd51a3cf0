"""Going on from a checkpoint: what does not fit is refused before anything is written, changes are told and kept."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import make_digits, untrained, write_config

from distgan import checkpoint
from distgan.cli import main
from distgan.errors import DataError


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_digits(tmp_path_factory.mktemp("data") / "digits")


@pytest.fixture
def config(tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    return str(write_config(tmp_path / "tiny.yaml", digits))


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
    assert "changed since then: optim.G.lr: [0.001] before, [0.0005] now" in log
    assert "changed since then: run." not in log
    starts = json.loads((run / "environment.json").read_text())["starts"]
    assert starts[-1]["changes"]["optim.G.lr"] == [[0.001], [0.0005]]
    assert "allow_config_change: false" in (run / "config.yaml").read_text()
    capsys.readouterr()
    assert main(["train", str(run), "optim.G.lr=1e-4", "train.images=72"]) == 2  # it was allowed for one start
    assert "optim.G.lr was [0.0005], is [0.0001]" in capsys.readouterr().err


def test_a_run_from_elsewhere_that_has_nothing_left_is_refused_before_a_folder_is_made(
    tmp_path: Path, config: str, capsys: pytest.CaptureFixture
) -> None:
    elsewhere, run = untrained(tmp_path / "elsewhere"), tmp_path / "run"
    for command in ("check", "train"):
        assert main([command, config, f"run.dir={run}", f"run.resume={elsewhere}", "train.images=1000"]) == 2
        assert "has seen 1,000 images" in capsys.readouterr().err
        assert not run.exists()


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
        checkpoint.find(run / "best")
    folder = run / "checkpoints"
    checkpoint.note_best(folder, {"checkpoint": "step-000000001000", "metric": "fd", "value": 1.0})
    for path, why in ((run, "the newest good one"), (run / "best", "the best one"), (folder / "best", "the best one")):
        caplog.clear()
        assert (
            main(
                [
                    "generate",
                    str(path),
                    "--num",
                    "1",
                    "--out",
                    str(tmp_path / f"{why}-{path.parent.name}.png"),
                    "--as",
                    "grid",
                ]
            )
            == 0
        )
        assert f"step-000000001000 ({why})" in caplog.text


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
