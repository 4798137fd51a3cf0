"""`distgan evaluate` as its user meets it."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import output, ranks, run_ranks, wait_for
from runs import make_digits, write_config
from shards import write_shards

from distgan.cli.main import main
from distgan.data.encode import PackOptions
from distgan.data.pack import pack
from distgan.evaluation import selfcheck
from distgan.evaluation.image_sets import GeneratedImages, Images
from distgan.evaluation.target import class_numbers
from distgan.metrics.extractors import Toy, open_extractor

TOY = ("eval.extractor=toy", "eval.num_images=200")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_digits(tmp_path_factory.mktemp("data") / "digits")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    folder = tmp_path_factory.mktemp("run")
    config = write_config(folder / "tiny.yaml", digits)
    assert main(["train", str(config), f"run.dir={folder / 'run'}", "train.images=240", "wandb.mode=disabled"]) == 0
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of digits, of which the first four are cut-outs of the data set."""
    folder = tmp_path_factory.mktemp("pictures")
    with np.load(Path(__file__).parents[2] / "distgan" / "data" / "digits.npz") as file:
        scans, labels = file["images"][:300], file["labels"][:300]
    rng = np.random.default_rng(0)
    for i, (scan, label) in enumerate(zip(scans, labels)):
        (folder / str(label)).mkdir(exist_ok=True)
        pixels = np.asarray(Image.fromarray(scan).resize((16, 16), Image.Resampling.LANCZOS)).astype(int)
        if i >= 4:
            pixels = pixels + rng.integers(-20, 21, pixels.shape)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / str(label) / f"{i:03d}.png")
    return folder


def evaluate(*arguments: object) -> int:
    return main(["evaluate", *map(str, arguments)])


def report(run: Path) -> dict:
    (path,) = (run / "evaluations").glob("*.json")
    return json.loads(path.read_text())


def test_a_run_gives_a_report_with_all_that_makes_it_comparable(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert evaluate(run, *TOY, "--seeds", 2) == 0
    found, told = report(run), capsys.readouterr().out
    values = found["values"]
    assert {"fd_toy_200_full", "kid_toy_200_full", "is_toy_200_full", "recall_k3_toy_200_full"} <= values.keys()
    assert not any(name.startswith("fid") for name in values)
    fd = values["fd_toy_200_full"]
    assert fd["mean"] == pytest.approx(np.mean(fd["per_seed"]))
    assert fd["per_seed"][0] != fd["per_seed"][1]
    assert fd["standard_error"] > 0
    assert evaluate(run, *TOY, "--seeds", 2) == 0  # in the place of the first one
    assert report(run)["values"] == values
    assert evaluate(run / "checkpoints", *TOY, "--seeds", 1, "eval.metrics=fd") == 0  # the same run, beside it
    names = {path.name: json.loads(path.read_text()) for path in (run / "evaluations").glob("*.json")}
    assert set(names) == {"step-000000000240-toy-200.json", "step-000000000240-toy-200-2.json"}
    assert names["step-000000000240-toy-200-2.json"]["subject"]["path"] == found["subject"]["path"]
    assert (found["num_generated"], found["seeds"], found["reference"]["num_real"]) == (200, [0, 1], 1797)
    assert found["subject"]["checkpoint"] == "step-000000000240"
    assert re.fullmatch("[0-9a-f]{64}", found["subject"]["sha256"])
    assert (found["subject"]["labels"], found["reference"]["resolution"]) == ("empirical", 16)
    assert found["extractor"]["identity"] == "toy:none:tanh:16:bilinear:v1"
    assert {"torch", "distgan", "git"} <= found["software"].keys()
    assert 0 <= found["classes"]["probe_generated"] < found["classes"]["probe_real"] <= 1
    assert re.search(r"^fd_toy_200_full +[\d.]+ +[\d.]+ +[\d.]+$", told, re.MULTILINE)
    assert "200 images, seeds 0, 1 against 1,797 real ones, by toy" in told


@pytest.mark.multi
def test_the_report_does_not_depend_on_the_ranks(run: Path, tmp_path: Path) -> None:
    found = []
    for world in (1, 2):
        command = [
            "-m",
            "distgan",
            "evaluate",
            str(run),
            *TOY,
            "--seeds",
            "1",
            "--out",
            str(tmp_path / f"{world}.json"),
        ]
        codes = run_ranks(world, command, tmp_path / "log", DISTGAN_CACHE=str(tmp_path / f"cache-{world}"))
        assert codes == [0] * world, output(tmp_path / "log", world)
        found.append(json.loads((tmp_path / f"{world}.json").read_text()))
    means = [{name: value["mean"] for name, value in one["values"].items()} for one in found]
    assert means[0] == pytest.approx(means[1], rel=1e-6)
    assert [one["ranks"] for one in found] == [1, 2]


def test_pictures_are_compared_with_shards_and_copies_are_found(
    tmp_path: Path, digits: Path, pictures: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "report.json"
    assert evaluate(pictures, "eval.extractor=toy", f"eval.reference={digits}", "--memorization", "--out", out) == 0
    found = json.loads(out.read_text())
    assert found["seeds"] is None
    assert found["subject"]["num"] == 300
    assert found["classes"]["probe_generated"] > 0.7  # digits with noise are read as what they are
    copies = found["memorization"]
    assert copies["exact_copies"] == 4
    assert copies["nearness"] < 1
    assert copies["whole_training_set"]
    picture = np.asarray(Image.open(copies["picture"]))
    assert picture.shape == (4 * 16, 12 * 16, 3)
    assert np.array_equal(picture[:16, :16], picture[:16, 16:32])  # a copy beside its original
    assert "exact_copies" in capsys.readouterr().out


def test_held_out_images_tell_what_nearness_is_usual(tmp_path: Path, digits: Path, pictures: Path) -> None:
    """The pictures as their own held-out set are exactly as near as they should be."""
    unseen, out = tmp_path / "unseen", tmp_path / "report.json"
    pack(str(pictures), str(unseen), PackOptions(resolution=16), workers=1)
    own = ("eval.extractor=toy", f"eval.reference={digits}", "eval.metrics=fd", "--out", out)
    assert evaluate(pictures, *own, "--memorization", "--holdout", unseen) == 0
    found = json.loads(out.read_text())["memorization"]
    assert found["nearness"] == pytest.approx(1)
    assert found["compared_with"] == "held-out images"


def test_statistics_written_once_serve_again(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "real.npz"
    assert evaluate(run, *TOY, "--seeds", 1, "--statistics", path) == 0
    whole = report(run)["values"]
    assert evaluate(run, *TOY, "--seeds", 1, f"eval.reference={path}", "--out", tmp_path / "b.json") == 0
    again = json.loads((tmp_path / "b.json").read_text())["values"]
    assert again["fd_toy_200"]["mean"] == pytest.approx(whole["fd_toy_200_full"]["mean"], rel=1e-9)
    capsys.readouterr()
    assert evaluate(run, *TOY, f"eval.reference={path}", "eval.resizer=clean_bicubic") == 3
    assert "made with extractor toy:none:tanh:16:bilinear:v1, but" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("eval.num_images=0",), 2, "eval.num_images=0: must be at least 2"),
        (("--seeds", "0"), 2, "--seeds 0: at least 1"),
        (("eval.labels=10",), 2, "eval.labels=10: the classes are 0 to 9"),
        (("eval.metrics=fid",), 2, "eval.metrics='fid': choose one of fd, kid"),
        (("eval.num_images=3", "eval.metrics=pr"), 2, "eval.metrics=pr needs 4 images at least, not 3"),
        (
            ("eval.extractor=inception",),
            2,
            "the weights of inception are missing: pt_inception-2015-12-05-6726825d.pth",
        ),
        (("eval.extractor=vgg",), 2, "eval.extractor"),
        (("data.resolution=32",), 2, "the generator makes images of data.resolution=16"),
        (("model.G.base_channels=16",), 2, "an evaluation takes overrides of eval.* and data.* only"),
        (("eval.reference=/nowhere/*.tar",), 3, "no shard matches"),
        (("eval.reference=/nowhere.npz",), 3, "No such file"),
    ],
)
def test_what_cannot_be_measured_is_told_in_a_line(
    run: Path, arguments: tuple[str, ...], code: int, told: str, capsys: pytest.CaptureFixture
) -> None:
    own = [word for word in TOY if word.partition("=")[0] not in " ".join(arguments)]
    assert evaluate(run, *own, *arguments) == code
    error = capsys.readouterr().err.splitlines()[-1]
    assert told in error
    assert not (run / "evaluations").exists()


def test_targets_that_are_none_are_told(
    tmp_path: Path, digits: Path, pictures: Path, run: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "a.png").write_bytes(b"")
    for arguments, code, told in (
        ((tmp_path / "cut",), 2, "name the real images: eval.reference=SHARDS"),  # before pictures are read
        ((tmp_path / "cut", f"eval.reference={digits}"), 3, f"{tmp_path}/cut/a.png: empty file"),
        ((), 2, "name a run folder, a checkpoint, or a folder of images"),
        ((tmp_path / "none",), 3, "no such file or folder"),
        ((pictures,), 2, "name the real images: eval.reference=SHARDS"),
        ((pictures, "data.resolution=32", f"eval.reference={digits}"), 2, "has images of 16x16 pixels"),
        ((pictures, f"eval.reference={digits}", "--memorization", "eval.labels=x"), 0, ""),
    ):
        assert evaluate(*arguments, "eval.extractor=toy") == code, told
        assert told in capsys.readouterr().err
    path = next((run / "checkpoints").glob("step-*")) / "G_ema.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert evaluate(run, *TOY) == 3
    assert "no good checkpoint there" in capsys.readouterr().err


@pytest.mark.multi
def test_new_checkpoints_are_measured_while_the_run_goes_on(tmp_path: Path, digits: Path) -> None:
    """By another process, which ends with the run; started again it measures nothing twice."""
    run, config = tmp_path / "run", write_config(tmp_path / "tiny.yaml", digits)
    train = ["-m", "distgan", "train", str(config), f"run.dir={run}", "train.images=720", "train.batch=24"]
    train += ["checkpoint.keep_last=9"]
    watch = ["-m", "distgan", "evaluate", str(run), "--watch", *TOY, "--seeds", "1", "eval.metrics=fd"]
    with ranks(1, train, tmp_path / "train") as (training,):
        wait_for(lambda: list(run.glob("checkpoints/step-*")), told=lambda: output(tmp_path / "train"))
        with ranks(1, watch, tmp_path / "watch") as (watching,):
            assert watching.wait(120) == 0, output(tmp_path / "watch")
        assert training.wait(10) == 0
    found = {path.name for path in (run / "evaluations").iterdir()}
    assert found == {f"step-{images:012d}-toy-200.json" for images in (240, 480, 720)}
    assert "the run has ended, 3 checkpoint(s) measured" in output(tmp_path / "watch")
    assert evaluate(run, "--watch", *TOY, "--seeds", "1", "eval.metrics=fd") == 0
    assert {path.name for path in (run / "evaluations").iterdir()} == found
    assert evaluate(run, "--watch", *TOY, "--seeds", "1", "eval.metrics=kid") == 0  # which is another measurement
    assert len(list((run / "evaluations").iterdir())) == 6
    assert evaluate(digits, "--watch", *TOY) == 2


def test_features_that_are_not_finite_give_no_values(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, forward, factor = GeneratedImages.read, Toy.forward, [1.0]

    def spoilt_read(self: GeneratedImages, numbers: np.ndarray) -> Images:
        factor[0] = float("nan")
        return read(self, numbers)

    def spoilt_forward(self: Toy, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features, scores = forward(self, x)
        return features * factor[0], scores

    monkeypatch.setattr(GeneratedImages, "read", spoilt_read)
    monkeypatch.setattr(Toy, "forward", spoilt_forward)
    assert evaluate(run, *TOY, "eval.metrics=[fd,kid]", "--memorization") == 0
    found = report(run)
    assert all(value["mean"] is None and value["per_seed"] == [None] * 3 for value in found["values"].values())
    assert "200 of 200 images have features that are not finite: no values" in found["warnings"]
    assert not {"classes", "memorization"} & found.keys()


def test_what_cannot_be_told_of_statistics_is_refused_before_anything_is_measured(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "real.npz"
    np.savez(file, mu=np.zeros(32), sigma=np.eye(32))
    assert evaluate(run, *TOY, f"eval.reference={file}", "--memorization") == 2
    error = capsys.readouterr().err
    assert "--memorization needs the real images themselves: name shards in eval.reference" in error
    assert "seed 0" not in error


@pytest.mark.parametrize(
    ("names", "known", "num", "numbers"),
    [
        (["cat", "ship"], ["bird", "cat", "ship"], 3, [1, 2]),
        (["3", "7"], ["bird"] * 10, 10, [3, 7]),
        (["10", "2"], [], 11, [10, 2]),
        (["a", "b"], [], 2, [0, 1]),
        (["a", "b"], [], 3, []),
        (["a", "b"], ["b", "c"], 2, []),
    ],
)
def test_classes_go_by_their_names(names: list[str], known: list[str], num: int, numbers: list[int]) -> None:
    assert class_numbers(names, known, num) == numbers


def test_pictures_of_some_classes_are_compared_with_those(
    tmp_path: Path, digits: Path, pictures: Path, capsys: pytest.CaptureFixture
) -> None:
    for label in ("3", "7"):
        shutil.copytree(pictures / label, tmp_path / "some" / label)
        shutil.copytree(pictures / label, tmp_path / "others" / f"of {label}")
    own = ["eval.extractor=toy", f"eval.reference={digits}", "--out", tmp_path / "report.json"]
    assert evaluate(tmp_path / "some", *own) == 0
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["classes"]["probe_generated"] > 0.5  # 0.1 is chance
    assert evaluate(tmp_path / "others", *own) == 0
    found = json.loads((tmp_path / "report.json").read_text())
    assert "classes" not in found
    told = "the images' classes (of 3, of 7 ...) are not those of the real images: no values by class"
    assert told in found["warnings"]


def test_the_selfcheck_prints_published_values_beside_ours(capsys: pytest.CaptureFixture) -> None:
    assert evaluate("--self-test") == 0
    told = capsys.readouterr().out
    assert len(re.findall(r"arithmetic +\S+ +\S+  agrees$", told, re.MULTILINE)) == 7
    assert re.search(r"FID, 5000 \+ 5000 of CIFAR-10 +10.32333 +not computed  name CIFAR-10", told)


def test_the_selfcheck_on_shards_computes_what_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """With small stand-ins for the data and the network: the way is the same, and values that differ are told."""
    paths = {}
    for name, num in (("train", 50), ("test", 40)):
        write_shards(tmp_path / name, [num], size=32)
        paths[name] = str(tmp_path / name)
    toy = open_extractor("toy")
    monkeypatch.setattr(selfcheck, "open_extractor", lambda *_: toy)
    shards = (f"data.shards={paths['train']}", f"eval.reference={paths['test']}")
    assert evaluate("--self-test", *shards) == 0
    assert "CIFAR-10's train set has 50,000 images, these shards 50" in capsys.readouterr().out
    monkeypatch.setattr(selfcheck, "NUM_CIFAR", {"train": 50, "test": 40})
    monkeypatch.setattr(selfcheck, "NUM_DRAWN", 30)
    assert evaluate("--self-test", *shards) == 1
    assert capsys.readouterr().out.count("DIFFERS") == 4
