"""A generator with conditions: what images it is asked for, by number, by text and by sweep; exports; refusals."""

import importlib.util
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import untrained as of_classes
from runs import write_config

from distgan import load_generator
from distgan.cli.main import main
from distgan.condition_spec import Conditions, Field, rows_of
from distgan.config.load import load
from distgan.config.records import to_dict
from distgan.data.dataset import Dataset, DatasetOptions
from distgan.data.shard_urls import find_shards
from distgan.inference.trained_generator import TrainedGenerator
from distgan.models import MODELS
from distgan.storage import checkpoint
from distgan.storage.byte_ranges import ByteRangeReader
from distgan.storage.checkpoint import save
from distgan.training.factory import build_nets

FIELDS = [
    Field("age", "number", mean=40.0, std=10.0, known=9),
    Field("kind", "class", classes=["cat", "dog", "eel"], known=9, may_be_unknown=True),
    Field("smiling", "flag", mean=0.5, known=9, may_be_unknown=True),
]
KNOWN = Conditions(FIELDS)
EXAMPLES = np.array([[20 + 5 * i, i % 3, i % 2] for i in range(8)] + [[60, np.nan, 1]], np.float32)


def untrained(run: Path, *overrides: str, **changes: object) -> Path:
    """A run of networks as they start."""
    run.mkdir(parents=True)
    settings = [f"run.dir={run}", "data.condition=[all]", "model.condition_dropout=0.1", *overrides]
    config = load(str(write_config(run / "config.yaml", run / "no-shards")), settings)
    G, D = build_nets(config, KNOWN.input)
    with torch.no_grad():
        assert G.embed is not None
        G.embed.weight.mul_(3)  # type: ignore[operator]  # so that conditions show in 8 bits
    nets = {"G": G.state_dict(), "D": D.state_dict(), "G_ema": G.state_dict()}
    state = {"images": 1000, "num_classes": 0, "revision": MODELS[config.model.family].revision}
    state |= {"conditions": [asdict(one) for one in FIELDS], "examples": rows_of(EXAMPLES)} | changes
    save(run / "checkpoints", 1000, nets, state | {"config": to_dict(config)})
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("conditions") / "run")


@pytest.fixture(scope="module")
def G(run: Path) -> TrainedGenerator:
    return load_generator(run, "cpu")


def generate(run: Path, out: Path, *options: str) -> int:
    return main(["generate", str(run), "--out", str(out), *options])


def tiles(path: Path) -> np.ndarray:
    """The images of a grid, uint8 [rows, columns, 16, 16, 3]."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    return pixels.reshape(pixels.shape[0] // 16, 16, -1, 16, 3).transpose(0, 2, 1, 3, 4)


def test_images_have_conditions_of_real_ones_by_number(G: TrainedGenerator) -> None:
    assert G.conditions is not None
    values = G.conditions.drawn(3, range(40))
    assert {str(row) for row in values.tolist()} == {str(row) for row in EXAMPLES.tolist()}
    np.testing.assert_array_equal(G.conditions.drawn(3, [7, 31]), values[[7, 31]])
    assert not np.array_equal(np.nan_to_num(G.conditions.drawn(4, range(40))), np.nan_to_num(values))
    assert torch.equal(G(5, seed=3), G(5, torch.from_numpy(KNOWN.encode(values[:5])), seed=3))
    assert torch.equal(G.images([4], seed=3)[0], G(5, seed=3)[4])


def test_conditions_are_named_in_python(G: TrainedGenerator) -> None:
    one = G(3, "age=30,kind=dog", seed=1)
    assert torch.equal(one, G(3, {"age": 30.0, "kind": "dog"}, seed=1))
    several = G(3, ["age=30,kind=dog", "age=50,kind=dog", "age=30,kind=cat"], seed=1)
    assert torch.equal(one[0], several[0])
    assert not torch.equal(one[1], several[1])
    assert not torch.equal(one[2], several[2])
    vectors = torch.from_numpy(KNOWN.encode(np.array([[30, 1, np.nan]] * 3, np.float32)))
    assert torch.equal(one, G(3, vectors, seed=1))
    for labels, message in (
        (3, "takes conditions: age, kind, smiling"),
        ([0, 1, 2], "takes conditions"),
        ("kind=dog", "age is missing, and it never was in training"),
        (["age=1", "age=2"], "2 conditions for 3 images"),
        (torch.zeros(3, 5), r"vectors of shape \[3, 5\]: expected finite \[3, 8\]"),
        (torch.full((3, 8), float("nan")), "expected finite"),
    ):
        with pytest.raises(ValueError, match=message):
            G(3, labels)  # type: ignore[arg-type]  # which is the test


def test_a_sweep_is_a_latent_to_a_row_and_a_value_to_a_column(run: Path, G: TrainedGenerator, tmp_path: Path) -> None:
    file = tmp_path / "sweep.png"
    given = ["--condition", "kind=eel,smiling=1", "--sweep", "age=20:60:3", "--num", "6", "--seed", "2"]
    assert generate(run, file, "--as", "grid", *given) == 0
    found = tiles(file)
    assert found.shape[:2] == (2, 3)
    for column, age in enumerate((20, 40, 60)):
        images = list(G.pictures(range(2), 2, f"age={age},kind=eel,smiling=1"))
        for row in range(2):
            np.testing.assert_array_equal(found[row, column], images[row])
    assert file.with_suffix(".txt").read_text().splitlines() == [
        *("column 1: age=20", "column 2: age=40", "column 3: age=60"),
        *("row 1: latent 0, kind=eel, smiling=1", "row 2: latent 1, kind=eel, smiling=1"),
    ]
    assert generate(run, file, "--as", "grid", "--sweep", "kind=cat;eel", "--num", "2") == 0
    assert tiles(file).shape[:2] == (1, 2)


def test_a_grid_has_a_condition_to_a_row(run: Path, G: TrainedGenerator, tmp_path: Path) -> None:
    file = tmp_path / "grid.png"
    given = ["--condition", "age=30,kind=cat", "--condition", "age=60"]
    assert generate(run, file, "--as", "grid", "--num", "4", *given) == 0
    expected = list(G.pictures(range(4), 0, 2 * ["age=30,kind=cat"] + 2 * ["age=60"]))
    np.testing.assert_array_equal(tiles(file).reshape(4, 16, 16, 3), np.stack(expected))
    legend = file.with_suffix(".txt").read_text().splitlines()
    assert legend == ["row 1: age=30, kind=cat, smiling=unknown", "row 2: age=60, kind=unknown, smiling=unknown"]


def test_sets_hold_the_conditions_of_their_images(run: Path, G: TrainedGenerator, tmp_path: Path) -> None:
    assert G.conditions is not None
    assert generate(run, tmp_path / "shards", "--as", "shards", "--num", "6", "--seed", "4") == 0
    data = Dataset(find_shards(str(tmp_path / "shards")), ByteRangeReader(), DatasetOptions(conditions=("all",)))
    found = np.stack([data.condition(i) for i in range(6)])
    np.testing.assert_array_equal(found, G.conditions.drawn(4, range(6)))
    assert generate(run, tmp_path / "png", "--num", "2", "--condition", "age=30,kind=cat") == 0
    beside = json.loads((tmp_path / "png" / "00000001.json").read_text())
    assert beside == {"age": 30.0, "kind": "cat", "smiling": None}
    best = ["--as", "shards", "--num", "2", "--keep-best", "0.5"]
    assert generate(run, tmp_path / "best", *best) == 0
    assert generate(run, tmp_path / "best", *best, "--condition", "age=30") == 2  # another set is there


@pytest.mark.parametrize("kind", ["safetensors", "torchscript", "onnx"])
def test_exports_take_vectors_and_know_the_conditions(
    run: Path, G: TrainedGenerator, kind: str, tmp_path: Path
) -> None:
    if kind == "onnx" and not all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime"))):
        pytest.skip("onnx, onnxscript and onnxruntime are not installed")
    out = tmp_path / {"safetensors": "made", "torchscript": "made.pt", "onnx": "made.onnx"}[kind]
    assert main(["export", str(run), str(out), "--as", kind]) == 0
    if kind == "safetensors":
        again = load_generator(out, "cpu")
        assert torch.equal(again(4, seed=3), G(4, seed=3))
        assert torch.equal(again(2, "age=30"), G(2, "age=30"))
        card = (out / "README.md").read_text()
        assert (
            "| `condition` | float32 [B, 8] | age: column 0: (value - 40) / 10, column 1: 0; kind: column 2 to 4"
            in card
        )
    elif kind == "onnx":  # whose images were compared with the generator's before it was written
        import onnxruntime

        inputs = onnxruntime.InferenceSession(str(out)).get_inputs()
        assert [(one.name, one.shape[1]) for one in inputs] == [("z", 8), ("condition", 8)]
    else:
        z, vectors = torch.randn(2, 8), torch.from_numpy(KNOWN.encode(EXAMPLES[:2]))
        torch.testing.assert_close(torch.jit.load(str(out))(z, vectors), G(z, vectors), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--condition", "size=3"], "--condition: no condition 'size', only age, kind, smiling"),
        (["--condition", "kind=cat"], "age is missing, and it never was in training"),
        (["--labels", "2"], "this generator takes conditions (age, kind, smiling)"),
        (["--sweep", "age=1:2:3"], "in a grid: --as grid"),
        (["--as", "grid", "--sweep", "size=1:2:3"], "--sweep: no condition 'size'"),
        (["--as", "grid", "--sweep", "age=1:2"], "age=1:2: not a number"),
        (["--as", "grid", "--sweep", "kind=cat"], "two values or more"),
        (["--as", "grid", "--sweep", "smiling=0:1:3"], "smiling=0.5: not 0 or 1"),
        (["--as", "grid", "--sweep", "age=1:2:3", "--columns", "2"], "has 3 of them"),
        (["--balance"], "--balance"),
    ],
)
def test_what_it_does_not_know_is_refused(
    run: Path, options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(run, tmp_path / ("x.png" if "grid" in options else "x"), *options) == 2
    assert message in capsys.readouterr().err


def test_generators_of_classes_refuse_conditions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(of_classes(tmp_path / "run"), tmp_path / "x", "--condition", "age=3") == 2
    assert "this generator takes classes: --labels 0-2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"examples": [[1.0, 2.0]]}, "expected some rows of 3 values"),
        ({"examples": []}, "expected some rows of 3 values"),
        ({"examples": [[1.0, 5.0, 0.0]]}, "a value that a field cannot have"),
        ({"conditions": [asdict(FIELDS[0])] * 2, "examples": [[1.0, 1.0]]}, "several conditions of one name"),
        ({"conditions": [asdict(FIELDS[0]) | {"std": 0.0}]}, "conditions[0].std"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(
    changes: dict[str, object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(untrained(tmp_path / "run", **changes), tmp_path / "x") == 3
    assert message in capsys.readouterr().err


def test_no_classes_are_balanced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(untrained(tmp_path / "run"), tmp_path / "x", "--balance") == 2
    assert "--balance is about classes, and this generator takes conditions" in capsys.readouterr().err


def test_class_names_stand_for_class_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = of_classes(tmp_path / "run")
    where = next((run / "checkpoints").glob("step-*"))
    tensors, state = checkpoint.load(where)
    save(run / "checkpoints", 2000, tensors, {**state, "images": 2000, "class_names": ["cat", "dog", "two words"]})
    known = load_generator(run, "cpu")
    assert torch.equal(known(2, "dog"), known(2, 1))
    assert torch.equal(known(2, ["two words", "cat"]), known(2, [2, 0]))
    for name, labels in (("names", "two words,cat"), ("numbers", "2,0")):
        assert generate(run, tmp_path / f"{name}.png", "--as", "grid", "--num", "4", "--labels", labels) == 0
    np.testing.assert_array_equal(tiles(tmp_path / "names.png"), tiles(tmp_path / "numbers.png"))
    assert generate(run, tmp_path / "made", "--as", "shards", "--num", "4") == 0
    assert json.loads((tmp_path / "made" / "dataset.json").read_text())["classes"] == ["cat", "dog", "two words"]
    assert generate(run, tmp_path / "x", "--labels", "fox") == 2
    assert "the names are cat, dog, two words" in capsys.readouterr().err
    with pytest.raises(ValueError, match="label 'fox': the names of the classes are cat, dog, two words"):
        known(2, "fox")
