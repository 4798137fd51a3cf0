"""W&B's own client against a stand-in for its server: what arrives there, and what does when things go wrong."""

import io
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_wandb import FakeWandb
from PIL import Image
from processes import WORKERS, environment, free_port, output, ranks, run_ranks, wait_for
from runs import make_digits, status, write_config

from distgan.config.schema import Wandb
from distgan.storage.run_dir import RunDir
from distgan.tracking import wandb_logger
from distgan.tracking.wandb_logger import WandbLogger, start_wandb
from distgan.tracking.wandb_mode import mode_of_environment


@pytest.fixture(autouse=True)
def fresh_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The client keeps settings and credentials: none of them from elsewhere, and none for the next test."""
    import wandb  # takes seconds, also where these tests are only collected

    wandb.teardown()  # before monkeypatch remembers where its side process listens
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("WANDB_SILENT", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, "true" if name == "WANDB_SILENT" else str(tmp_path / "client"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(wandb_logger, "INIT_SEC", 3)
    yield
    wandb.teardown()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWandb]:
    with FakeWandb() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.address)
        monkeypatch.setenv("WANDB_API_KEY", server.environment["WANDB_API_KEY"])
        yield server


def start(
    folder: Path, config: dict | None = None, on_stop: Callable[[], None] = lambda: None, **settings: object
) -> WandbLogger | None:
    (folder / "wandb").mkdir(parents=True, exist_ok=True)
    return start_wandb(Wandb(**settings), RunDir(folder), config or {}, "abcd", on_stop)


def inspect(run: Path) -> list[dict]:
    """The records of an offline run, by the client's own reader."""
    (folder,) = (run / "wandb").glob("offline-run-*")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("no key", "wandb: offline (no API key). View: wandb leet "),
        ("malformed key", "wandb: offline (AuthenticationError: "),
        ("key refused", "wandb: offline ("),
        ("no server", "wandb: offline ("),
        ("a server that fails", "wandb: offline ("),
        ("a server that hangs", "wandb: offline ("),
        ("asked for offline", "wandb: offline. View: wandb leet "),
        ("asked for by the environment", "wandb: offline. View: wandb leet "),
        ("disabled", ""),
        ("disabled by the environment", ""),
        ("an unknown mode", "wandb: could not start (ValidationError"),
        ("all is well", "wandb: http://127.0.0.1"),
    ],
)
def test_a_mode_for_every_situation(
    case: str,
    told: str,
    tmp_path: Path,
    server: FakeWandb,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Never a question, never an exception, never a long wait, and one line."""
    settings = {}
    if case == "no key":
        monkeypatch.delenv("WANDB_API_KEY")
    elif case == "malformed key":
        monkeypatch.setenv("WANDB_API_KEY", "abc")
    elif case == "no server":
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free_port()}")
    elif case in ("asked for offline", "disabled"):
        settings = {"mode": case.removeprefix("asked for ")}
    elif "environment" in case or "unknown" in case:
        monkeypatch.setenv("WANDB_MODE", {"a": "offline", "d": "disabled"}[case[0]] if "env" in case else "bogus")
    else:
        faults = {"key refused": "refuse", "a server that fails": "500", "a server that hangs": "hang"}
        server.fault = faults.get(case, "")
    began = time.monotonic()
    with caplog.at_level("INFO", "distgan"):
        run = start(tmp_path / "run", **settings)
        if run is not None:
            run.finish(0, {}, 10)
    assert time.monotonic() - began < 100  # a call that hangs takes 120 s, and a busy machine half a minute
    lines = [record.message for record in caplog.records if record.name == "distgan"]
    assert [line[: len(told)] for line in lines] == [told] * bool(told)


def test_what_arrives_at_a_server(tmp_path: Path, server: FakeWandb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    ramp = np.linspace(-1, 1, 64, dtype=np.float32)
    grid = np.repeat(np.tile(((ramp + 1) * 127.5).round().astype(np.uint8), (64, 1))[:, :, None], 3, axis=2)
    run = start(
        tmp_path / "run", {"optim": {"G": {"lr": [1e-3]}}}, tags=["a"], group="g", notes="n", name="x", project="p"
    )
    for images in (100, 200, 300):
        row = {"Progress/kimg": images / 1000, "Loss/D": 1.0, "Metrics/fid": 50.0 - images / 10 + images % 200}
        first = images == 100
        logits = np.histogram([0.0, 1.0, 1.0], bins=2)
        run.log(
            images, row, {"Samples/fakes_ema": grid} if first else {}, {"Hist/logits_real": logits} if first else {}
        )
    run.alert("New best", "fid", "INFO")
    run.finish(0, {"images": 300}, 30)
    assert [row["_step"] for row in server.rows] == [100, 200, 300]
    assert [row["Progress/kimg"] for row in server.rows] == [0.1, 0.2, 0.3]
    assert server.rows[0]["Hist/logits_real"] == {"_type": "histogram", "values": [1, 2], "bins": [0.0, 0.5, 1.0]}
    assert server.alerts == ["New best"]
    told = server.runs[0]
    assert (told["project"], told["displayName"], told["groupName"], told["tags"]) == ("p", "x", "g", ["a"])
    assert json.loads(told["config"])["optim"]["value"] == {"G": {"lr": [1e-3]}}
    (picture,) = [data for name, data in server.files.items() if name.endswith(".jpg")]
    sent = np.asarray(Image.open(io.BytesIO(picture))).astype(int)
    assert np.abs(sent - grid).max() <= 3  # neither black nor scaled twice
    (summary,) = [json.loads(data) for name, data in server.files.items() if name.endswith("wandb-summary.json")]
    assert summary["Metrics/fid"] == {"min": 30.0, "last": 120.0} or summary["Metrics/fid.min"] == 30.0


@pytest.mark.parametrize(("policy", "num"), [("none", 0), ("reference", 2), ("best", 1), ("all", 2)])
def test_checkpoints_become_artifacts_by_policy(policy: str, num: int, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = start(folder, mode="offline", checkpoints=policy)
    for images, is_best in ((100, False), (200, True)):
        path = folder / "checkpoints" / f"step-{images:012d}"
        path.mkdir(parents=True)
        for name in ("G.safetensors", "G_ema.safetensors"):
            (path / name).write_bytes(b"w" * 100_000)
        run.log_checkpoint(path, images, is_best)
    run.finish(0, {}, 30)
    found = [record for record in inspect(folder) if "artifact" in json.dumps(record)[:200]]
    assert len(found) == num
    copies = [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size == 100_000]
    assert len({path.stat().st_ino for path in copies}) == 4  # other names at most, no copies
    assert not (tmp_path / "home").exists() or not any((tmp_path / "home").rglob("*.safetensors"))


def test_a_server_that_begins_to_hang_delays_nobody(
    tmp_path: Path, server: FakeWandb, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(wandb_logger, "FINISH_SEC", 12)
    run = start(tmp_path / "run")
    server.fault = "hang"
    began = time.monotonic()
    for images in range(1, 201):
        run.log(images, {"Progress/kimg": images / 1000}, {}, {})
    assert time.monotonic() - began < 60  # where one waits for the server, 120 s
    run.finish(0, {}, 12)
    assert time.monotonic() - began < 100
    assert [
        r.message for r in caplog.records if "continuing without it. What has not arrived: for part in" in r.message
    ]


def test_a_resumed_run_goes_on_in_strictly_rising_steps(tmp_path: Path, server: FakeWandb) -> None:
    """The server knows rows up to 200; the tracker's part is to send none before that again."""
    server.known = [{"_step": 100, "Loss/D": 1}, {"_step": 200, "Loss/D": 1}]
    run = start(tmp_path / "run", {"train": {"images": 900}})
    for images in (300, 400):
        run.log(images, {"Progress/kimg": images / 1000}, {}, {})
    run.finish(0, {}, 30)
    assert [row["_step"] for row in server.rows] == [300, 400]


def test_the_stop_button_is_heard(tmp_path: Path, server: FakeWandb) -> None:
    pressed = threading.Event()
    run = start(tmp_path / "run", on_stop=pressed.set)
    server.stopped = True
    assert pressed.wait(90)
    run.finish(0, {}, 30)


@pytest.mark.slow
@pytest.mark.multi
def test_the_stop_button_ends_a_run_with_a_checkpoint(tmp_path: Path, server: FakeWandb) -> None:
    config = write_config(tmp_path / "tiny.yaml", make_digits(tmp_path / "digits"))
    run, log = tmp_path / "run", tmp_path / "log"
    command = ["-m", "distgan", "train", str(config), "train.images=10M", f"run.dir={run}"]
    own = {name: value for name, value in server.environment.items() if value} | {"WANDB_MODE": "online"}
    with ranks(1, command, log, **own) as (process,):
        wait_for(lambda: server.rows, told=lambda: output(log))
        server.stopped = True
        assert process.wait(90) == 0, output(log)
    assert status(run)["state"] == "finished"
    assert (run / "checkpoints" / status(run)["checkpoint"]).is_dir()
    steps = [row["_step"] for row in server.rows]
    assert steps == sorted(set(steps))
    assert steps[-1] == status(run)["images"]


@pytest.mark.multi
def test_a_run_that_goes_back_sends_no_step_twice(tmp_path: Path, server: FakeWandb) -> None:
    config = write_config(tmp_path / "tiny.yaml", make_digits(tmp_path / "digits"))
    run, log = tmp_path / "run", tmp_path / "log"
    fault = [
        str(WORKERS / "nan_run.py"),
        "700",
        "1",
    ]  # before a checkpoint, after two lines that came since one
    more = ["train.images=960", "train.batch=24", "train.on_nan=rollback", "train.tick=60", f"run.dir={run}"]
    own = {name: value for name, value in server.environment.items() if value} | {"WANDB_MODE": "online"}
    assert run_ranks(1, [*fault, "train", str(config), *more], log, **own) == [0], output(log)
    assert "rolling back to step-000000000480" in output(log)
    steps = [row["_step"] for row in server.rows]
    assert steps == sorted(set(steps))
    assert [row["Progress/kimg"] * 1000 for row in server.rows] == steps
    written = [json.loads(line)["Progress/images"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert written == sorted(set(written))
    assert set(steps) == {0, *written}  # the pictures of 0 kimg have a step, and no line of metrics


@pytest.mark.slow
@pytest.mark.multi
def test_a_killed_run_loses_no_more_than_two_seconds_of_its_record(tmp_path: Path) -> None:
    config = write_config(tmp_path / "tiny.yaml", make_digits(tmp_path / "digits"))
    run, log = tmp_path / "run", tmp_path / "log"
    command = ["-m", "distgan", "train", str(config), "train.images=10M", f"run.dir={run}", "train.tick=60"]
    with ranks(1, command, log, WANDB_MODE="offline") as (process,):
        wait_for(lambda: (run / "metrics.jsonl").exists(), told=lambda: output(log))
        time.sleep(random.uniform(1, 5))
        process.kill()
        process.wait()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    assert len(lines) - len(rows) <= 1  # the line that was being written
    items = [record["history"]["item"] for record in inspect(run) if "history" in record]
    recorded = [item["Perf/total_hours"] for item in items if "Perf/total_hours" in item]  # not that of 0 kimg
    assert (rows[-1]["Perf/total_hours"] - recorded[-1]) * 3600 < 2


SUSPENDED = """
import os, signal, sys, threading, time
from pathlib import Path
import psutil
from distgan.cli.main import main
from distgan.tracking import wandb_logger
wandb_logger.CALL_SEC, wandb_logger.FINISH_SEC = 2, 3
def suspend():
    while not Path("{run}/metrics.jsonl").exists():
        time.sleep(0.05)
    for child in psutil.Process().children():
        if child.name() == "wandb-core":
            child.suspend()
threading.Thread(target=suspend, daemon=True).start()
sys.exit(main(["train", "{config}", "run.dir={run}", "train.images=600"]))
"""


@pytest.mark.slow
@pytest.mark.multi
def test_a_client_whose_side_process_hangs_ends_with_the_run(tmp_path: Path) -> None:
    """It would be waited for when Python exits, and hold all machines."""
    config = write_config(tmp_path / "tiny.yaml", make_digits(tmp_path / "digits"))
    script = SUSPENDED.format(run=tmp_path / "run", config=config)
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(WANDB_MODE="offline"), capture_output=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert done.stdout.count(b"wandb: finish takes longer than 3 s; continuing without it") == 1


@pytest.mark.parametrize(
    ("variables", "mode"),
    [
        ({}, ("", "")),
        ({"WANDB_DISABLED": "true"}, ("disabled", "WANDB_DISABLED")),
        ({"WANDB_DISABLED": "1", "WANDB_MODE": "online"}, ("disabled", "WANDB_DISABLED")),
        ({"WANDB_DISABLED": "false", "WANDB_MODE": "offline"}, ("offline", "WANDB_MODE")),
        ({"WANDB_MODE": "dryrun"}, ("offline", "WANDB_MODE")),
        ({"WANDB_MODE": "bogus"}, ("bogus", "WANDB_MODE")),
    ],
)
def test_variables_of_the_client_are_obeyed(variables: dict[str, str], mode: tuple[str, str]) -> None:
    assert mode_of_environment(variables) == mode
