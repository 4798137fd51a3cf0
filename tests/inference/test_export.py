"""Exported generators, run by what others would run them with."""

import json
import logging
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import untrained
from torch import Tensor, nn

from distgan import load_generator
from distgan.cli.main import main
from distgan.errors import DataError
from distgan.image_spec import ImageSpec
from distgan.inference import export as exports
from distgan.inference.export import export
from distgan.inference.trained_generator import TrainedGenerator
from distgan.models import MODELS
from distgan.storage import checkpoint

SMALL = {
    "dcgan": ["model.G={base_channels: 4, max_channels: 16, norm: batch}"],
    "r3gan": ["model.G={widths: [16], group_width: 4}"],
    "resnet": ["model.G={base_channels: 8, norm: conditional, attention: 8}"],  # "batch" without classes
    "hourglass": ["model.G.base_channels=4"],
    "stylegan2": ["model.G={channel_base: 64, w_dim: 16, mapping_layers: 2}"],
    "restore": ["model.G={base_channels: 4, max_channels: 16, noise: true}"],
}


def small(tmp_path: Path, family: str, classes: int = 3) -> Path:
    own = [text if classes else text.replace("norm: conditional", "norm: batch") for text in SMALL[family]]
    more = [f"model.family={family}", *own, f"model.conditional={classes > 0}", "loss={r1: 0, r2: 0}"]
    return untrained(tmp_path / "run", *more, classes=classes, resolution=32 if family == "hourglass" else 16)


def inputs(num: int, classes: int, side: int = 0) -> tuple[Tensor, ...]:
    drawn = torch.Generator().manual_seed(num)
    pictures = (torch.rand(num, 3, side, side, generator=drawn) * 2 - 1,) if side else ()
    labels = ((torch.arange(num) + 1) % classes,) if classes else ()
    return (*pictures, torch.randn(num, 8, generator=drawn), *labels)


def any_generator(run: Path) -> TrainedGenerator:
    return load_generator(run, "cpu", restores=None)


def test_every_family_is_exported_here() -> None:
    assert set(SMALL) == set(MODELS)


@pytest.mark.parametrize("family", SMALL)
def test_torchscript_gives_the_same_images(tmp_path: Path, family: str) -> None:
    run = small(tmp_path, family)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what torch says of itself is no user's business
        line = export(str(run), str(tmp_path / "g.pt"), "torchscript")
    assert line.startswith(f"{family}, ")
    files = {"config.json": "", "README.md": ""}
    loaded, G = torch.jit.load(str(tmp_path / "g.pt"), _extra_files=files), any_generator(run)
    for num in (1, 7):
        given = inputs(num, 3, 16 * G.restores)
        assert torch.allclose(loaded(*given), G.net(*given), atol=1e-5)
    assert json.loads(files["config.json"])["generator"]["family"] == family
    assert b"torch.jit.load" in files["README.md"]


@pytest.mark.parametrize("classes", [3, pytest.param(0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", ["dcgan", *(pytest.param(f, marks=pytest.mark.slow) for f in SMALL if f != "dcgan")])
def test_onnx_gives_the_same_images_at_any_batch(
    tmp_path: Path, family: str, classes: int, caplog: pytest.LogCaptureFixture
) -> None:
    onnx = pytest.importorskip("onnx", reason="ONNX is not installed (pip install 'distgan[onnx]')")
    onnxruntime = pytest.importorskip("onnxruntime")
    run, file = small(tmp_path, family, classes), tmp_path / "g.onnx"
    with caplog.at_level(logging.WARNING):
        export(str(run), str(file), "onnx")
    assert not caplog.records
    session, G = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"]), any_generator(run)
    names = [each.name for each in session.get_inputs()]
    assert names == [*["pictures"] * G.restores, "z", *["labels"] * (classes > 0)]
    assert session.get_inputs()[0].shape == (["batch", 3, 16, 16] if G.restores else ["batch", 8])
    for num in (1, 2, 9):
        given = inputs(num, classes, 16 * G.restores)
        (images,) = session.run(["images"], {name: value.numpy() for name, value in zip(names, given)})
        assert np.abs(images - G.net(*given).numpy()).max() < 1e-5
    model = onnx.load(str(file))
    told = {prop.key: prop.value for prop in model.metadata_props}
    assert json.loads(told["config.json"])["generator"] == vars(G.spec)
    assert not re.search(rf"{tmp_path}|{Path(torch.__file__).parent.parent}", str(model))  # places of this machine


def test_the_card_states_what_a_user_must_know(tmp_path: Path) -> None:
    run = small(tmp_path, "dcgan")
    assert main(["export", str(run), str(tmp_path / "mine")]) == 0
    assert sorted(p.name for p in (tmp_path / "mine").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    card = (tmp_path / "mine" / "README.md").read_text()
    for told in (
        "# mine: images of 16x16 pixels, 3 classes",
        "| `z` | float32 [B, 8] | standard normal |",
        "| `labels` | int64 [B] | classes 0 to 2 |",
        "float32 [B, 3, 16, 16], red, green, blue; -1 is black and 1 is white",
        "(images * 127.5 + 127.5).round().clip(0, 255)",
        "| batch norm | yes, with the running statistics of training (evaluation mode) |",
        "| spectral norm | none |",
        "| run | run, step-000000001000, after 1,000 images |",
        "| weights | the running average of training (half-life 500 images) |",
        load_generator(run).origin["sha256"],
    ):
        assert told in card
    program = card.split("```python\n")[1].split("```")[0]
    program = program.replace('"mine"', repr(str(tmp_path / "mine")))
    found = {"z": torch.zeros(2, 8), "labels": torch.tensor([0, 1])}
    exec(program, found)
    assert found["images"].shape == (2, 3, 16, 16)


@pytest.mark.parametrize("kind", ["safetensors", "torchscript", "onnx"])
def test_one_that_restores_and_looks_at_no_latents_is_not_given_any(tmp_path: Path, kind: str) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxruntime", reason="ONNX is not installed (pip install 'distgan[onnx]')")
    more = ["model.family=restore", "model.G={base_channels: 4, max_channels: 16}", "loss={r1: 0, r2: 0}"]
    run = untrained(tmp_path / "run", *more, "model.conditional=false", classes=0)
    export(str(run), str(tmp_path / "mine"), kind)
    card = exports.card(any_generator(run), kind, "mine")
    assert "| `pictures` | float32 [B, 3, 16, 16] | to be restored; -1 is black and 1 is white |" in card
    assert "`z`" not in card
    assert "# mine: restored images of 16x16 pixels" in card
    program = card.split("```python\n")[1].split("```")[0].replace('"mine"', repr(str(tmp_path / "mine")))
    pictures = inputs(2, 0, 16)[0]
    found = {"pictures": pictures.numpy() if kind == "onnx" else pictures}
    exec(program, found)
    restored = any_generator(run).restore(pictures)
    assert np.abs(np.asarray(found["images"]) - restored.numpy()).max() < 1e-5


@pytest.mark.parametrize("spoilt", ["weights", "file"])
def test_what_is_not_finite_is_no_generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoilt: str) -> None:
    run = small(tmp_path, "dcgan")
    if spoilt == "weights":
        tensors, state = checkpoint.load(next((run / "checkpoints").glob("step-*")))
        # The order of a file's tensors is its own business, and batch norm's counts are whole numbers
        next(tensor for tensor in tensors["G_ema"].values() if tensor.is_floating_point()).fill_(float("nan"))
        monkeypatch.setattr(checkpoint, "load", lambda path: (tensors, state))
        with pytest.raises(DataError, match="its weights are not all finite numbers: take an earlier checkpoint"):
            export(str(run), str(tmp_path / "g.pt"), "torchscript")
        return
    form, nothing = exports.FORMATS["torchscript"], np.full((5, 3, 16, 16), np.nan, np.float32)
    broken = form._replace(read=lambda part: lambda given: nothing[: len(given["z"])])
    monkeypatch.setitem(exports.FORMATS, "torchscript", broken)
    with pytest.raises(exports.ConfigError, match="differs from the generator by inf"):
        export(str(run), str(tmp_path / "g.pt"), "torchscript")


def test_what_is_there_is_never_written_over(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = small(tmp_path, "dcgan")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "folder", "link"):
        for kind in ("safetensors", "torchscript", "onnx"):
            assert main(["export", str(run), str(tmp_path / name), "--as", kind]) == 2
            assert f"{tmp_path / name} exists: name another path, or remove it first" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"
    assert main(["export", str(tmp_path / "nothing"), str(tmp_path / "out")]) == 3
    assert main(["export", str(run), str(tmp_path / "file" / "out")]) == 5


def test_a_name_that_means_another_form_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = small(tmp_path, "dcgan")
    for name, kind, told in (
        ("e.onnx", "safetensors", "--as safetensors would write a folder of that name: did you mean --as onnx?"),
        ("e.PT", "safetensors", "did you mean --as torchscript?"),
        ("e.onnx", "torchscript", "--as torchscript would write a file of that name: did you mean --as onnx?"),
    ):
        assert main(["export", str(run), str(tmp_path / name), "--as", kind]) == 2
        assert f"{tmp_path / name}: " in (error := capsys.readouterr().err)
        assert told in error
    assert main(["export", str(run), str(tmp_path / "faces.128")]) == 0


def test_an_export_that_is_not_the_generator_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = small(tmp_path, "dcgan")
    G = load_generator(run, "cpu")
    monkeypatch.setitem(
        exports.FORMATS,
        "torchscript",
        exports.FORMATS["torchscript"]._replace(read=lambda part: lambda given: G.net(*given.values()).numpy() + 2e-5),
    )
    with pytest.raises(exports.ConfigError, match=r"differs from the generator by 2\.0e-05, more than 1e-05"):
        export(str(run), str(tmp_path / "out"), "torchscript")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_family_that_cannot_be_exported_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small(tmp_path, "dcgan")

    def forward(self: nn.Module, z: Tensor, labels: Tensor | None = None) -> dict:
        return {"images": [z, object()]}

    monkeypatch.setattr(MODELS["dcgan"].generator, "forward", forward)
    with pytest.raises(exports.ConfigError, match="--as torchscript: the family 'dcgan' cannot be exported so: "):
        export(str(run), str(tmp_path / "out"), "torchscript")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_missing_packages_and_sizes_beyond_the_format_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run = small(tmp_path, "dcgan")
    onnx = exports.FORMATS["onnx"]
    monkeypatch.setitem(exports.FORMATS, "onnx", onnx._replace(needs=("no_such_package",)))
    assert main(["export", str(run), str(tmp_path / "g.onnx"), "--as", "onnx"]) == 5
    assert "--as onnx needs no_such_package: pip install 'distgan[onnx]'" in capsys.readouterr().err
    monkeypatch.setitem(exports.FORMATS, "onnx", onnx._replace(needs=()))
    monkeypatch.setattr(exports, "ONNX_BYTES", 1000)
    assert main(["export", str(run), str(tmp_path / "g.onnx"), "--as", "onnx"]) == 2
    assert "an ONNX file ends at 2 GB: use safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(("low", "high"), [(1013249.5, 1013250.75), (-1e-9, 2e-9), (0.1, 0.7), (-3, 1e6 + 1 / 8)])
def test_the_formula_of_a_card_gives_the_ends_of_the_range(low: float, high: float) -> None:
    formula = exports._stored_by(ImageSpec(8, 8, 1, "float32", low, high)).split("`")[1]
    ends = eval(formula, {"images": np.array([-1.0, 1.0])})
    np.testing.assert_allclose(ends - low, [0, high - low], atol=1e-8 * (high - low) + 1e-14 * abs(low))
