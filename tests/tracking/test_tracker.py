"""The fence round W&B: whatever happens to it, one line says so and the run goes on."""

import sys
import types
from pathlib import Path

import pytest
from runs import make_digits, status, write_config

import distgan.distributed.process_group  # noqa: F401  Accelerate looks for wandb when it is imported: before the stand-in takes its place
from distgan.cli.main import main
from distgan.tracking.console import console_line


class Client(types.ModuleType):
    """A stand-in for wandb that fails where it is told to."""

    def __init__(self, *broken: str):
        super().__init__("wandb")
        self.broken, self.modes, self.rows, self.exit_code = broken, [], [], None
        self.grids: dict[int, set[str]] = {}  # by step
        self.summary: dict[str, object] = {}
        self.dir, self.url = "run/files", "the page"
        self.Settings = type("Settings", (), {"model_fields": {}})

    def _may_fail(self, what: str) -> None:
        if what in self.broken:
            raise OSError(f"{what} is broken\nby design")

    def login(self, prompt: bool, verify: bool) -> bool:
        self._may_fail("login")
        return "key" not in self.broken

    def init(self, mode: str, **_: object) -> "Client":
        self.modes.append(mode)
        self._may_fail(f"init {mode}")
        return self

    def define_metric(self, *_: object, **__: object) -> None: ...

    def teardown(self) -> None: ...

    def Image(self, path: str, caption: str) -> str:
        return path

    def log(self, values: dict, step: int, commit: bool) -> None:
        self._may_fail("log")
        self.rows.append(step)
        self.grids[step] = {name for name in values if name.startswith("Samples/")}
        assert values["Progress/kimg"] == step / 1000

    def alert(self, *_: object) -> None:
        self._may_fail("alert")

    def finish(self, exit_code: int) -> None:
        self._may_fail("finish")
        self.exit_code = exit_code


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_digits(tmp_path_factory.mktemp("data") / "digits")


@pytest.mark.parametrize(
    ("broken", "modes", "told"),
    [
        ((), ["online"], "wandb: the page"),
        (("key",), ["offline"], "wandb: offline (no API key). View:"),
        (("login",), ["offline"], "wandb: offline (OSError: login is broken by design)"),
        (("init online",), ["online", "offline"], "offline (OSError: init online is broken by design)"),
        (("init online", "init offline"), ["online", "offline"], "wandb: could not start (OSError: init offline"),
        (("log",), ["online"], "wandb: log failed (OSError: log is broken by design); continuing without it"),
        (("finish",), ["online"], "wandb: finish failed"),
    ],
    ids=["all is well", "no key", "bad key", "no network", "nothing works", "log", "finish"],
)
def test_no_fault_of_the_client_stops_a_run(
    broken: tuple[str, ...], modes: list[str], told: str, tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, run = Client(*broken), tmp_path / "run"
    monkeypatch.setitem(sys.modules, "wandb", client)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    config = write_config(tmp_path / "tiny.yaml", digits)
    assert main(["train", str(config), f"run.dir={run}", "train.images=72", "train.tick=24"]) == 0
    assert status(run)["state"] == "finished"
    assert client.modes == modes
    assert (run / "log.txt").read_text().count(told) == 1
    if not broken:
        assert client.rows == [0, 24, 48, 72]
        assert client.grids[0] >= {"Samples/reals", "Samples/fakes_ema"}  # of the networks as they begin
        assert (client.exit_code, client.summary) == (0, {"images": 72, "state": "finished"})


def test_a_missing_client_stops_no_run(tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # as where it is not installed
    monkeypatch.delenv("WANDB_MODE", raising=False)
    config, run = write_config(tmp_path / "tiny.yaml", digits), tmp_path / "run"
    assert main(["train", str(config), f"run.dir={run}", "train.images=120"]) == 0
    assert "wandb: could not start" in (run / "log.txt").read_text()


def test_a_resumed_run_sends_no_row_twice(tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    config, run, clients = write_config(tmp_path / "tiny.yaml", digits), tmp_path / "run", [Client(), Client()]
    for client, images in zip(clients, (60, 96)):
        monkeypatch.setitem(sys.modules, "wandb", client)
        own = [f"run.dir={run}", f"train.images={images}", "train.tick=12", "checkpoint.every=24"]
        assert main(["train", str(config), *own]) == 0
        # The newest checkpoint is lost, so that the next start repeats rows that were sent before.
        (run / "checkpoints" / "step-000000000060" / "G.safetensors").unlink(missing_ok=True)
    assert clients[0].rows + clients[1].rows == list(range(0, 97, 12))


def test_a_line_for_a_person() -> None:
    row = {
        "Progress/images": 25_000, "Perf/total_hours": 0.5, "Perf/sec_per_kimg": 72.0, "Perf/img_per_sec": 13.9,
        "Loss/D": 1.25, "Loss/G": 0.5, "Loss/r1": 0.125, "Logits/real_minus_fake": 2.0,
        "Logits/D_accuracy": 0.875, "Perf/data_wait_pct": 3.0, "Resources/cpu_mem_gb": 1.5,
    }  # fmt: skip
    line = console_line(row, 100_000)
    assert line == (
        "kimg 25.0/100  25.0% | 30m 00s eta 1h 30m | 72 s/kimg 14 img/s | D 1.250 G 0.500 r1 0.125 "
        "| gap 2.00 acc 0.88 | data 3% mem 1.5G"
    )
    assert "eta 10m 00s" in console_line(row, 100_000, max_minutes=40)  # whatever ends first
    assert "eta 1h 30m" in console_line(row, 100_000, max_minutes=1000)
    assert "eta 2d 01h" in console_line(row, 25_000 + 2_450_000)
    assert "100.0% | 30m 00s eta 0m 00s" in console_line(row, 24_990)  # the last batch goes beyond
