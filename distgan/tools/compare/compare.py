"""Run a comparison: train what is missing, evaluate it, and write the numbers and the page."""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from distgan.config.load import load
from distgan.config.records import changes, for_records
from distgan.config.schema import Eval
from distgan.errors import ConfigError, DivergedError, MachineError, StopReason
from distgan.storage.atomic import replace_file
from distgan.storage.formatting import table
from distgan.storage.home import user_path
from distgan.storage.printable import show
from distgan.tools.compare.plan import BUDGET, NOT_MEASURED, Training, make_plan
from distgan.tools.compare.results import Result, read_report, rows, summary, values_of
from distgan.tools.report.comparison import comparison_page
from distgan.tools.report.history import History, read
from distgan.tools.report.page import write_page

NUMBERS, PAGE, EVALUATION = "compare.json", "compare.html", "compare-evaluation.json"
ABOUT = "Mean ± standard deviation over seeds; differences seed by seed, with their interval of 95%"
STOPPED = {StopReason.PREEMPTED.exit_code, StopReason.INTERRUPTED.exit_code}


@dataclass(frozen=True)
class CompareOptions:
    """The options of `distgan compare`.

    Attributes:
        out: Folder of the comparison; a training is in RECIPE/seed-N.
        seeds: Number of trainings of each recipe.
        evaluations: Number of evaluations of each, with other latents, whose values are averaged.
        launch: Command that starts a training, to which its arguments are added; empty: one process.
        only_list: Whether to print the arguments of each training, for `slurm/sweep.sbatch`, and do nothing else.
    """

    out: str
    seeds: int = 3
    evaluations: int = 1
    launch: str = ""
    only_list: bool = False


def compare(words: Sequence[str], options: CompareOptions) -> int:
    """Compare recipes; returns the exit code: 0, that of a signal, or that of the first training that failed.

    What is done already is not done again, so the same command continues a comparison that was stopped.

    Args:
        words: Config files, and settings of all of them.

    Raises:
        ConfigError: The recipes cannot be compared, or the folder holds trainings with other settings.
    """
    if options.evaluations < 1:
        raise ConfigError(f"--evaluations {options.evaluations}: at least 1")
    if user_path(options.out).exists() and not user_path(options.out).is_dir():
        raise ConfigError(f"--out {options.out} is a file: name a folder")
    plan = make_plan(words, options.out, options.seeds)
    finished = [_is_finished(training) for training in plan]  # errors before anything starts
    if options.only_list:
        show(*(shlex.join(training.arguments) for training in plan))
        return 0
    results, failed = [], 0
    for number, (training, is_finished) in enumerate(zip(plan, finished), 1):
        state = "trained already" if is_finished else "training"
        show(f"{number} of {len(plan)}: {training.recipe}, seed {training.seed}: {state}")
        code = 0 if is_finished else _run([*_launcher(options.launch), *training.arguments])
        result, code = (_evaluated(training, options.evaluations)) if code == 0 else (_failed(training, code), code)
        if code in STOPPED:
            show("stopped: the same command continues")
            return code
        results.append(result)
        failed = failed or code
        _write(user_path(options.out), results)
    show("", *_printed(results), "", f"numbers: {options.out}/{NUMBERS}, page: {options.out}/{PAGE}")
    return failed


def _launcher(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"--launch {command}: {error}") from None
    return words or [sys.executable, "-m", "distgan", "train"]


def _is_finished(training: Training) -> bool:
    """Return whether a training reached its budget. Raises ConfigError where its folder holds another one."""
    if not (training.folder / "config.yaml").exists():
        return False
    saved = load(str(training.folder / "config.yaml"), is_saved=True)
    free, others = changes(saved, for_records(training.config))
    for key, (old, new) in others.items():
        raise ConfigError(
            f"{training.folder} was trained with {key}={old}, {training.config_path} now has {new}: name another --out"
        )
    return read(training.folder).status.get("state") == "finished" and not any(key in free for key in BUDGET)


def _run(command: Sequence[str]) -> int:
    """Run a command to its end and return its exit code; signals that ask to stop are passed on to it.

    It has a process group of its own: else Ctrl-C would reach it twice, which a training takes as two requests.
    """
    children: list[subprocess.Popen] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        for child in children:
            os.killpg(child.pid, number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        children.append(subprocess.Popen(command, start_new_session=True))
        return children[0].wait()
    except OSError as error:
        raise ConfigError(f"--launch {command[0]}: {error.strerror}") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _evaluated(training: Training, evaluations: int) -> tuple[Result, int]:
    """Return what a finished training gave, evaluated unless it was, and the exit code of that."""
    run, file = read(training.folder), training.folder / EVALUATION
    settings = _settings(training)
    if (report := _report(file, run, settings, evaluations)) is None:
        command = [sys.executable, "-m", "distgan", "evaluate", str(training.folder), *settings]
        command += [word for plugin in training.config.plugins for word in ("--plugin", plugin)]
        code = _run([*command, "--seeds", str(evaluations), "--out", str(file)])
        report = _report(file, run, settings, evaluations)
        if code or report is None:
            code = code or MachineError.exit_code
            return Result(training, f"evaluation ended with {code}"), code
    return Result(training, "finished", values_of(report, run)), 0


def _settings(training: Training) -> list[str]:
    """Return what an evaluation measures, as overrides: a saved run may have other settings of it."""
    own, defaults = asdict(training.config.eval), asdict(Eval())
    named = ("metrics", "num_images")  # without these, `evaluate` takes all metrics, and the number of papers
    changed = {k: v for k, v in own.items() if k not in NOT_MEASURED and (k in named or v != defaults[k])}
    return [f"eval.{key}={json.dumps(value)}" for key, value in changed.items()]


def _report(file: Path, run: History, settings: list[str], evaluations: int) -> dict | None:
    """Return the report of an evaluation if it is of this run's end and of these settings."""
    report = read_report(file)
    if report is None:
        return None
    asked, images = report.get("asked") or {}, (report.get("subject") or {}).get("images")
    is_same = asked.get("settings") == settings and asked.get("seeds") == evaluations
    return report if is_same and images == run.status.get("images") else None


def _failed(training: Training, code: int) -> Result:
    return Result(training, "diverged" if code == DivergedError.exit_code else f"ended with {code}")


def _write(folder: Path, results: Sequence[Result]) -> None:
    """Write the numbers and the page of what there is so far."""
    head, *lines = rows(results)
    runs = [read(one.training.folder) for one in results if (one.training.folder / "config.yaml").exists()]
    try:
        replace_file(folder / NUMBERS, json.dumps(summary(results), indent=1) + "\n")
    except OSError as error:
        raise MachineError(f"--out {folder}: {error.strerror}") from None
    recipes = dict.fromkeys(one.training.recipe for one in results)
    write_page(comparison_page(runs, " and ".join(recipes), [(ABOUT, head, lines)]), folder / PAGE)


def _printed(results: Sequence[Result]) -> list[str]:
    head, *lines = rows(results)
    return [f"{ABOUT}:", *table([head, *lines])]
