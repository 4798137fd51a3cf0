"""A program's own part in a run: when its callbacks are called, how they stop it, and what their errors do."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from runs import make_digits, write_config

import distgan
from distgan.errors import ConfigError, DistganError


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_digits(tmp_path_factory.mktemp("data") / "digits")


@pytest.fixture
def config(tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """What a YAML file holds."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    values = OmegaConf.to_container(OmegaConf.load(write_config(tmp_path / "tiny.yaml", digits)))
    values["run"] = {"dir": str(tmp_path / "run")}
    return values


class Diary(distgan.Callback):
    """Writes down what is called, at which image; asks to stop in a method, or raises."""

    def __init__(self, stop_in: str = "", raise_in: str = "") -> None:
        self.lines: list[tuple[str, int]] = []
        self.given: dict[str, object] = {}
        self._stop_in, self._raise_in = stop_in, raise_in

    def _note(self, name: str, trainer: object, *given: object) -> bool:
        self.lines.append((name, trainer.state.images))
        self.given[name] = given
        if name == self._raise_in:
            raise RuntimeError("mine")
        return name == self._stop_in

    def on_start(self, trainer: object) -> None:
        self._note("start", trainer)

    def on_step(self, trainer: object) -> bool:
        return self._note("step", trainer)

    def on_tick(self, trainer: object, metrics: Mapping[str, float]) -> bool:
        return self._note("tick", trainer, metrics)

    def on_sample(self, trainer: object) -> bool:
        return self._note("sample", trainer)

    def on_evaluate(self, trainer: object, values: Mapping[str, float | None]) -> bool:
        return self._note("evaluate", trainer, values)

    def on_checkpoint(self, trainer: object, path: Path) -> bool:
        return self._note("checkpoint", trainer, path)

    def on_stop(self, trainer: object, reason: object) -> None:
        self._note("stop", trainer, reason)


def status(config: dict) -> dict:
    return json.loads((Path(config["run"]["dir"]) / "status.json").read_text())


def settings(batch: int, images: int, every: int) -> list[str]:
    due = (f"train.tick={every}", f"sample.every={every}", f"eval.every={every}", f"checkpoint.every={every}")
    return [f"train.batch={batch}", f"train.images={images}", *due, "eval.extractor=toy", "eval.num_images=30"]


def test_each_is_called_when_it_is_due_in_this_order(config: dict) -> None:
    diary = Diary()
    assert distgan.train(config, *settings(8, 32, 16), "eval.metrics=[fd]", callbacks=[diary]) == 0
    due = ["evaluate", "sample", "tick", "checkpoint", "step"]
    steps = [("step", 8), *((name, 16) for name in due), ("step", 24), *((name, 32) for name in due)]
    assert diary.lines == [("start", 0), *steps, ("stop", 32)]
    assert "Loss/D" in diary.given["tick"][0]
    assert any(key.startswith("Metrics/fd_toy") for key in diary.given["evaluate"][0])
    assert diary.given["checkpoint"][0].name == "step-000000000032"
    assert diary.given["stop"][0].word == "finished"
    again = Diary()
    more = [*settings(8, 40, 16), "eval.metrics=[fd]"]
    assert distgan.train(config, *more, callbacks=[again]) == 0
    assert again.lines[:2] == [("start", 32), ("evaluate", 40)]


@pytest.mark.parametrize("where", ["step", "tick", "sample", "checkpoint"])
def test_a_return_stops_the_run_after_the_next_step(config: dict, where: str) -> None:
    diary = Diary(stop_in=where)
    more = [*settings(8, 800, 16), "eval.every=0"]
    assert distgan.train(config, *more, callbacks=[diary]) == 0
    asked = next(at for name, at in diary.lines if name == where)
    assert diary.lines[-1] == ("stop", asked + 8)
    found = status(config)
    assert (found["state"], found["images"]) == ("finished", asked + 8)
    assert distgan.train(config, *more, f"train.images={asked + 16}") == 0  # and may go on
    assert status(config)["images"] == asked + 16


def test_an_exception_ends_the_run_as_failed_and_what_was_saved_stays(config: dict) -> None:
    with pytest.raises(DistganError, match="mine"):
        distgan.train(config, *settings(8, 800, 16), "eval.every=0", callbacks=[Diary(raise_in="checkpoint")])
    found = status(config)
    assert found["state"] == "failed"
    assert "mine" in found["reason"]
    assert distgan.train(config, *settings(8, 24, 16), "eval.every=0") == 0


def test_callbacks_change_no_bit_of_a_run(config: dict, tmp_path: Path) -> None:
    weights = []
    for name, callbacks in (("a", []), ("b", [Diary()])):
        assert distgan.train(config, *settings(8, 24, 8), f"run.dir={tmp_path}/{name}", callbacks=callbacks) == 0
        weights.append(next((tmp_path / name / "checkpoints").glob("step-*24")))
    for file in ("G", "D", "opt_G"):
        first, second = ((folder / f"{file}.safetensors").read_bytes() for folder in weights)
        assert first == second


def test_a_mapping_is_checked_as_a_file_is(config: dict) -> None:
    for wrong, message in (
        ({**config, "run": {}}, "run.dir: a config without a file needs it"),
        ({**config, "los": {"name": "hinge"}}, "los"),
        ({**config, "data": {**config["data"], "resolution": 7}}, "data.resolution"),
    ):
        with pytest.raises(ConfigError, match=message):
            distgan.train(wrong)
    assert set(dir(distgan)) == {*distgan.__all__, "__version__"}
    assert {"Callback", "Config", "load_config", "load_generator", "open_stream", "train"} <= set(distgan.__all__)
