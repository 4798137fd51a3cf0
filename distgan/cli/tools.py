"""`distgan plot`, `report`, `compare`, `doctor`, `bench`: what runs wrote, what a machine offers, how fast both are."""

import argparse
import os

from distgan.cli.arguments import Commands, add_command, add_config_arguments
from distgan.cli.process import leave, term_interrupts
from distgan.distributed.launch_env import init_rank_env, rank
from distgan.errors import ConfigError, MachineError
from distgan.storage.printable import show


def add_commands(commands: Commands) -> None:
    """Add plot, report, compare, doctor and bench."""
    _add_plot(commands)
    _add_report(commands)
    _add_compare(commands)
    _add_doctor(commands)
    _add_bench(commands)


def _add_plot(commands: Commands) -> None:
    parser = add_command(
        commands,
        "plot",
        _plot,
        "draw the curves of one or several runs",
        "distgan plot runs/faces",
        "distgan plot runs/hinge runs/r3gan --keys Loss/D,Metrics/kid --out compared.svg",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    where = "plots/curves.png of the run; of several runs, curves.png in the current folder"
    parser.add_argument("--out", default="", help=f".png or .svg (default: {where})")
    parser.add_argument("--keys", default="", metavar="A,B", help="log keys to draw (default: the main curves)")


def _plot(options: argparse.Namespace) -> None:
    from distgan.tools.report.plot import plot

    show(*plot(options.runs, options.out, [key for key in options.keys.split(",") if key]))


def _add_report(commands: Commands) -> None:
    parser = add_command(
        commands,
        "report",
        _report,
        "write a run as one HTML file: samples over time, curves, metrics, data, settings; several runs side by side",
        "distgan report runs/faces",
        "distgan report runs/hinge runs/r3gan --out compared.html",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    where = "report.html of the run; of several runs, report.html in the current folder"
    parser.add_argument("--out", default="", help=f".html file (default: {where})")


def _report(options: argparse.Namespace) -> None:
    from distgan.tools.report.page import report

    show(*report(options.runs, options.out))


def _add_compare(commands: Commands) -> None:
    parser = add_command(
        commands,
        "compare",
        _compare,
        "train recipes with the same seeds and budget, evaluate them alike, and compare the numbers",
        "distgan compare hinge.yaml rpgan.yaml train.images=500k --out compared",
        "distgan compare a.yaml b.yaml --out compared --launch launch/local.sh",
        "distgan compare a.yaml b.yaml --out both --list > runs.txt; sbatch --array=1-6 slurm/sweep.sbatch runs.txt",
    )
    parser.add_argument(
        "overrides", nargs="+", metavar="CONFIG|key=value", help="config files, and settings of all of them"
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where trainings, numbers and the page go")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="trainings of each config (default 3)")
    parser.add_argument(
        "--evaluations", type=int, default=1, metavar="N", help="evaluations of each, averaged (default 1)"
    )
    parser.add_argument(
        "--launch", default="", metavar="COMMAND", help="starts a training, as launch/local.sh (default: one process)"
    )
    parser.add_argument("--list", action="store_true", help="print each training's arguments, for slurm/sweep.sbatch")


def _compare(options: argparse.Namespace) -> int:
    if init_rank_env() > 1:
        raise ConfigError("compare starts its trainings itself: leave the launcher out, and name it by --launch")

    from distgan.tools.compare.compare import CompareOptions, compare

    chosen = CompareOptions(options.out, options.seeds, options.evaluations, options.launch, options.list)
    return compare(options.overrides, chosen)


def _add_doctor(commands: Commands) -> None:
    parser = add_command(
        commands,
        "doctor",
        _doctor,
        "check this machine: GPUs, memory, network, packages",
        "distgan doctor",
        "distgan doctor --json > doctor.json",
    )
    parser.add_argument("--json", action="store_true", help="for a bug report")


def _doctor(options: argparse.Namespace) -> int:
    from distgan.tools.doctor import FAIL, as_json, examine, report

    found = examine()
    show(*(as_json(found).splitlines() if options.json else report(found)))
    return MachineError.exit_code if any(one.state == FAIL for one in found) else 0


def _add_bench(commands: Commands) -> None:
    parser = add_command(
        commands,
        "bench",
        _bench,
        "measure a run: speed, where its time goes, traffic, memory",
        "distgan bench configs/dcgan64.yaml data.shards=synthetic train.batch=16 --baseline bare",
        "distgan bench configs/r3gan-ffhq64.yaml --sweep micro_batch",
    )
    add_config_arguments(parser)
    baseline_help = "a reference to compare with: a bare loop, or every rank alone; may be given twice"
    parser.add_argument("--baseline", action="append", default=[], choices=("bare", "alone"), help=baseline_help)
    parser.add_argument(
        "--scaling", default="", metavar="N,N", help="measure groups of these numbers of ranks on this machine"
    )
    parser.add_argument("--sweep", choices=("micro_batch",), help="find the fastest value that fits into memory")
    parser.add_argument(
        "--images", type=int, default=0, metavar="N", help="images to train on in total (default: some seconds)"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, metavar="N", help="rounds in which references alternate (default 5)"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def _bench(options: argparse.Namespace) -> int:
    from distgan.config.batch_plan import make_batch_plan
    from distgan.config.load import load

    os.environ["WANDB_MODE"] = "disabled"  # which wins over the config
    world = init_rank_env()
    config = load(options.config, options.overrides, more_plugins=options.plugin)
    make_batch_plan(config, world)

    if options.images < 0 or options.rounds < 1:
        raise ConfigError(f"--images {options.images} --rounds {options.rounds}: positive numbers")
    if world > 1 and (options.scaling or options.sweep):
        raise ConfigError("--scaling and --sweep start what they need themselves: leave the launcher out")
    worlds = [int(n) for n in options.scaling.split(",") if n.isdecimal() and int(n) > 0]
    if options.scaling and options.scaling != ",".join(map(str, worlds)):
        raise ConfigError(f"--scaling {options.scaling}: numbers of ranks, such as 1,2,4")

    from distgan.tools.bench.bench import bench
    from distgan.tools.bench.scaling import scaling, sweep
    from distgan.tools.bench.table import report

    with term_interrupts():
        if worlds:
            more = ["--images", str(options.images), "--rounds", str(options.rounds)]
            rows = scaling(config, [options.config, *options.overrides, *more], worlds)
        elif options.sweep:
            rows = sweep(config, options.images)
        else:
            rows = bench(config, options.images, options.baseline, options.rounds)
    if rank() == 0:
        show(*report(rows, world, options.json))
    return leave(0, world)
