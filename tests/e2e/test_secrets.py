"""Secrets planted in every key that may hold an address, and in the environment, appear in nothing that is written."""

import logging
import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from range_server import RangeServer
from runs import make_digits, write_config

from distgan.cli.main import main
from distgan.config.load import load, to_yaml
from distgan.config.records import without_secrets
from distgan.errors import DataError
from distgan.storage.backends import RefusedError
from distgan.storage.byte_ranges import ByteRangeReader
from distgan.storage.urls import public, public_text

CANARY = "CaNaRy7"
WHERE = ("user", "password", "token", "query", "value", "fragment", "pipe")
ODD = st.text("{}[]()<>,;:'\"` /\\?#&=@%$|!*~^+._-aZ9ü", max_size=6)


@given(before=ODD, after=ODD, where=st.sampled_from(WHERE))
@example(before="a/", after="/b", where="password")
@example(before="a?", after="", where="password")
@example(before="a@", after="@b/", where="password")
@example(before="", after=":@", where="value")
@example(before="/:", after="://", where="user")
@example(before="a/:", after="://", where="user")
@example(before="::", after="", where="user")
@example(before="::", after="://", where="value")
@example(before="a::", after="://b", where="password")
def test_no_character_lets_a_secret_out(before: str, after: str, where: str) -> None:
    secret = f"{before}{CANARY}{after}"
    url = {
        "user": f"s3://{secret}:p@host/{{0..1}}.tar",
        "password": f"s3://user:{secret}@host/{{0..1}}.tar",
        "token": f"https://{CANARY}@host/0.tar",
        "query": f"https://host/a,b.tar?{secret}",
        "value": f"simplecache::https://host/it's.tar?a=1&sig={secret}",
        "fragment": f"https://host/a b.tar#{secret}",
        "pipe": f"pipe:curl -H '{secret}' https://host",
    }[where]
    for text in (url, f"data.shards={url}", f"data.shards=[a.tar, {url}, b.tar]", f"/a.tar::{url}", f"x {url} y"):
        assert CANARY not in public(text), text
    assert CANARY not in public_text(f"[Errno 2] {url}: not found ({secret}, {url!r})", url)
    assert public(public(url)) == public(url)


@pytest.mark.parametrize(
    "text",
    [
        "/data/{00..10}/a?[1].tar",
        "s3://bucket/data@v2/0.tar",
        "hf://datasets/u/r@main/0.tar",
        "https://host:80/0.tar",
        "data.shards=[gs://a/0.tar,gs://a/1.tar]",
        "augment.pipe=ada",
        "https://h/0.tar::https://h/1.tar",
    ],
)
def test_what_has_no_secret_is_kept(text: str) -> None:
    assert public(text) == text
    assert public_text(f"{text} is gone; why?", text) == f"{text} is gone; why?"


def test_every_key_is_recorded_without_secrets(tmp_path: Path) -> None:
    url = f"s3://key:{CANARY}/x@bucket/a,b.tar?sig={CANARY}"
    config = load(
        str(write_config(tmp_path / "c.yaml", Path("x"))),
        [f"{key}='{url}'" for key in ("eval.reference", "eval.weights", "run.dir", "run.resume", "data.cache_dir")]
        + [f"wandb.{key}='{url}'" for key in ("notes", "name", "group", "project", "entity")]
        + [f"data.shards=['{url}','pipe:curl {CANARY}']", f"wandb.tags=['{url}']", "data.allow_pipe=true"],
    )
    told = to_yaml(without_secrets(config))
    assert CANARY not in told
    assert told.count("s3://bucket/a,b.tar") == 12
    assert "allow_pipe: false" in told


@pytest.mark.parametrize("kind", [RefusedError, ConnectionError])
def test_what_a_driver_says_is_shown_without_secrets(kind: type[Exception], caplog: pytest.LogCaptureFixture) -> None:
    url = f"s3://key:{CANARY}/x@bucket/0.tar?sig=T{CANARY}"

    class Driver:
        def size(self, url: str) -> int:
            raise kind(f"cannot open {url}: bucket {CANARY}/x@bucket, query sig=T{CANARY}")

    source = ByteRangeReader(timeout_sec=0.1)
    source._remote["s3"] = Driver()
    with caplog.at_level(logging.WARNING), pytest.raises(DataError, match=r"s3://bucket/0\.tar") as caught:
        source.size(url)
    assert CANARY not in str(caught.value) + caplog.text


def written(folder: Path) -> list[Path]:
    """Files, and names, that hold a canary."""
    return [p for p in folder.rglob("*") if CANARY in p.name or (p.is_file() and CANARY.encode() in p.read_bytes())]


def test_nothing_that_commands_write_print_or_send_holds_a_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    import wandb  # takes seconds, also where this test is only collected

    wandb.teardown()  # the client keeps the settings of earlier tests, their mode among them
    digits, out = make_digits(tmp_path / "digits"), tmp_path / "out"
    out.mkdir()
    for name in ("AWS_SECRET_ACCESS_KEY", "SLURM_JWT", "GITHUB_TOKEN", "WDS_TOKEN", "HF_TOKEN"):
        monkeypatch.setenv(name, CANARY)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("DISTGAN_CACHE", str(out / "cache"))
    monkeypatch.chdir(out)
    files = {f"/{path.name}": path.read_bytes() for path in digits.iterdir() if path.suffix in (".tar", ".index")}
    config, run = write_config(tmp_path / "tiny.yaml", Path("unused")), out / "run"
    with RangeServer(files) as server:
        place = server.address.replace("//", f"//user:{CANARY}@")
        tars = [f"{place}{name}?sig={CANARY},x" for name in sorted(files) if name.endswith(".tar")]
        shards = str(tars)
        gone = f"['{place}/none.tar?sig={CANARY}']"
        own = [str(config), f"run.dir={run}", "data.timeout_sec=30", "train.images=240"]
        toy = ["eval.extractor=toy", "eval.num_images=32", "eval.metrics=[fd]", "data.timeout_sec=30"]
        reference = f"eval.reference={place}/000000.tar?sig={CANARY}"
        commands = [
            ["check", *own, f"data.shards={shards}"],
            ["check", *own, f"data.shards={gone}", f"train.batch={place}/x?sig={CANARY}"],
            ["check", *own, f"data.shards={gone}"],
            ["train", *own, f"data.shards={shards}", reference, f"wandb.notes=see {place}/x?sig={CANARY}"],
            ["train", *own, f"data.shards={gone}"],
            ["train", *own, f"data.shards='pipe:curl {CANARY}'"],
            ["train", *own, f"data.shards='pipe:echo {CANARY} >&1; exit 3'", "data.allow_pipe=true"],
            ["train", *own, "data.shards='http://host/${oc.env:SLURM_JWT}'"],
            ["evaluate", str(run), reference, "data.shards=" + shards, *toy],
            ["evaluate", str(run), f"eval.reference={place}/none.tar?sig={CANARY}", *toy],
            ["generate", str(run), "--num", "4", "--out", "made"],
            ["generate", str(run), "--num", "4", "--out", "shards", "--as", "shards"],
            ["generate", f"{place}/run?sig={CANARY}", "--num", "4", "--out", "other"],
            ["export", str(run), "exported"],
            ["export", f"{place}/run?sig={CANARY}", "exported2"],
            ["report", str(run)],
            ["report", f"{place}/run?sig={CANARY}"],
            ["plot", str(run)],
            ["plot", f"{place}/run?sig={CANARY}"],
            ["config", *own, f"data.shards={shards}"],
            ["pack", f"{place}/none.tar?sig={CANARY}", "packed"],
            ["index", f"{place}/none.tar?sig={CANARY}"],
            ["doctor", "--json"],
            ["bench", *own, f"data.shards={shards}", "--images", "24", "--rounds", "1"],
            ["bench", *own, f"data.shards={gone}"],
        ]
        outcomes: list[tuple] = []
        for words in commands:
            monkeypatch.setattr("sys.orig_argv", ["python", "-m", "distgan", *words])
            monkeypatch.setattr("sys.argv", ["distgan", *words])
            code = main(words)
            shown = capsys.readouterr()
            assert CANARY not in shown.out + shown.err, words
            assert "Traceback" not in shown.err, words
            assert not written(out), words
            assert code in (0, 2, 3), (words, shown.err)
            outcomes.append((words[0], code, shown.err[-200:], shown.out[-200:]))
    done = {command for command, code, *_ in outcomes if code == 0}
    assert done >= {"check", "train", "evaluate", "generate", "export", "report", "plot", "config", "bench"}, outcomes
    assert (run / "report.html").exists()
    assert list((run / "wandb").rglob("*.wandb"))
    assert os.listdir("made")
