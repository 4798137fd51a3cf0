"""`distgan generate`: image i is a function of (seed, i), whoever makes it, and sets of images can be gone on with."""

import errno
import io
import json
import os
import signal
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image
from processes import output, ranks, run_ranks, wait_for
from runs import make_digits, untrained, write_config

from distgan import data, load_generator, open_stream
from distgan.cli.main import main
from distgan.errors import ConfigError
from distgan.image_spec import ImageSpec
from distgan.inference import scoring
from distgan.inference.generate import _card_of_values, generate
from distgan.inference.loading import load_discriminator
from distgan.inference.request import GenerateOptions
from distgan.inference.scoring import NUM_REALS
from distgan.metrics.extractors import Toy, open_extractor
from distgan.storage.checkpoint import load as load_checkpoint


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("generate") / "run")


def shards(run: Path, out: Path, num: int = 200, rank: int = 0, world: int = 1, **options: object) -> str:
    chosen = GenerateOptions("shards", num, **{"shard_images": 48, "seed": 3} | options)
    return generate(str(run), str(out), chosen, rank, world)


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if not path.name.endswith(".index")}


def samples(out: Path) -> dict[int, tuple[int | None, np.ndarray]]:
    """Number -> (label, pixels) of a set, read by other means than the package's own."""
    found: dict[int, dict[str, bytes]] = {}
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as file:
            for member in file:
                key, _, suffix = member.name.partition(".")
                found.setdefault(int(key), {})[suffix] = file.extractfile(member).read()
    pixels = {i: np.asarray(Image.open(io.BytesIO(parts["png"]))) for i, parts in found.items()}
    return {i: (int(parts["cls"]) if "cls" in parts else None, pixels[i]) for i, parts in found.items()}


def test_a_set_is_the_same_from_any_number_of_processes(tmp_path: Path, run: Path) -> None:
    lines = [shards(run, tmp_path / "one")]
    for world in (2, 3):
        lines += [shards(run, tmp_path / str(world), rank=rank, world=world) for rank in reversed(range(world))]
        assert contents(tmp_path / str(world)) == contents(tmp_path / "one")
    assert lines[0] == f"200 images in 5 shard(s): {tmp_path / 'one'}"
    assert lines[1].startswith(f"2 of 200 images in 5 shard(s): {tmp_path / '2'}; dataset.json comes with the last")
    names = [f"{unit:06d}.tar" for unit in range(5)]
    assert sorted(path.name for path in (tmp_path / "3").iterdir()) == sorted(
        [*names, *(f"{name}.index" for name in names), "dataset.json"]
    )


def test_sets_files_and_the_python_interface_give_the_same_pixels(tmp_path: Path, run: Path) -> None:
    shards(run, tmp_path / "set", num=100)
    found = samples(tmp_path / "set")
    assert list(found) == list(range(100))
    assert [label for label, _ in found.values()] == [i % 3 for i in range(100)]
    for rank in range(2):
        generate(str(run), str(tmp_path / "png"), GenerateOptions("png", 100, seed=3), rank, 2)
    G = load_generator(run, "cpu")
    for i, picture in enumerate(G.pictures(range(100), seed=3)):
        assert np.array_equal(found[i][1], picture)
        assert np.array_equal(np.asarray(Image.open(tmp_path / "png" / f"{i % 3:03d}" / f"{i:08d}.png")), picture)
    assert not np.array_equal(found[0][1], found[3][1])  # of the same class, and another image


def test_the_card_says_where_the_images_come_from(tmp_path: Path, run: Path) -> None:
    shards(run, tmp_path / "set", labels="2,0")
    card = json.loads((tmp_path / "set" / "dataset.json").read_text())
    checkpoint = run / "checkpoints" / "step-000000001000"
    told = card["generated"]
    assert (told["run"], told["checkpoint"], told["images"]) == ("run", checkpoint.name, 1000)
    assert told["sha256"] == load_generator(checkpoint).origin["sha256"]
    assert (told["seed"], told["num"], told["labels"], told["keep_best"]) == (3, 200, [2, 0], 1)
    assert (card["samples"], card["candidates"], card["class_counts"]) == (200, 200, [100, 0, 100])
    assert card["config"]["model"] == load_checkpoint(checkpoint)[1]["config"]["model"]
    assert str(tmp_path.parent) not in json.dumps(card)  # places of this machine
    assert [shard["samples"] for shard in card["shards"]] == [48, 48, 48, 48, 8]


@pytest.mark.multi
def test_a_killed_set_is_gone_on_with_and_ends_the_same(tmp_path: Path, run: Path) -> None:
    arguments = ["-m", "distgan", "generate", str(run), "--num", "2560", "--as", "shards", "--shard-images", "64"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with ranks(2, [*arguments, "--out", str(cut)], tmp_path / "log") as started:
        wait_for(lambda: len(list(cut.glob("*.tar"))) >= 6, told=lambda: output(tmp_path / "log", 2))
        for process in started:
            os.kill(process.pid, signal.SIGKILL)
        for process in started:
            process.wait()
    before = {path.name: path.stat().st_ino for path in cut.glob("*.tar")}
    finished = {f"{path.stem}.tar" for path in (cut / ".unfinished").glob("[0-9]*.json")}
    assert 4 <= len(finished) < 40
    last = next(unit for unit in range(39, -1, -1) if f"{unit:06d}.tar" not in finished)
    (cut / f".{last:06d}.tar.index.k1ll3d").touch()  # as one that is killed in the midst of it leaves
    assert not (cut / "dataset.json").exists()
    assert run_ranks(2, [*arguments, "--out", str(cut)], tmp_path / "again") == [0, 0], output(tmp_path / "again", 2)
    of_rank_0 = any(int(Path(name).stem) % 2 == 0 for name in finished)  # which tells of its own share
    assert ("were there already)" in output(tmp_path / "again", 2)) == of_rank_0
    kept = {name for name, inode in before.items() if (cut / name).stat().st_ino == inode}
    assert kept == finished
    shards(run, whole, num=2560, shard_images=64, seed=0)
    assert contents(cut) == contents(whole)
    assert not (cut / ".unfinished").exists()


def test_the_filter_keeps_what_is_nearest_to_real_images(tmp_path: Path) -> None:
    digits = make_digits(tmp_path / "digits")
    run = untrained(tmp_path / "run", f"data.shards={digits}", "eval.extractor=toy")
    chosen = GenerateOptions("png", 40, seed=3, share=0.4, filter_by="nearest-real")
    generate(str(run), str(tmp_path / "png"), chosen)
    files = {int(path.stem) for path in (tmp_path / "png").rglob("*.png")}
    toy, reals = open_extractor("toy"), []
    with np.load(Path(data.__file__).parent / "digits.npz") as scans:
        assert len(scans["images"]) < NUM_REALS  # so all of them are looked at
    with open_stream(str(digits), batch=599, resolution=16) as stream:  # three batches are an epoch
        reals = torch.cat([toy(torch.from_numpy(next(stream).images).permute(0, 3, 1, 2))[0] for _ in range(3)])
    fakes = np.stack(list(load_generator(run, "cpu").pictures(range(100), seed=3)))
    distances = torch.cdist(toy(torch.from_numpy(fakes).permute(0, 3, 1, 2))[0].double(), reals.double()).amin(1)
    assert files == set(distances.argsort()[:40].tolist())


@pytest.mark.parametrize("chunk", [4, 16])
def test_the_filter_gives_the_extractor_as_many_images_as_it_takes(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No forward is filled up, but the last one of the real images."""
    digits = make_digits(tmp_path / "digits")
    run = untrained(tmp_path / "run", f"data.shards={digits}", "eval.extractor=toy")
    monkeypatch.setattr(scoring, "NUM_REALS", 2 * chunk + 1)
    sizes: list[int] = []
    forward = Toy.forward
    monkeypatch.setattr(Toy, "forward", lambda net, x: (sizes.append(len(x)), forward(net, x))[1])
    score = scoring.open_score("nearest-real", run, chunk, torch.device("cpu"))
    assert sizes == [chunk] * 3
    score(torch.zeros(chunk, 3, 16, 16), None)
    assert sizes == [chunk] * 4


def test_single_images_of_two_sets_never_share_a_folder(tmp_path: Path, run: Path) -> None:
    out = str(tmp_path / "png")

    def made(num: int, **settings: object) -> str:
        return generate(str(run), out, GenerateOptions("png", num, **{"seed": 3} | settings))

    made(10)
    assert len(list(Path(out).rglob("*.png"))) == 10
    made(12)  # the same set, of which there are more now
    names = {path.name: path.stat().st_mtime_ns for path in Path(out).rglob("*.png")}
    assert len(names) == 12
    for other in ({"seed": 4}, {"num": 5}, {"share": 0.5}, {"labels": "0"}):
        with pytest.raises(ConfigError, match="another set"):
            made(**{"num": 12} | other)
    assert {path.name: path.stat().st_mtime_ns for path in Path(out).rglob("*.png")} == names
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "mine.png").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"holds 'mine\.png'"):
        generate(str(run), str(tmp_path / "pictures"), GenerateOptions("png", 10, seed=3))


def test_a_finished_set_is_left_alone_and_another_one_is_refused(tmp_path: Path, run: Path) -> None:
    out = tmp_path / "set"
    shards(run, out)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert shards(run, out).endswith("(all of them were there already)")
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    arguments = ["generate", str(run), "--as", "shards", "--out", str(out), "--num", "200", "--shard-images", "48"]
    assert main([*arguments, "--seed", "3"]) == 0
    assert main([*arguments, "--seed", "4"]) == 2
    (out / "000001.tar").unlink()
    assert main([*arguments, "--seed", "3"]) == 3


def test_a_full_disk_costs_the_shard_at_hand(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    out, whole = tmp_path / "set", tmp_path / "whole"
    real, left = os.replace, [2]  # shards that fit

    def replace(source: str, target: str) -> None:
        if str(target).endswith(".tar"):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    arguments = ["generate", str(run), "--as", "shards", "--num", "200", "--shard-images", "48", "--seed", "3"]
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", replace)
        assert main([*arguments, "--out", str(out)]) == 5
    assert "No space left on device; finished shards stay, and the same command continues" in capsys.readouterr().err
    assert sorted(path.name for path in out.glob("*.tar")) == ["000000.tar", "000001.tar"]
    assert not [path for path in (out / ".unfinished").iterdir() if path.suffix != ".json"]
    assert main([*arguments, "--out", str(out)]) == 0
    assert "(2 of 5 were there already)" in capsys.readouterr().out
    shards(run, whole)
    assert contents(out) == contents(whole)


def test_what_stands_in_the_way_of_a_set_is_named(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture) -> None:
    other = untrained(tmp_path / "other", "train.seed=5")
    shards(run, tmp_path / "half", world=2)
    pack = make_digits(tmp_path / "packed")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("mine")
    for source, out, arguments, told in (
        (run, "half", ["--seed", "1"], "holds another set (seed 3 instead of 1): to continue, ask for that"),
        (run, "half", ["--seed", "3", "--keep-best", "0.5"], "keep_best 1.0 instead of 0.5"),
        (other, "half", ["--seed", "3"], "images of run, step-000000001000, not of other, step-000000001000"),
        (run, pack.name, [], "shards that were not generated"),
        (run, "notes", [], "holds 'notes.txt', which is not of a generated set: choose another folder"),
        (run, "notes/notes.txt", [], "is a file"),
    ):
        arguments = ["--num", "200", "--shard-images", "48", "--out", str(tmp_path / out), *arguments]
        assert main(["generate", str(source), "--as", "shards", *arguments]) == 2
        assert told in capsys.readouterr().err
    assert (tmp_path / "notes" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--shard-images", "7"], "--shard-images is for --as shards, not png: leave it out"),
        (["--as", "grid", "--keyframes", "3"], "--keyframes is for --as video, not grid: leave it out"),
        (["--as", "shards", "--fps", "25"], "--fps is for --as video, not shards: leave it out"),
        (["--as", "npy", "--columns", "2"], "--columns is for --as grid and video, not npy: leave it out"),
        (["--filter-by", "discriminator"], "--filter-by discriminator says what is best: name the share to keep"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture, arguments: list[str], told: str
) -> None:
    assert main(["generate", str(run), "--num", "8", "--out", str(tmp_path / "out"), *arguments]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_other_readers_and_another_training_take_a_set(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    shards(run, tmp_path / "set", num=120)
    urls = [str(path) for path in sorted((tmp_path / "set").glob("*.tar"))]
    read = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8").to_tuple("__key__", "png", "cls"))
    assert [int(key) for key, _, _ in read] == list(range(120))
    pictures = load_generator(run, "cpu").pictures(range(120), seed=3)
    assert all(np.array_equal(picture, pixels) for (_, pixels, _), picture in zip(read, pictures))
    config = write_config(tmp_path / "tiny.yaml", tmp_path / "set")
    assert main(["train", str(config), f"run.dir={tmp_path / 'next'}", "train.images=120", "data.audit=true"]) == 0
    lines = (tmp_path / "next" / "audit" / "rank0.jsonl").read_text().splitlines()
    assert sorted(int(json.loads(line)["key"]) for line in lines) == list(range(120))
    state = load_checkpoint(next((tmp_path / "next" / "checkpoints").glob("step-*")))[1]
    assert state["num_classes"] == 3


@pytest.mark.parametrize("minibatch", ["none", "stddev"])
def test_the_filter_keeps_what_d_holds_to_be_the_most_real(tmp_path: Path, minibatch: str) -> None:
    run = untrained(tmp_path / "run", f"model.minibatch_layer={minibatch}", "model.minibatch_group_size=4")
    shards(run, tmp_path / "set", num=100, share=0.4, shard_images=64)  # 160 and 90 candidates
    found = samples(tmp_path / "set")
    G, D = load_generator(run, "cpu"), load_discriminator(run, 64, "cpu")
    with torch.no_grad():  # by hand: images 0 ... 255, in groups of 4 neighbours
        parts = [G.images(range(i, i + 64), 3) for i in range(0, 256, 64)]
        scores = torch.cat([D(part, torch.arange(i, i + 64) % 3) for i, part in zip(range(0, 256, 64), parts)])
    best = {*(scores[:160].argsort(descending=True)[:64]).tolist()}
    best |= {160 + i for i in scores[160:250].argsort(descending=True)[:36].tolist()}
    assert set(found) == best
    pictures = list(G.pictures(range(250), seed=3))
    assert all(np.array_equal(pixels, pictures[i]) and label == i % 3 for i, (label, pixels) in found.items())
    card = json.loads((tmp_path / "set" / "dataset.json").read_text())
    assert (card["samples"], card["candidates"]) == (100, 250)
    generate(str(run), str(tmp_path / "png"), GenerateOptions("png", 100, seed=3, share=0.4))
    files = {int(path.stem) for path in (tmp_path / "png").rglob("*.png")}
    assert files == set(scores[:250].argsort(descending=True)[:100].tolist())  # of one unit


def test_balance_makes_classes_equal_under_the_filter(tmp_path: Path, run: Path) -> None:
    shards(run, tmp_path / "free", num=90, share=0.3)
    shards(run, tmp_path / "equal", num=90, share=0.3, balance=True)
    assert Counter(label for label, _ in samples(tmp_path / "equal").values()) == {0: 30, 1: 30, 2: 30}
    assert Counter(label for label, _ in samples(tmp_path / "free").values()) != {0: 30, 1: 30, 2: 30}


def test_sets_without_classes_have_no_labels(tmp_path: Path) -> None:
    run = untrained(tmp_path / "run", "model.conditional=false", classes=0)
    shards(run, tmp_path / "set", num=20, share=0.5)
    assert {label for label, _ in samples(tmp_path / "set").values()} == {None}
    card = json.loads((tmp_path / "set" / "dataset.json").read_text())
    assert (card["classes"], card["class_counts"], card["generated"]["labels"]) == (None, None, [])


def test_a_video_shows_every_class_on_one_walk(tmp_path: Path, run: Path) -> None:
    assert (
        main(["generate", str(run), "--num", "8", "--as", "video", "--keyframes", "4", "--out", f"{tmp_path}/v.webp"])
        == 0
    )
    stops = list(load_generator(run, "cpu").pictures([0, 0, 0, 1, 1, 1], labels=[0, 1, 2] * 2))
    with Image.open(tmp_path / "v.webp") as file:
        assert (file.n_frames, file.size) == (8, (32, 32))
        for frame, pictures in ((0, stops[:3]), (2, stops[3:])):
            file.seek(frame)
            found = np.asarray(file.convert("RGB"), int)
            tiles = [found[:16, :16], found[:16, 16:], found[16:, :16]]
            assert all(np.abs(tile - picture).max() <= 1 for tile, picture in zip(tiles, pictures))


def test_what_cannot_be_generated_is_refused_with_the_way_out(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture
) -> None:
    plain = untrained(tmp_path / "plain", "model.conditional=false", classes=0)
    many = untrained(tmp_path / "many", classes=100)
    out = str(tmp_path / "x")
    for source, arguments, told in (
        (run, ["--num", "0"], "--num 0: at least 1"),
        (run, ["--keep-best", "0"], "--keep-best 0: 0.0001 to 1"),
        (run, ["--keep-best", "nan"], "--keep-best nan"),
        (run, ["--shard-images", "-1"], "--shard-images -1: at least 0"),
        (run, ["--labels", "3"], "the classes are 0 to 2"),
        (plain, ["--labels", "0"], "trained without classes"),
        (plain, ["--balance"], "trained without classes"),
        (run, ["--balance", "--num", "10"], "choose --num 9 or 12"),
        (
            run,
            ["--as", "grid", "--keep-best", "0.5"],
            "--keep-best and --balance choose images of a set (--as png or shards)",
        ),
        (run, ["--as", "grid"], f"--out {out}: a grid is a file that ends in .png"),
        (run, ["--as", "grid", "--out", f"{out}.jpg"], "a grid is a file that ends in .png"),
        (run, ["--as", "video"], "a video is a file that ends in .webp or .mp4"),
        (
            run,
            ["--as", "video", "--out", f"{out}.webp", "--keyframes", "65"],
            "--keyframes 65: 2 to 64, the number of frames",
        ),
        (run, ["--as", "video", "--out", f"{out}.webp", "--keyframes", "1"], "--keyframes 1: 2 to 64"),
        (run, ["--as", "video", "--out", f"{out}.webp", "--fps", "0"], "--fps 0: 1 to 240"),
        (run, ["--as", "video", "--out", str(tmp_path)], "is a folder, a video is one file"),
        (
            many,
            ["--as", "video", "--out", f"{out}.webp"],
            "64 classes at most, and there are 100: name some by --labels",
        ),
    ):
        assert main(["generate", str(source), "--out", out, *arguments]) == 2, arguments
        assert told in capsys.readouterr().err
    assert not list(tmp_path.glob("x*"))


def test_a_card_has_the_range_of_the_training() -> None:
    """Not values that were measured, which nobody did."""
    facts = _card_of_values(ImageSpec(8, 8, 2, "float32", -3, 5))
    assert facts["range"] == [-3, 5]
    assert "values" not in facts
    assert _card_of_values(ImageSpec(8, 8, 2))["range"] is None
