"""The commands. Each body imports what it needs, so that a typo is told without waiting for torch."""

import argparse
import difflib
import io
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType

from distgan.cli.arguments import build_parser
from distgan.config.renamed import RENAMED_OPTIONS
from distgan.distributed.launch_env import rank, settle
from distgan.distributed.preemption import listening, was_asked
from distgan.errors import ConfigError, DistganError, MachineError
from distgan.storage.printable import flush_stdout, let_go_of_stderr, open_streams, public_line, show
from distgan.tracking.console import Lines, traceback_lines

RANK_0_SPEAKS_SEC = 10  # a launcher ends all ranks once one is gone: the others leave rank 0 the time to say why


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the process's exit code."""
    open_streams()
    sys.excepthook = _show_error
    if logging.lastResort is not None:  # which shows warnings where a command has set up no log
        logging.lastResort.setFormatter(Lines())
    try:
        return _written(_run(arguments))
    except SystemExit as done:  # argparse's, after --help or a mistake
        raise SystemExit(_written(int(done.code or 0))) from None
    finally:
        let_go_of_stderr()


def _show_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Python's last word on an error that nobody foresaw, as text."""
    show(f"distgan: {kind.__name__}, which was not expected", *traceback_lines(error), file=sys.stderr)


def _written(code: int) -> int:
    """The exit code of a command that is through: another one where stdout lacks what it was told."""
    if not (reason := flush_stdout()):
        return code
    show(f"distgan: stdout: {reason}: not all was written there; the work itself is done", file=sys.stderr)
    return code or MachineError.exit_code


def _run(arguments: Sequence[str] | None) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name may hold bytes that the terminal's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    parser = build_parser()
    words = sys.argv[1:] if arguments is None else arguments
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        near = difflib.get_close_matches(words[0], COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        parser.error(f"{words[0]!r} is not a command: {hint}")
    for word in words[1:]:
        option = word.partition("=")[0]
        if new := RENAMED_OPTIONS.get((words[0], option)):
            parser.error(f"{option}: did you mean {new}?")
    options, rest = parser.parse_known_args(arguments)
    if rest and not hasattr(options, "overrides"):
        parser.error(f"unknown: {' '.join(rest)}; see `distgan {options.command} --help`")
    if rest:  # overrides behind an option: argparse takes only the first run of positional arguments
        options.overrides = [*options.overrides, *rest]
    try:
        return COMMANDS[options.command](options) or 0
    except DistganError as error:
        if error.rank is None and rank() > 0:
            time.sleep(RANK_0_SPEAKS_SEC)  # whoever is still there then has an error that rank 0 has not
            if was_asked():  # the launcher asked this rank to leave, since rank 0 has the same error
                return error.exit_code
        who = error.rank if error.rank is not None else rank()
        named = f"rank {who}: " if error.rank is not None or who > 0 else ""
        first, *others = (public_line(line, *words) for line in error.lines)
        show(f"distgan {options.command}: {named}{first}", *others, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        show(f"distgan {options.command}: interrupted", file=sys.stderr)
        return 130


def _pack(options: argparse.Namespace) -> None:
    from distgan.data.pack import Options, pack, report

    fields = ("resolution", "crop", "filter", "image", "quality", "background", "max_pixels")
    started = time.perf_counter()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up, as after Ctrl-C
    try:
        summary = pack(
            options.source,
            options.out,
            Options(
                **{name: getattr(options, name) for name in fields},
                range=tuple(options.range) if options.range else None,
            ),
            shard_mb=options.shard_mb,
            workers=options.workers,
            labels=not options.no_labels,
            label=options.label,
            part=options.image_part,
            degraded=options.degraded,
            allow_corrupt=options.allow_corrupt,
            overwrite=options.overwrite,
        )
    finally:
        signal.signal(signal.SIGTERM, before)
    show(*report(summary, options.out, time.perf_counter() - started))


def _index(options: argparse.Namespace) -> int:
    from distgan.data.shard_index import describe, load
    from distgan.data.shard_urls import find_shards
    from distgan.storage.byte_ranges import Source, public
    from distgan.storage.home import default_cache_dir

    source, samples, defects = Source(), 0, 0
    urls = find_shards(options.shards)
    for url in urls:
        summary = load(url, source, default_cache_dir() / "index").summary()
        samples += summary["samples"]
        show(describe(url, summary))
        for defect in summary["defects"]:
            defects += 1
            show(f"{public(url)}: CORRUPT: {defect}", file=sys.stderr)
    show(f"{samples:,} samples in {len(urls):,} shard(s), {defects} defect(s)")
    return 3 if defects else 0


def _train(options: argparse.Namespace) -> int:
    from distgan.config.batch_plan import batch_plan
    from distgan.config.load import load

    if options.dry_run:
        return _check(options)
    with listening():
        world = settle()  # first, since it tells which rank this is, and rank 0 alone prints
        config = load(options.config, options.overrides)
        batch_plan(config, world)

        from distgan.training.run import train

        code = train(config)
    return _leave(code, world)


def _leave(code: int, world: int) -> int:
    """End the process of one of several ranks at once, with everything written; of a single one, by returning."""
    if world > 1:
        # While Python shuts down, threads of torch.distributed that ask for it may abort the process.
        code = _written(code)
        sys.stderr.flush()
        os._exit(code)
    return code


def _check(options: argparse.Namespace) -> int:
    from distgan.config.batch_plan import batch_plan
    from distgan.config.load import load

    launched = settle()
    asked = getattr(options, "ranks", None)
    world = launched if asked is None else asked
    if world < 1:
        raise ConfigError(f"--ranks {world}: at least 1")
    config = load(options.config, options.overrides)
    spread = batch_plan(config, world)
    if rank() > 0:
        return 0

    from distgan.tools.check import check

    lines, warnings = check(config, spread)
    show(*lines, *(f"warning: {line}" for line in warnings))
    return 0


def _bench(options: argparse.Namespace) -> int:
    from distgan.config.batch_plan import batch_plan
    from distgan.config.load import load

    os.environ["WANDB_MODE"] = "disabled"  # which wins over the config
    world = settle()
    config = load(options.config, options.overrides)
    batch_plan(config, world)

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

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up, as after Ctrl-C
    try:
        if worlds:
            more = ["--images", str(options.images), "--rounds", str(options.rounds)]
            rows = scaling(config, [options.config, *options.overrides, *more], worlds)
        elif options.sweep:
            rows = sweep(config, options.images)
        else:
            rows = bench(config, options.images, options.baseline, options.rounds)
    finally:
        signal.signal(signal.SIGTERM, before)
    if rank() == 0:
        show(*report(rows, world, options.json))
    return _leave(0, world)


def _config(options: argparse.Namespace) -> int:
    from distgan.config.batch_plan import batch_plan
    from distgan.config.docs import diff, help_keys, markdown
    from distgan.config.load import load, to_yaml
    from distgan.config.schema import without_secrets

    if options.help_keys is not None:
        show(*(markdown() if options.markdown else help_keys(options.help_keys)))
    elif options.diff:
        if options.config is not None:
            raise ConfigError(f"--diff compares two files, without overrides: {options.config} is one too many")
        show(*diff(*(without_secrets(load(path)) for path in options.diff)))
    elif options.config is None:
        raise ConfigError("name a config file, or pass --help-keys or --diff")
    else:
        config = load(options.config, options.overrides)
        if options.ranks:
            batch_plan(config, options.ranks)
        show(*to_yaml(without_secrets(config)).rstrip("\n").split("\n"))
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    size = settle()
    if options.self_test:
        options.overrides = [text for text in (options.target, *options.overrides) if text]
    elif not options.target or "=" in options.target:
        raise ConfigError("name a run folder, a checkpoint, or a folder of images")

    _log_to_stderr()
    from distgan.config.load import load_to_evaluate
    from distgan.distributed.process_group import World
    from distgan.evaluation import report as scorecard
    from distgan.evaluation import selfcheck, watch

    config = load_to_evaluate([], options.overrides) if options.self_test else None
    world, code = World(timeout_sec=3600), 0
    chosen = scorecard.Options(options.seeds, options.out, options.statistics, options.holdout, options.memorization)
    if config is not None:
        lines = selfcheck.selfcheck(world, config)
        code = 0 if all(line.holds or line.why_not for line in lines) else 1
        if world.is_main:
            show(*selfcheck.table(lines))
    elif options.watch:

        def tell(report: dict) -> None:
            show(report["subject"]["checkpoint"], *scorecard.table(report), "")

        num = watch.watch(world, options.target, options.overrides, chosen, tell)
        if world.is_main:
            show(f"the run has ended, {num} checkpoint(s) measured")
    else:
        report = scorecard.evaluate(world, options.target, options.overrides, chosen)
        if world.is_main:
            show(*scorecard.table(report))
    world.close()
    return _leave(code, size)


def _log_to_stderr() -> None:
    """What the package has to say, in plain lines; of rank 0 alone what is no warning."""
    handler = logging.StreamHandler()
    handler.setFormatter(Lines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("distgan").setLevel(logging.INFO if rank() == 0 else logging.WARNING)


def _generate(options: argparse.Namespace) -> int:
    world = settle()

    _log_to_stderr()
    from distgan.inference.generate import generate
    from distgan.inference.restore import restore

    common = {name: getattr(options, name) for name in ("kind", "seed", "labels", "columns")}
    common |= {"rank": rank(), "world": world}
    if options.input and (options.keep_best < 1 or options.balance):
        raise ConfigError("--keep-best and --balance choose among images made of noise: leave them out with --input")
    try:
        if options.input:
            line = restore(options.checkpoint, options.input, options.num, options.out, **common)
        else:
            line = generate(
                options.checkpoint,
                64 if options.num is None else options.num,
                options.out,
                share=options.keep_best,
                filter_by=options.filter_by,
                balance=options.balance,
                shard_images=options.shard_images,
                keyframes=options.keyframes,
                fps=options.fps,
                **common,
            )
    except OSError as error:
        raise MachineError(f"--out {options.out}: {error.strerror or error}") from None
    if rank() == 0:
        show(line)
    return 0


def _export(options: argparse.Namespace) -> int:
    settle()
    if rank() > 0:
        return 0
    _log_to_stderr()

    from distgan.inference.export import export

    try:
        show(export(options.checkpoint, options.out, options.kind))
    except OSError as error:
        raise MachineError(f"{options.out}: {error.strerror or error}") from None
    return 0


def _plot(options: argparse.Namespace) -> None:
    from distgan.tools.report.plot import plot

    show(*plot(options.runs, options.out, [key for key in options.keys.split(",") if key]))


def _report(options: argparse.Namespace) -> None:
    from distgan.tools.report.page import report

    show(*report(options.run_folder, options.out))


def _doctor(options: argparse.Namespace) -> int:
    from distgan.tools.doctor import FAIL, as_json, examine, report

    found = examine()
    show(*(as_json(found).splitlines() if options.json else report(found)))
    return MachineError.exit_code if any(one.state == FAIL for one in found) else 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "pack": _pack,
    "index": _index,
    "train": _train,
    "check": _check,
    "config": _config,
    "evaluate": _evaluate,
    "generate": _generate,
    "export": _export,
    "plot": _plot,
    "report": _report,
    "doctor": _doctor,
    "bench": _bench,
}
