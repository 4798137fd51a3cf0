"""`distgan compare`: the same budget for all, what is done is not done again, and differences with their interval."""

import json
import math
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from made_runs import make_run, rows
from processes import ROOT

from distgan.cli.main import main
from distgan.config.load import load, to_yaml
from distgan.config.records import for_records
from distgan.tools.compare import compare
from distgan.tools.compare.statistics import paired_difference, spread, t_975


def write_configs(folder: Path, **more: str) -> list[str]:
    """Two configs of one kind of data, and a third one with another setting."""
    settings = {"a": "optim: {D: {lr: 1e-3}}", "b": "optim: {D: {lr: 1e-4}}"} | more
    shared = "data: {shards: synthetic, resolution: 32}\neval: {extractor: toy, num_images: 500, metrics: [kid]}\n"
    for name, text in settings.items():
        (folder / f"{name}.yaml").write_text(f"{shared}{text}\n")
    return [str(folder / f"{name}.yaml") for name in settings]


class Programs:
    """What `compare` would start, done at once: trainings of given exit codes, and evaluations of known values."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trained: list[str] = []
        self.evaluated: list[str] = []
        self.codes: dict[str, int] = {}
        monkeypatch.setattr(compare, "_run", self.run)

    def run(self, command: list[str]) -> int:
        if "evaluate" in command:
            return self.evaluate(command[command.index("evaluate") + 1 :])
        config = load(command[command.index("train") + 1], command[command.index("train") + 2 :])
        folder = Path(config.run.dir)
        name = f"{folder.parent.name} {config.train.seed}"
        self.trained.append(name)
        if code := self.codes.get(name, 0):
            return code
        if not folder.exists():
            make_run(folder, rows(2, every=1000))
        (folder / "config.yaml").write_text(to_yaml(for_records(config)))
        (folder / "status.json").write_text(json.dumps({"state": "finished", "images": 2000}))
        return 0

    def evaluate(self, words: list[str]) -> int:
        folder, settings = Path(words[0]), words[1 : words.index("--seeds")]
        self.evaluated.append(f"{folder.parent.name} {folder.name}")
        seed = int(folder.name.removeprefix("seed-"))
        kid = {"a": [1.0, 2.0, 4.0], "b": [1.5, 2.7, 4.6]}[folder.parent.name][seed]
        report = {
            "asked": {"settings": settings, "seeds": int(words[words.index("--seeds") + 1])},
            "subject": {"images": 2000},
            "values": {"kid_toy_500": {"mean": kid}, "kid_subset_std_toy_500": {"mean": 0.1}},
        }
        Path(words[words.index("--out") + 1]).write_text(json.dumps(report))
        return 0


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Programs:
    return Programs(monkeypatch)


def test_recipes_are_compared_seed_by_seed_and_what_is_done_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], programs: Programs
) -> None:
    out = tmp_path / "out"
    command = ["compare", *write_configs(tmp_path), "train.images=2k", "--out", str(out)]
    assert main(command) == 0
    assert programs.trained == ["a 0", "b 0", "a 1", "b 1", "a 2", "b 2"]
    told = capsys.readouterr().out
    (line,) = [line for line in told.splitlines() if line.startswith("kid_toy_500")]
    assert " ".join(line.split()) == "kid_toy_500 2.333 ± 1.528 2.933 ± 1.563 +0.6 [0.3516, 0.8484] worse"
    assert "std" not in told  # which is neither good nor bad
    found = json.loads((out / "compare.json").read_text())
    assert found["recipes"]["a"]["seeds"]["2"]["kid_toy_500"] == 4
    difference = found["differences"]["b - a"]["kid_toy_500"]
    reach = 4.3027 * 0.1 / math.sqrt(3)  # differences 0.5, 0.7, 0.6: a standard deviation of 0.1
    assert difference["interval"] == pytest.approx([0.6 - reach, 0.6 + reach], abs=1e-6)
    assert "2.333 ± 1.528" in (out / "compare.html").read_text()

    programs.trained.clear()
    programs.evaluated.clear()
    assert main([*command, "--seeds", "2"]) == 0
    assert programs.trained == programs.evaluated == []
    assert main([*command, "--seeds", "1", "--evaluations", "4"]) == 0  # other evaluations: these are made
    assert (programs.trained, programs.evaluated) == ([], ["a seed-0", "b seed-0"])
    assert main([*command, "--seeds", "1", "eval.num_images=600"]) == 0
    assert main([word.replace("=2k", "=3k") for word in command] + ["--seeds", "1"]) == 0  # a larger budget: goes on
    assert programs.trained == ["a 0", "b 0"]
    capsys.readouterr()
    assert main([*command, "train.batch=32"]) == 2
    assert "a/seed-0 was trained with train.batch=64, " in capsys.readouterr().err


def test_a_training_that_fails_costs_its_seed_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], programs: Programs
) -> None:
    programs.codes = {"b 1": 4, "a 2": 3}
    command = ["compare", *write_configs(tmp_path), "train.images=2k", "--out", str(tmp_path / "out")]
    assert main(command) == 4
    last = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("seeds"))
    assert "2 of 3 (ended with 3)" in last
    assert "2 of 3 (diverged)" in last
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert found["differences"]["b - a"]["kid_toy_500"]["num"] == 1  # seed 0 alone has both
    assert found["recipes"]["b"]["seeds"]["1"] == {"state": "diverged"}
    programs.codes = {}
    assert main(command) == 0  # which trains those again


@pytest.mark.parametrize("code", [75, 130])
def test_a_signal_ends_it_and_the_same_command_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], programs: Programs, code: int
) -> None:
    programs.codes = {"b 0": code}
    command = ["compare", *write_configs(tmp_path), "train.images=2k", "--out", str(tmp_path / "out"), "--seeds", "1"]
    assert main(command) == code
    assert "the same command continues" in capsys.readouterr().out
    programs.codes = {}
    assert main(command) == 0
    assert programs.trained == ["a 0", "b 0", "b 0"]


def test_signals_reach_what_was_started_once() -> None:
    child = (
        "import signal, sys, time; seen = []; signal.signal(signal.SIGINT, lambda *_: seen.append(1))\n"
        "print('up', flush=True)\n"
        "while not seen: time.sleep(0.05)\n"
        "time.sleep(0.5); sys.exit(70 + len(seen))"
    )
    own = "import sys; from distgan.tools.compare.compare import _run;"
    program = f"{own} sys.exit(_run([sys.executable, '-c', {child!r}]))"
    started = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    stop = threading.Timer(60, started.kill)
    stop.start()
    try:
        assert started.stdout.readline() == "up\n"
        started.send_signal(signal.SIGINT)
        assert started.wait() == 71
    finally:
        stop.cancel()
        started.kill()


def test_an_array_job_gets_a_line_for_each_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], programs: Programs
) -> None:
    command = ["compare", *write_configs(tmp_path), "wandb.name=a b", "--out", str(tmp_path / "out"), "--seeds", "2"]
    assert main([*command, "--list"]) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert [line[2] for line in lines] == [f"run.dir={tmp_path}/out/{x}/seed-{i}" for i in range(2) for x in "ab"]
    assert all(line[1] == "wandb.name=a b" for line in lines)
    assert programs.trained == []


@pytest.mark.parametrize(
    ("third", "words", "told"),
    [
        ("train: {images: 5k}", [], "train.images is 1000000 in"),
        ("eval: {num_images: 600}", [], "eval.num_images is 500 in"),
        ("data: {resolution: 64}", [], "data.resolution is 32 in"),
        ("data: {shards: elsewhere}", [], "data.shards is [synthetic] in"),
        ("", ["train.seed=3"], "train.seed=3: `compare` sets it"),
        ("", ["run.dir=x"], "run.dir=x: `compare` sets it"),
        ("", ["--seeds", "0"], "--seeds 0: at least 1"),
        ("", ["--evaluations", "0"], "--evaluations 0: at least 1"),
        ("", ["--launch", "'"], "--launch ': No closing quotation"),
        ("", ["los.name=hinge"], "los.name"),
    ],
)
def test_what_is_no_comparison_is_refused_before_anything_starts(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    programs: Programs,
    third: str,
    words: list[str],
    told: str,
) -> None:
    first, second = write_configs(tmp_path)[:2]
    group, _, inner = third.partition(": {")
    if third:
        text = Path(second).read_text()
        Path(second).write_text(f"base: {first}\n{group}: {{{inner}\n" if group in text else f"{text}{third}\n")
    assert main(["compare", first, second, *words, "--out", str(tmp_path / "out")]) == 2
    assert told in capsys.readouterr().err
    assert programs.trained == []
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_way_is_told_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], programs: Programs
) -> None:
    (tmp_path / "out").touch()
    assert main(["compare", *write_configs(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "is a file: name a folder" in capsys.readouterr().err
    assert programs.trained == []


def test_two_configs_of_one_name_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [write_configs(folder)[0] for folder in (tmp_path / "x", tmp_path / "y") if folder.mkdir() is None]
    assert main(["compare", *paths, "--out", str(tmp_path / "out")]) == 2
    assert "are both called a: rename one of the files" in capsys.readouterr().err


def test_quantiles_of_students_distribution() -> None:
    p = 0.95
    assert t_975(1) == pytest.approx(math.tan(math.pi * p / 2), rel=1e-4)
    assert t_975(2) == pytest.approx(p * math.sqrt(2 / (1 - p**2)), rel=1e-4)
    a = 1 - p**2  # of four degrees of freedom, in closed form
    q = math.cos(math.acos(math.sqrt(a)) / 3) / math.sqrt(a)
    assert t_975(4) == pytest.approx(2 * math.sqrt(q - 1), rel=1e-4)
    assert t_975(11) == pytest.approx(2.2010, abs=2e-3)  # of tables
    assert t_975(30) == pytest.approx(2.0423, abs=1e-3)
    assert t_975(10**6) == pytest.approx(1.95996, abs=1e-4)
    assert all(t_975(n) > t_975(n + 1) for n in range(1, 60))


def test_one_pair_has_no_interval_and_no_pair_no_difference() -> None:
    assert paired_difference({0: 1.0, 1: 5.0}, {1: 7.0, 2: 0.0}).mean == 2
    assert paired_difference({0: 1.0}, {0: 2.0}).interval is None
    assert paired_difference({0: 1.0}, {1: 2.0}) is None
    assert spread([]) is None
    assert spread([3.0]).sd is None


@pytest.mark.slow
def test_two_recipes_are_trained_and_evaluated(tmp_path: Path) -> None:
    small = "model: {G: {base_channels: 8}, D: {base_channels: 8}}\ntrain: {batch: 16, images: 64, tick: 16}"
    paths = write_configs(tmp_path, a=small, b="base: a.yaml\noptim: {D: {lr: 1e-4}}")
    assert main(["pack", str(ROOT / "distgan/data/digits.npz"), str(tmp_path / "data"), "--resolution", "32"]) == 0
    more = [f"data.shards={tmp_path}/data", "eval.num_images=100", "--seeds", "2"]
    command = [sys.executable, "-m", "distgan", "compare", *paths, *more]
    done = subprocess.run([*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert found["differences"]["b - a"]["kid_toy_100_full"]["num"] == 2
