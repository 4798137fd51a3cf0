"""Text from outside gives no orders to a terminal and forges no line, at whichever door it arrives."""

import ast
import io
import json
import logging
import re
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from range_server import RangeServer
from runs import untrained, write_config
from shards import image_bytes, numbered_pixels, tar_bytes

from distgan.cli.main import main
from distgan.errors import ConfigError, DataError
from distgan.storage.printable import printable, public_line, show
from distgan.storage.run_dir import RunDir
from distgan.tracking.console import Lines
from distgan.tracking.wandb_logger import WandbLogger

PACKAGE = Path(__file__).parents[2] / "distgan"
HOSTILE = "a\x1b]0;t\x07\r\x9b31m\u202e\u2028\nFORGED"


def bad_lines(text: str) -> list[str]:
    """Lines that a terminal would not only show, or that somebody else wrote."""
    return [line for line in text.split("\n") if not line.isprintable() or line.lstrip().lower().startswith("forged")]


@given(st.text())
def test_any_text_is_one_line_that_is_only_shown(text: str) -> None:
    assert printable(text).isprintable()
    if text.isprintable():
        assert printable(text) == text


def test_what_is_normal_is_kept() -> None:
    for text in ("Grüße, 画像 🖼 é ½ عربى", "a\\b 'c'", ""):
        assert printable(text) == text
    assert printable("a\tb") == "a b"
    assert printable("\x1b[0m\n\x85\u200f\udcff\U000e0001") == r"\x1b[0m\n\x85\u200f\udcff\U000e0001"


def test_a_secret_behind_a_line_break_is_not_shown() -> None:
    assert public_line("at https://u:p@host/a\nb.tar?sig=S gone") == r"at https://host/a\nb.tar gone"
    url = "s3://key:SEC\x1bRET@bucket/0.tar"
    assert "SEC" not in public_line(f"cannot open {url}", url) + public_line(f"no {url!r}", url)


def test_a_record_is_a_line_and_its_traceback_is_below_it() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Lines())
    try:
        raise DataError(f"of {HOSTILE} at https://user:pass@host/x?sig=S")
    except DataError as error:
        record = logging.LogRecord("", logging.DEBUG, "", 0, f"failed: {HOSTILE}", (), (DataError, error, None))
    handler.handle(record)
    text = stream.getvalue()
    lines = text.removesuffix("\n").split("\n")
    assert lines[0] == f"failed: {printable(HOSTILE)}"
    assert lines[1:] and all(line.startswith("  ") and line.isprintable() for line in lines[1:])
    assert "pass" not in text and "sig" not in text


def test_several_mistakes_are_lines_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(json.dumps({HOSTILE: 1, "train": {"batch": HOSTILE}}))
    assert main(["config", str(config)]) == 2
    shown = capsys.readouterr().err
    assert not bad_lines(shown)
    assert len(shown.splitlines()) == 3
    assert str(ConfigError("2 mistakes", "a", "b")) == "2 mistakes\n  a\n  b"


@pytest.fixture
def hostile_set(tmp_path: Path) -> Path:
    """A data set whose shard, samples, suffixes, classes and card have such names; one picture is damaged."""
    folder = tmp_path / f"set {HOSTILE}"
    folder.mkdir()
    good = image_bytes(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8))
    members = [(f"{i:03d}{HOSTILE}.{end}", data) for i in range(24) for end, data in (("png", good), ("cls", b"0"))]
    members += [(f"x{HOSTILE}.png", good[:60]), (f"x{HOSTILE}.cls", b"1"), (f"x{HOSTILE}.{HOSTILE}", b"")]
    (folder / f"0{HOSTILE}.tar").write_bytes(tar_bytes(members, format=tarfile.GNU_FORMAT))
    card = dict.fromkeys(("source", "made_by", "image", "crop", "filter", "labels_from", "digest"), HOSTILE)
    card |= {"classes": [HOSTILE, f"b{HOSTILE}"], "class_counts": [24, 1], "resolution": 16}
    (folder / "dataset.json").write_text(json.dumps(card))
    return folder


def test_no_command_shows_or_logs_more_than_text(
    tmp_path: Path, hostile_set: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    pictures = tmp_path / "pictures" / HOSTILE
    pictures.mkdir(parents=True)
    for i in range(3):
        (pictures / f"{i}{HOSTILE}.png").write_bytes(image_bytes(numbered_pixels(i)))
    (pictures / f"9{HOSTILE}.png").write_bytes(b"no image")
    arrays = tmp_path / "labelled.npz"
    images = np.zeros((4, 8, 8, 3), np.uint8)
    np.savez(arrays, images=images, labels=np.array([0, 1, 0, 1]), label_names=np.array([HOSTILE, "b"]))
    statistics = tmp_path / "statistics.npz"
    header = {"version": 1, "num": 9, "num_corrupt": 0, "num_gray": 0, "origin": {"extractor": HOSTILE}}
    empty = {name: np.zeros(0) for name in ("points", "labels", "numbers")}
    np.savez(
        statistics, mu=np.zeros(32), sigma=np.eye(32), root=np.eye(32), header=np.array(json.dumps(header)), **empty
    )
    config = write_config(tmp_path / "tiny.yaml", Path("unused"))
    run = tmp_path / f"run {HOSTILE}"
    own = [str(config), f"run.dir={json.dumps(str(run))}", f"data.shards={json.dumps(str(hostile_set))}"]
    own += ["train.images=48", "train.tick=12", "sample.every=0"]
    toy = ["eval.extractor=toy", "eval.num_images=16", "eval.metrics=[fd]", "data.max_corrupt_fraction=0.5"]
    trained = untrained(tmp_path / "trained").rename(tmp_path / f"trained {HOSTILE}")
    out = tmp_path / f"out {HOSTILE}"
    commands = [
        ["pack", str(tmp_path / "pictures"), str(tmp_path / f"packed {HOSTILE}")],
        ["pack", str(arrays), str(tmp_path / "packed2")],
        ["pack", str(hostile_set), str(tmp_path / "packed3"), "--allow-corrupt"],
        ["pack", str(tmp_path / HOSTILE), str(tmp_path / "packed4")],
        ["index", str(hostile_set)],
        ["check", *own],
        ["train", *own],
        ["train", *own, "data.max_corrupt_fraction=0"],
        ["config", *own],
        ["evaluate", str(run), *toy],
        ["evaluate", str(run), *toy, f"eval.reference={statistics}"],
        ["generate", str(trained), "--num", "2", "--out", str(out)],
        ["generate", str(trained), "--num", "2", "--out", f"{out}.png", "--as", "grid"],
        ["export", str(trained), str(tmp_path / f"exported {HOSTILE}")],
        ["report", str(run)],
        ["plot", str(run), "--keys", HOSTILE],
        ["train", str(config), HOSTILE],
        ["doctor"],
    ]
    outcomes = []
    for words in commands:
        code = main(words)
        shown = capsys.readouterr()
        assert not bad_lines(shown.out + shown.err), words
        outcomes.append((words[0], code, shown.err[-300:]))
    for words in ([HOSTILE], ["pack", "a", "b", "--quality", HOSTILE], ["plot", "a", f"--{HOSTILE}"]):
        with pytest.raises(SystemExit):
            main(words)
        assert not bad_lines(capsys.readouterr().err), words
    worked = {command for command, code, _ in outcomes if code == 0}
    assert worked >= {"pack", "check", "train", "evaluate", "generate", "export", "report"}, outcomes
    shown_later = [path for path in (tmp_path / f"exported {HOSTILE}").iterdir() if path.suffix in (".md", ".json")]
    told = shown_later + [path for path in run.rglob("*") if path.suffix in (".txt", ".json", ".jsonl", ".yaml")]
    assert {"log.txt", "status.json", "config.yaml", "quarantine.jsonl"} <= {path.name for path in told}
    for path in told:
        assert not bad_lines(path.read_text()), path


def test_words_of_a_server_are_only_shown(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with RangeServer({}) as server:
        server.fail(["418 " + "x\x1b[31m\u009b\x07"] * 4)
        assert main(["index", f"{server.address}/0.tar"]) == 3
    shown = capsys.readouterr().err
    assert shown and not bad_lines(shown)


def test_what_nobody_foresaw_is_only_shown(capsys: pytest.CaptureFixture) -> None:
    """A warning before there is a log, and Python's last word on an error."""
    assert main(["config", "--help-keys", "train.seed"]) == 0
    capsys.readouterr()
    last = logging.lastResort
    assert last is not None
    last.handle(logging.LogRecord("", logging.WARNING, "", 0, HOSTILE, (), None))
    try:
        raise RuntimeError(f"{HOSTILE} at https://u:p@h/x")
    except RuntimeError as error:
        sys.excepthook(RuntimeError, error, None)
    shown = capsys.readouterr().err
    assert shown.startswith(printable(HOSTILE) + "\n")
    assert "RuntimeError" in shown and "u:p" not in shown
    assert not [line for line in shown.splitlines() if not line.isprintable() or line.startswith("FORGED")]


def test_a_failure_is_recorded_as_text(tmp_path: Path) -> None:
    folder = RunDir(tmp_path)
    folder.record_failure(DataError(HOSTILE), 0, 1)
    assert folder.read_status()["reason"] == f"DataError: {printable(HOSTILE)}"


def test_an_alert_is_text() -> None:
    class BackgroundWorker:
        def submit(self, name: str, call: object) -> None:
            call()

    class Run:
        def alert(self, *values: object) -> None:
            self.told = values[:2]

    sender = WandbLogger.__new__(WandbLogger)
    sender._worker, sender._run = BackgroundWorker(), Run()
    sender.alert("Failed", f"{HOSTILE} at https://u:p@h/x?s=S", "ERROR")
    assert sender._run.told == ("Failed", f"{printable(HOSTILE)} at https://h/x")


def test_a_config_is_shown_as_yaml_that_reads_back(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = write_config(tmp_path / "c.yaml", Path("Bilder/Grün"))
    for name in ("runs/Grün 1e3", f"runs/{HOSTILE}"):
        assert main(["config", str(config), f"run.dir={json.dumps(name)}", "wandb.name='1e3'"]) == 0
        text = capsys.readouterr().out
        assert not bad_lines(text)
        again = tmp_path / "again.yaml"
        again.write_text(text)
        assert main(["config", str(again)]) == 0
        assert capsys.readouterr().out == text
    assert "Grün" not in text  # which is escaped too, where anything has to be


def test_there_is_one_door_to_the_terminal() -> None:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and re.fullmatch(r"print|sys\.std\w+\.write", ast.unparse(node.func)):
                found.add(path.name)
    assert found == {"printable.py"}


def test_lines_go_where_they_were_sent(capsys: pytest.CaptureFixture) -> None:
    stream = io.StringIO()
    show("a\nb", "c", file=stream)
    show("d")
    assert stream.getvalue() == "a\\nb\nc\n"
    assert capsys.readouterr().out == "d\n"
