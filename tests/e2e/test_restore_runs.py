"""Runs that restore, from shards to grids, measures and files."""

import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import train as train_ranks
from runs import make_digits, metrics, train, weights, write_config
from shards import image_bytes

from distgan import load_generator
from distgan.cli.main import main
from distgan.data.dataset import Dataset
from distgan.data.decode import DecodeOptions
from distgan.data.encode import PackOptions
from distgan.data.pack import pack
from distgan.data.pack_entry import ListingOptions
from distgan.data.shard_urls import find_shards
from distgan.data.shuffle import held_out
from distgan.data.synthetic import write_shards
from distgan.errors import ConfigError
from distgan.image_spec import ImageSpec, square
from distgan.inference.restore import RestoreOptions, restore
from distgan.storage.byte_ranges import ByteRangeReader
from distgan.transforms.image_values import to_pixels

OWN = [
    "model={family: restore, conditional: false}",
    "model={G: {base_channels: 8, max_channels: 16, residual: true}, D: {base_channels: 8}}",
    "loss.name=non_saturating",
    "restore={pixel_weight: 10, degrade: [{noise: [10, 40]}, {box: 0.3, p: 0.5}]}",
    "data.holdout=70",
]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_digits(tmp_path_factory.mktemp("data") / "digits")


@pytest.fixture
def config(tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    path = write_config(tmp_path / "tiny.yaml", digits)
    path.write_text(
        path.read_text().replace(
            "  G: {base_channels: 8, max_channels: 16}\n  D: {base_channels: 8, max_channels: 16}\n", ""
        )
    )
    return path


def measured(run: Path) -> list[dict[str, float]]:
    """What was measured of restored pictures, whenever some were drawn; no line of metrics is made for it."""
    assert not [row for row in metrics(run) if "Restoration/psnr" in row]
    rows = [json.loads(line) for line in (run / "evals.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if "Rest" in k} for row in rows]


def test_a_run_shows_and_measures_pictures_that_it_never_trained_on(tmp_path: Path, config: Path, digits: Path) -> None:
    own = [*OWN, "sample={every: 600, rows: 2, columns: 6}", "data.audit=true", "train.images=1.8k"]
    assert train(config, tmp_path / "run", *own) == 0
    rows = measured(tmp_path / "run")
    assert len(rows) == 3
    for row in rows:
        assert set(row) == {f"Restoration/{kind}{of}" for kind in ("psnr", "ssim") for of in ("", "_degraded")}
        assert row["Restoration/psnr_degraded"] == rows[0]["Restoration/psnr_degraded"]  # the same each time
        assert 10 < row["Restoration/psnr_degraded"] < 30
        assert 0 < row["Restoration/ssim_degraded"] < 1
    assert rows[2]["Restoration/psnr"] > rows[0]["Restoration/psnr"]
    # Two rows of two triples: degraded, restored and clean held-out pictures, spread over the set.
    grid = np.asarray(Image.open(next((tmp_path / "run" / "samples").glob("fakes-*1.800.png"))))
    assert grid.shape == (2 * 16, 2 * 3 * 16, 3)
    data = Dataset(find_shards(str(digits)), ByteRangeReader())
    for number, (row, column) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        clean = grid[16 * row : 16 * row + 16, 48 * column + 32 : 48 * column + 48]
        held = held_out(data.num_samples, 70)[number * 70 // 4]
        assert np.array_equal(clean, data.read(int(held), DecodeOptions(square(16))))
    keys = {line.split('"key": ')[1] for line in (tmp_path / "run" / "audit" / "rank0.jsonl").read_text().splitlines()}
    assert len(keys) == 1797 - 70  # the second epoch has begun
    assert not keys & {f'"{n:08d}"}}' for n in held_out(1797, 70)}


@pytest.mark.multi
def test_two_ranks_measure_what_one_does_and_go_on_where_it_stopped(tmp_path: Path, config: Path) -> None:
    """Held-out pictures come in chunks; that of the second rank is the smaller one."""
    common = [str(config), *OWN, "sample={every: 120, rows: 1, columns: 3}"]
    train_ranks(1, tmp_path / "log", *common, f"run.dir={tmp_path / 'run'}", "train.images=120")
    for world in (1, 2):
        run = tmp_path / f"run{world}"
        shutil.copytree(tmp_path / "run", run)
        train_ranks(world, tmp_path / f"log{world}", *common, f"run.dir={run}", "train.images=240")
    one, two = (measured(tmp_path / f"run{world}") for world in (1, 2))
    assert one[0] == two[0]
    for key, value in one[1].items():
        assert two[1][key] == pytest.approx(value, rel=1e-5), key
        assert two[1][key] == value or "degraded" not in key


def test_pairs_train_like_degraded_pictures_and_resume(tmp_path: Path, config: Path, digits: Path) -> None:
    data = Dataset(find_shards(str(digits)), ByteRangeReader())
    for n in range(80):
        clean = data.read(n, DecodeOptions(square(16)))
        for side, pixels in (("clean", clean), ("degraded", clean // 2 + 40)):
            path = tmp_path / side / f"{n:03d}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(image_bytes(pixels))
    pack(
        str(tmp_path / "clean"),
        str(tmp_path / "pairs"),
        PackOptions(),
        ListingOptions(degraded=str(tmp_path / "degraded")),
        workers=1,
    )
    own = [OWN[0], OWN[1], f"data={{shards: {tmp_path / 'pairs'}, holdout: 9, flip: true}}", "sample.every=60"]
    assert train(config, tmp_path / "whole", *own, "train.images=120") == 0
    for images in ("60", "120"):
        assert train(config, tmp_path / "parts", *own, f"train.images={images}") == 0
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    assert measured(tmp_path / "parts") == measured(tmp_path / "whole")
    held = [data.read(int(n), DecodeOptions(square(16))).astype(float) for n in held_out(80, 9)]
    expected = np.mean([10 * np.log10(255**2 / np.square(x // 2 + 40 - x).mean()) for x in held])
    assert measured(tmp_path / "whole")[0]["Restoration/psnr_degraded"] == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    path = write_config(folder / "tiny.yaml", digits)
    path.write_text(
        path.read_text().replace(
            "  G: {base_channels: 8, max_channels: 16}\n  D: {base_channels: 8, max_channels: 16}\n", ""
        )
    )
    assert train(path, folder / "run", *OWN, "train.images=24", "sample.every=0", "wandb.mode=disabled") == 0
    return folder / "run"


def pixels(number: int, size: tuple[int, int] = (16, 16)) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)


def test_pictures_of_a_folder_are_restored_under_their_names(
    tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture
) -> None:
    for name, number in (("a.png", 0), ("in/a.bmp", 1), ("in/b.png", 2)):
        (tmp_path / "x" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(number, (16, 16) if number else (20, 30))).save(tmp_path / "x" / name)
    (tmp_path / "x" / "notes.txt").write_text("no image")
    command = ["generate", str(trained), "--input", str(tmp_path / "x"), "--out"]
    assert main([*command, str(tmp_path / "y")]) == 0
    assert "3 images restored, 1 resized to 16x16" in (told := capsys.readouterr().out)
    assert "skipped 1 not an image" in told
    files = {str(p.relative_to(tmp_path / "y")): np.asarray(Image.open(p)) for p in (tmp_path / "y").rglob("*.png")}
    assert set(files) == {"a.png", "in/a.png", "in/b.png"}
    for name, number in (("in/a.png", 1), ("in/b.png", 2)):  # a residual generator hardly trained: near the input
        assert files[name].shape == (16, 16, 3)
        assert 0 < np.abs(files[name].astype(float) - pixels(number)).mean() < 60
    assert main([*command, str(tmp_path / "g.png"), "--as", "grid"]) == 0
    grid = np.asarray(Image.open(tmp_path / "g.png"))
    assert grid.shape == (2 * 16, 2 * 32, 3)
    assert np.array_equal(grid[:16, 48:64], files["in/a.png"])
    assert np.array_equal(grid[:16, 32:48], pixels(1))
    for rank in (0, 1):  # several processes share the work
        restore(str(trained), str(tmp_path / "x"), str(tmp_path / "z"), RestoreOptions(), rank, 2)
    assert {str(p.relative_to(tmp_path / "z")) for p in (tmp_path / "z").rglob("*.png")} == set(files)


def test_shards_and_archives_are_restored_and_lead_nowhere_else(tmp_path: Path, trained: Path, digits: Path) -> None:
    assert main(["generate", str(trained), "--input", str(digits), "--num", "70", "--out", str(tmp_path / "y")]) == 0
    assert sorted(p.name for p in (tmp_path / "y").iterdir()) == [f"{i:08d}.png" for i in range(70)]
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name in ("../out.png", "/abs/a.png", "x.png", "x.bmp"):
            archive.writestr(name, image_bytes(pixels(3)))
    (tmp_path / "a.zip").write_bytes(data.getvalue())
    assert (
        main(["generate", str(trained), "--input", str(tmp_path / "a.zip"), "--out", str(tmp_path / "z" / "in")]) == 0
    )
    found = {str(p.relative_to(tmp_path / "z")) for p in (tmp_path / "z").rglob("*.png")}
    assert found == {"in/out.png", "in/abs/a.png", "in/x.png", "in/x.png.png"}


def test_a_program_restores_what_the_command_does(tmp_path: Path, trained: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "a.png")
    restore(str(trained), str(tmp_path / "in"), str(tmp_path / "out"), RestoreOptions())
    G = load_generator(trained, "cpu", restores=True)
    restored = G.restore(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1)
    expected = np.asarray(Image.open(tmp_path / "out" / "a.png")).astype(int)
    assert np.abs(to_pixels(restored, G.image)[0].astype(int) - expected).max() <= 1
    with pytest.raises(ValueError, match=r"this generator restores images: call restore\(pictures\)"):
        G(4)
    with pytest.raises(ValueError, match=r"shape \[1, 3, 8, 8\]: this generator takes \[B, 3, 16, 16\]"):
        G.restore(torch.zeros(1, 3, 8, 8))


def test_images_to_restore_are_decoded_as_in_training(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture
) -> None:
    """Transparent pixels lie on the background of the training, and what was too large for it is left out."""
    own = ["data.background=0", "data.max_pixels=300", "train.images=12", "sample.every=0"]
    assert train(config, tmp_path / "run", *OWN, *own) == 0
    (tmp_path / "in").mkdir()
    Image.fromarray(np.zeros((16, 16, 4), np.uint8)).save(tmp_path / "in" / "a.png")
    Image.fromarray(pixels(0, (20, 30))).save(tmp_path / "in" / "b.png")
    command = ["generate", str(tmp_path / "run"), "--input", str(tmp_path / "in"), "--as", "grid"]
    capsys.readouterr()
    assert main([*command, "--out", str(tmp_path / "g.png")]) == 0
    assert "skipped 1 too many pixels (more than 300)" in capsys.readouterr().out
    assert not np.asarray(Image.open(tmp_path / "g.png"))[:, :16].any()


def test_restored_images_that_no_png_holds_become_arrays(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture
) -> None:
    write_shards(tmp_path / "bands", 60, ImageSpec(16, 16, 5, "float32", -3, 2))
    own = [f"data.shards={tmp_path / 'bands'}", "data.channels=5", "data.dtype=float32", "data.range=[-3,2]"]
    own += ["data.holdout=6", "restore.degrade=[{noise: 20}]", "train.images=12", "sample.every=0"]
    assert train(config, tmp_path / "run", *OWN, *own) == 0
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "a.npy", np.random.default_rng(0).uniform(-3, 2, (16, 16, 5)).astype(np.float32))
    command = ["generate", str(tmp_path / "run"), "--input", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    capsys.readouterr()
    assert main(command) == 2
    assert "5 channel(s) of float32 do not fit into PNG files: --as npy keeps all" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*command, "--as", "npy"]) == 0
    restored = np.load(tmp_path / "out" / "a.npy")
    assert (restored.shape, restored.dtype) == ((16, 16, 5), np.float32)
    assert -3 <= restored.min() < restored.max() <= 2


def test_what_cannot_be_restored_is_refused_with_the_way_out(
    tmp_path: Path, trained: Path, config: Path, digits: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["generate", str(trained), "--out", str(tmp_path / "x")]) == 2
    assert "this generator restores images: `distgan generate --input FOLDER` names those" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"and programs take `load_generator\(path, restores=True\)`"):
        load_generator(trained)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").write_text("x")
    assert main(["generate", str(trained), "--input", str(tmp_path / "empty"), "--out", str(tmp_path / "x")]) == 3
    assert "no usable image: 1 not an image" in capsys.readouterr().err
    command = ["generate", str(trained), "--input", str(digits), "--out", str(tmp_path / "x")]
    for more, told in (
        (["--as", "shards"], "become png, npy or grid"),
        (["--as", "grid", "--out", str(tmp_path / "g")], "a grid is a file that ends in .png"),
        (["--columns", "0"], "--columns 0: at least 1"),
        (["--keep-best", "0.5"], "leave them out with --input"),
        (["--aspect"], "--aspect is of images made of noise: leave it out with --input"),
        (["--fps", "5"], "--fps is of images made of noise: leave it out with --input"),
        (["--num", "0"], "--num 0: at least 1"),
        (["--labels", "3"], "this generator was trained without classes"),
    ):
        assert main([*command, *more]) == 2
        assert told in capsys.readouterr().err
    noise = [f"model.{net}={{base_channels: 8, max_channels: 16}}" for net in "GD"]
    assert train(config, tmp_path / "noise", *noise, "train.images=12", "sample.every=0") == 0
    capsys.readouterr()
    assert main(["generate", str(tmp_path / "noise"), "--input", str(digits), "--out", str(tmp_path / "x")]) == 2
    assert "makes images of noise (model.family=dcgan): leave --input out" in capsys.readouterr().err
