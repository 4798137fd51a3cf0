"""Runs of gray, of transparent and of scientific images: from shards to generated files, and exactly resumed."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import run_ranks
from runs import metrics, weights

from distgan.__main__ import main
from distgan.data.dataset import Dataset
from distgan.data.decode import DecodeOptions
from distgan.data.shard_urls import find_shards
from distgan.data.synthetic import write_shards
from distgan.image_spec import ImageSpec
from distgan.inference.generate import _stretch
from distgan.inference.loading import load_generator
from distgan.storage.byte_ranges import ByteRangeReader

KINDS = {
    "gray": (ImageSpec(32, 32, 1), ["data.channels=1", "data.resolution=32", "augment.pipe=ada"]),
    "alpha": (
        ImageSpec(16, 24, 4, alpha=True),
        ["data.channels=4", "data.alpha=channel", "data.resolution=[16,24]", "augment.pipe=diffaugment"],
    ),
    "deep": (
        ImageSpec(24, 16, 1, "uint16"),
        ["data.channels=1", "data.dtype=uint16", "data.range=[0,65535]", "data.resolution=[24,16]"],
    ),
    "bands": (
        ImageSpec(12, 12, 5, "float32", -3, 2),
        ["data.channels=5", "data.dtype=float32", "data.range=[-3,2]", "data.resolution=12", "eval.bands=[4,2,0]"],
    ),
}
BASE = [
    "model.conditional=true",
    "model.z_dim=8",
    *(f"model.{net}.{key}" for net in "GD" for key in ("base_channels=4", "max_channels=8")),
    "train.batch=12",
    "train.tick=24",
    "checkpoint.every=48",
    "sample.every=48",
    "sample.columns=2",
    "eval.extractor=toy",
    "wandb.mode=disabled",
]


def arguments(folder: Path, kind: str, run: str, images: int) -> list[str]:
    (folder / "c.yaml").write_text(json.dumps({"data": {"shards": str(folder / "shards")}}))
    own = KINDS[kind][1]
    return ["train", str(folder / "c.yaml"), *BASE, *own, f"run.dir={folder / run}", f"train.images={images}"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_in_two_legs_is_the_unbroken_one_and_makes_such_images(kind: str, tmp_path: Path) -> None:
    image = KINDS[kind][0]
    write_shards(tmp_path / "shards", 120, image)
    assert main(arguments(tmp_path, kind, "whole", 96)) == 0
    assert main(arguments(tmp_path, kind, "legs", 48)) == 0
    assert main(arguments(tmp_path, kind, "legs", 96)) == 0
    assert weights(tmp_path / "whole") == weights(tmp_path / "legs")
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "legs")

    run = str(tmp_path / "whole")
    assert main(["generate", run, "--num", "6", "--as", "shards", "--out", str(tmp_path / "made")]) == 0
    made = Dataset(find_shards(str(tmp_path / "made")), ByteRangeReader())
    pictures = np.stack([made.read(i, DecodeOptions(image)) for i in range(6)])
    G = load_generator(run, "cpu")
    assert (G.image, pictures.dtype) == (image, image.dtype)
    np.testing.assert_array_equal(pictures, np.stack(list(G.pictures(range(6)))))
    if image.alpha:
        assert not pictures[pictures[..., -1] == 0].any()
    seen = np.asarray(Image.open(tmp_path / "whole" / "samples" / "reals.png"))
    assert seen.shape[2] == 3 and seen.shape[1] == 2 * image.width

    assert main(["export", run, str(tmp_path / "exported")]) == 0
    again = load_generator(tmp_path / "exported", "cpu")
    assert again.image == image and torch.equal(again(3, seed=1), G(3, seed=1))
    assert (
        main(
            [
                "evaluate",
                run,
                "--seeds",
                "1",
                "eval.metrics=[fd]",
                "eval.num_images=100",
                "--out",
                str(tmp_path / "report.json"),
            ]
        )
        == 0
    )
    shown = {"gray": "_gray", "alpha": "_on_white", "deep": "_gray", "bands": "_bands_4_2_0"}[kind]
    assert list(json.loads((tmp_path / "report.json").read_text())["values"]) == [f"fd_toy{shown}_100_full"]


@pytest.mark.multi
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_resume_as_one_run(kind: str, tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", 120, KINDS[kind][0])
    for run, images in (("whole", 96), ("legs", 48), ("legs", 96)):
        start = ["-m", "distgan", *arguments(tmp_path, kind, run, images)]
        assert run_ranks(2, start, tmp_path / f"log-{run}-{images}") == [0, 0]
    assert weights(tmp_path / "whole") == weights(tmp_path / "legs")
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "legs")


@pytest.mark.parametrize(
    ("kind", "own", "says"),
    [
        ("gray", ["data.resolution=[16,33]"], "data.resolution=[16,33]: the dcgan networks need"),
        ("gray", ["data.resolution=[16,16,16]"], "is no size"),
        ("gray", ["data.channels=3", "data.alpha=channel"], "set data.channels=4"),
        ("gray", ["data.range=[5,1]"], "data.range=[5.0, 1.0]: two values"),
        ("gray", ["data.range=[0,256]"], "uint8 has the whole numbers from 0 to 255"),
        ("gray", ["data.range=[0.5,200]"], "uint8 has the whole numbers from 0 to 255"),
        ("deep", ["data.range=[0,70000]"], "uint16 has the whole numbers from 0 to 65535"),
        ("gray", ["eval.bands=[0,1,2]"], "eval.bands"),
        ("bands", ["eval.bands=[0,5,2]"], "eval.bands"),
        ("bands", ["eval.bands=[0,1]"], "eval.bands"),
    ],
)
def test_kinds_that_are_not_possible_are_refused(
    kind: str, own: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main([*arguments(tmp_path, kind, "run", 96), *own]) == 2
    assert says in capsys.readouterr().err


def test_floats_need_a_range_and_take_that_of_the_card(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_shards(tmp_path / "shards", 120, KINDS["bands"][0])
    start = [text for text in arguments(tmp_path, "bands", "run", 48) if not text.startswith("data.range")]
    assert main(start) == 3
    assert "set data.range=[LOW,HIGH]" in capsys.readouterr().err
    (tmp_path / "shards" / "dataset.json").write_text(json.dumps({"samples": 120, "values": [-3, 2]}))
    assert main(start) == 0
    G = load_generator(tmp_path / "run", "cpu")
    assert (G.image.low, G.image.high) == (-3, 2)
    assert main([text.replace("train.images=48", "train.images=96") for text in start]) == 0


def test_what_no_png_holds_is_refused_as_one(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_shards(tmp_path / "shards", 60, KINDS["bands"][0])
    assert main(arguments(tmp_path, "bands", "run", 24)) == 0
    run, out = str(tmp_path / "run"), tmp_path / "made"
    assert main(["generate", run, "--num", "2", "--out", str(out)]) == 2
    assert "--as npy or shards" in capsys.readouterr().err and not out.exists()
    assert main(["generate", run, "--num", "2", "--as", "npy", "--labels", "0", "--out", str(out)]) == 0
    values = np.load(out / "000" / "00000000.npy")
    assert (values.shape, values.dtype) == ((12, 12, 5), np.float32)


def test_a_stretch_is_undone(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Pictures of 4:3 packed as squares come back as 4:3, in files, grids and from an export."""
    (tmp_path / "wide").mkdir()
    for i in range(24):
        pixels = np.random.default_rng(i).integers(0, 256, (24, 32, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "wide" / f"{i}.png")
    shards, run = str(tmp_path / "shards"), str(tmp_path / "run")
    assert main(["pack", str(tmp_path / "wide"), shards, "--resolution", "16", "--crop", "stretch"]) == 0
    (tmp_path / "c.yaml").write_text(json.dumps({"data": {"shards": shards, "resolution": 16}}))
    own = [*BASE, "model.conditional=false", "train.images=24", "checkpoint.every=24", f"run.dir={run}"]
    assert main(["train", str(tmp_path / "c.yaml"), *own]) == 0
    assert main(["export", run, str(tmp_path / "exported")]) == 0
    for source in (run, str(tmp_path / "exported")):
        out = tmp_path / f"made-{Path(source).name}"
        assert main(["generate", source, "--num", "2", "--aspect", "--out", str(out)]) == 0
        assert Image.open(out / "00000000.png").size == (21, 16)
        grid = tmp_path / "grid.png"
        more = ["--num", "4", "--as", "grid", "--columns", "2", "--out", str(grid)]
        assert main(["generate", source, *more, "--aspect", "1:2"]) == 0
        assert Image.open(grid).size == (32, 64)
    assert main(["generate", run, "--num", "2", "--aspect", "0:3", "--out", str(tmp_path / "x")]) == 2
    assert "--aspect 0:3" in capsys.readouterr().err
    shards = str(tmp_path / "made-run-shards")
    assert main(["generate", run, "--num", "2", "--aspect", "--as", "shards", "--out", shards]) == 0
    assert json.loads((Path(shards) / "dataset.json").read_text())["width"] == 21


def test_16_bits_take_the_range_that_they_were_packed_with(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", 60, KINDS["deep"][0])
    card = {"samples": 60, "dtype": "uint16", "channels": 1, "range": [0, 4095]}
    (tmp_path / "shards" / "dataset.json").write_text(json.dumps(card))
    start = [text for text in arguments(tmp_path, "deep", "run", 24) if not text.startswith("data.range")]
    assert main(start) == 0
    image = load_generator(tmp_path / "run", "cpu").image
    assert (image.low, image.high) == (0, 4095)


@pytest.mark.parametrize("image", [ImageSpec(12, 12, 2, "float32", -3, 2), ImageSpec(16, 16, 1, "uint16", 101, 900)])
def test_stretched_images_stay_in_the_range(image: ImageSpec) -> None:
    """Lanczos overshoots at edges by up to a tenth of their height."""
    ends = image.low, image.high
    pixels = np.full(image.shape, ends[0], image.dtype)
    pixels[:, image.width // 2 :] = ends[1]
    wide = _stretch(pixels, replace(image, width=2 * image.width))
    assert (wide.shape[1], wide.dtype) == (2 * image.width, image.dtype)
    assert (wide.min(), wide.max()) == ends


def evaluated(*arguments: str) -> list[str]:
    """Names of the values in the report of an evaluation."""
    report = Path(arguments[0]).parent / "report.json"
    settings = ["eval.extractor=toy", "eval.metrics=[fd]", "--out", str(report)]
    assert main(["evaluate", *arguments, *settings]) == 0
    return list(json.loads(report.read_text())["values"])


def test_folders_of_images_of_any_kind_are_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """What they are, settings say, or the card of the folder; a set compared with itself has no distance."""
    image = ImageSpec(12, 12, 5, "float32", -3, 2)
    write_shards(tmp_path / "real", 100, image)
    shards = str(tmp_path / "real")
    reference = f"eval.reference={shards}"
    asked = ["evaluate", shards, reference, "eval.extractor=toy"]
    assert main([*asked, "data.channels=5"]) == 3
    assert "set data.dtype=float32 and data.range=[LOW,HIGH]" in capsys.readouterr().err
    assert main([*asked, "data.channels=5", "data.dtype=float32"]) == 2
    assert "set data.range=[LOW,HIGH]" in capsys.readouterr().err
    own = ["data.channels=5", "data.dtype=float32", "data.range=[-3,2]"]
    assert evaluated(shards, reference, *own) == ["fd_toy_bands_0_1_2_100_full"]
    assert evaluated(shards, reference, *own, "eval.bands=[4,2,0]") == ["fd_toy_bands_4_2_0_100_full"]
    assert main([*asked, *own, "eval.bands=[0,5,1]"]) == 2
    assert "eval.bands=[0, 5, 1]: three numbers of channels, from 0 to 4" in capsys.readouterr().err
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["values"]["fd_toy_bands_4_2_0_100_full"]["mean"] == pytest.approx(0, abs=1e-6)
    card = {"samples": 100, "channels": 5, "dtype": "float32", "alpha": False, "height": 12, "width": 12}
    (tmp_path / "real" / "dataset.json").write_text(json.dumps(card | {"values": [-3, 2]}))
    assert evaluated(shards, reference) == ["fd_toy_bands_0_1_2_100_full"]

    (tmp_path / "gray").mkdir()
    for i in range(64):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "gray" / f"{i}.png")
    write_shards(tmp_path / "reals", 100, ImageSpec(16, 16, 1))
    asked = [str(tmp_path / "gray"), f"eval.reference={tmp_path / 'reals'}"]
    assert evaluated(*asked) == ["fd_toy_64_full"]
    assert evaluated(*asked, "data.channels=1") == ["fd_toy_gray_64_full"]
