"""The commands. Each body imports what it needs, so that a typo is told without waiting for torch."""

import argparse
import difflib
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence

from distgan import __version__
from distgan.errors import ConfigError, DistganError, MachineError
from distgan.ranks import rank, settle
from distgan.stop import listening, was_asked

AGAINST_HELP = "a reference that takes turns: a bare loop, or every rank alone; may be given twice"
RANK_0_SPEAKS_SEC = 10  # a launcher ends all ranks once one is gone: the others leave rank 0 the time to say why


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the process's exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name may hold bytes that the terminal's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    parser = _parser()
    words = sys.argv[1:] if arguments is None else arguments
    known = parser.get_default("known")
    if words and not words[0].startswith("-") and words[0] not in known:
        near = difflib.get_close_matches(words[0], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        parser.error(f"{words[0]!r} is no command: {hint}")
    options, rest = parser.parse_known_args(arguments)
    if rest and not hasattr(options, "overrides"):
        parser.error(f"unknown: {' '.join(rest)}; see `distgan {options.command} --help`")
    if rest:  # overrides behind an option: argparse takes only the first run of positional arguments
        options.overrides = [*options.overrides, *rest]
    try:
        code = options.run(options) or 0
        sys.stdout.flush()
        return code
    except DistganError as error:
        if error.rank is None and rank() > 0:
            time.sleep(RANK_0_SPEAKS_SEC)  # whoever is still there then has an error that rank 0 has not
            if was_asked():  # the launcher asked this rank to leave, since rank 0 has the same error
                return error.exit_code
        who = error.rank if error.rank is not None else rank()
        named = f"rank {who}: " if error.rank is not None or who > 0 else ""
        print(f"distgan {options.command}: {named}{error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"distgan {options.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `distgan ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="distgan", description="Train GANs on streamed image shards.")
    parser.add_argument("--version", action="version", version=f"distgan {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    pack = _command(
        commands,
        "pack",
        _pack,
        "images in a folder, archive, .npz or shards -> WebDataset shards",
        "distgan pack ~/pictures data/faces --resolution 128",
    )
    pack.add_argument("source", help="folder, .zip, .tar(.gz .bz2 .xz .zst), .npz, or shards")
    pack.add_argument("out", help="folder for the shards")
    pack.add_argument("--resolution", type=int, default=0, metavar="N", help="side in pixels (default: keep each size)")
    pack.add_argument("--crop", default="center", help="center (default) or squeeze")
    pack.add_argument("--filter", default="lanczos", help="lanczos (default), area or bicubic")
    pack.add_argument("--image", default="png", help="png (default) or webp, both lossless, or jpg")
    pack.add_argument("--quality", type=int, default=95, help="of jpg (default 95)")
    pack.add_argument("--background", type=int, default=255, help="grey level under transparent pixels (default 255)")
    pack.add_argument("--max-pixels", type=int, default=100_000_000, help="larger images are skipped (default 10^8)")
    pack.add_argument("--shard-mb", type=float, default=256, help="largest shard in MB (default 256)")
    pack.add_argument("--workers", type=int, default=0, help="processes (default: one per core)")
    pack.add_argument(
        "--degraded", default="", metavar="SOURCE", help="degraded forms under the same names: pack pairs"
    )
    pack.add_argument("--no-labels", action="store_true", help="do not take class folders or labels over")
    pack.add_argument("--allow-damaged", action="store_true", help="take the good samples of damaged shards")
    pack.add_argument("--overwrite", action="store_true", help="replace what OUT holds")

    index = _command(
        commands,
        "index",
        _index,
        "make the index of plain WebDataset tars, and check them",
        "distgan index data/faces",
    )
    index.add_argument("shards", nargs="+", help="files, folders, globs or addresses")

    train = _command(
        commands,
        "train",
        _train,
        "train a GAN, or go on with a run that stopped",
        "distgan train configs/folder128.yaml data.shards=data/faces run.dir=runs/faces",
        "accelerate launch --multi_gpu --num_processes 8 -m distgan train configs/cifar10.yaml train.batch=512",
    )
    _takes_config(train)
    train.add_argument("-n", "--dry-run", action="store_true", help="tell what would be done, and stop there")

    check = _command(
        commands,
        "check",
        _check,
        "validate a config, its shards and its batch plan",
        "distgan check configs/cifar10.yaml --ranks 8 data.shards=data/cifar10",
    )
    _takes_config(check)
    check.add_argument("--ranks", type=int, help="ranks to plan for (default: this launch's)")

    config = _command(
        commands,
        "config",
        _config,
        "print the resolved config, or every key there is",
        "distgan config configs/cifar10.yaml train.batch=256",
        "distgan config --help-keys loss",
        "distgan config --diff runs/faces configs/folder128.yaml",
    )
    config.add_argument("config", nargs="?", help="YAML file or run folder")
    config.add_argument("overrides", nargs="*", metavar="key=value")
    config.add_argument("--ranks", type=int, default=0, help="refuse a batch that so many ranks cannot share")
    config.add_argument("--help-keys", nargs="?", const="", metavar="GROUP", help="list the keys that begin with GROUP")
    config.add_argument("--markdown", action="store_true", help="with --help-keys: all keys, as docs/config.md")
    config.add_argument("--diff", nargs=2, metavar=("A", "B"), help="how two configs or run folders differ")

    evaluate = _command(
        commands,
        "evaluate",
        _evaluate,
        "numbers that tell how good generated images are",
        "distgan evaluate runs/faces eval.extractor=efficientnet_lite0",
        "distgan evaluate pictures/ eval.reference=data/faces --memorisation",
    )
    evaluate.add_argument("target", nargs="?", default="", help="run, checkpoint, exported generator, or pictures")
    evaluate.add_argument("overrides", nargs="*", metavar="key=value", help="settings, such as eval.num=10k")
    evaluate.add_argument("--watch", action="store_true", help="measure each new checkpoint of a run that trains")
    evaluate.add_argument("--selfcheck", action="store_true", help="published values beside those computed here")
    evaluate.add_argument("--seeds", type=int, default=3, help="evaluations of as many images each (default 3)")
    evaluate.add_argument("--out", default="", help="file of the report (default: in the run's evaluations/)")
    evaluate.add_argument("--memorisation", action="store_true", help="look for copies of training images")
    evaluate.add_argument("--heldout", default="", metavar="SHARDS", help="for that: images that were not trained on")
    evaluate.add_argument("--statistics", default="", metavar="FILE", help="write those of the real images, as .npz")

    generate = _command(
        commands,
        "generate",
        _generate,
        "images from a trained generator (no network family here has truncation)",
        "distgan generate runs/faces --num 64 --as grid --out faces.png",
        "distgan generate runs/faces --num 50000 --as shards --out data/made --filter 0.5",
        "distgan generate runs/faces --num 250 --as video --out walk.webp",
        "distgan generate runs/restored --input holiday/ --out clean/",
    )
    generate.add_argument("checkpoint", help="run folder, checkpoint or exported generator")
    generate.add_argument("--num", type=int, help="how many; of a video, frames (default 64; of --input, all)")
    generate.add_argument("--input", default="", metavar="SOURCE", help="pictures to restore: folder, archive, shards")
    generate.add_argument("--out", required=True, help="folder (png, shards), .png (grid), .webp or .mp4 (video)")
    kinds = ("png", "shards", "grid", "video")
    generate.add_argument("--as", dest="kind", default="png", choices=kinds, help="png (default), ..., video")
    generate.add_argument("--seed", type=int, default=0, help="image i is a function of the seed and i (default 0)")
    generate.add_argument("--labels", default="", help="classes to take in turn, as 0,3,7 or 0-9 (default: all)")
    generate.add_argument("--columns", type=int, help="of the grid (default: a square, or a row per class)")
    generate.add_argument("--filter", type=float, default=1.0, metavar="SHARE", help="keep this share, the best by D")
    generate.add_argument(
        "--filter-by", default="d", choices=("d", "distance"), help="or those nearest to real images' features"
    )
    generate.add_argument("--balance", action="store_true", help="equally many images of all classes")
    generate.add_argument("--shard-images", type=int, default=0, metavar="N", help="default 2048, fewer if large")
    generate.add_argument("--stops", type=int, default=0, help="latents that a video passes (default: one a second)")
    generate.add_argument("--fps", type=float, default=25, help="frames of a video in a second (default 25)")

    export = _command(
        commands,
        "export",
        _export,
        "a trained generator as files that other programs load",
        "distgan export runs/faces faces-128",
        "distgan export runs/faces faces-128.onnx --as onnx",
    )
    export.add_argument("checkpoint", help="run folder, checkpoint or exported generator")
    export.add_argument("out", help="folder for safetensors, file for torchscript and onnx; must not exist")
    forms = ("safetensors", "torchscript", "onnx")
    export.add_argument("--as", dest="kind", default=forms[0], choices=forms, help="safetensors (default), ..., onnx")

    plot = _command(
        commands,
        "plot",
        _plot,
        "curves of one or several runs as a picture",
        "distgan plot runs/faces",
        "distgan plot runs/hinge runs/r3gan --keys Loss/D,Metrics/kid --out compared.svg",
    )
    plot.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    where = "plots/curves.png of the run; of several runs, curves.png in the current folder"
    plot.add_argument("--out", default="", help=f".png or .svg (default: {where})")
    plot.add_argument("--keys", default="", metavar="A,B", help="log keys to draw (default: what tells how it goes)")

    report = _command(
        commands,
        "report",
        _report,
        "a run as one HTML file: samples over time, curves, metrics, data, settings",
        "distgan report runs/faces",
    )
    report.add_argument("run_folder", metavar="RUN", help="run folder")
    report.add_argument("--out", default="", help=".html file (default: report.html of the run)")

    doctor = _command(
        commands,
        "doctor",
        _doctor,
        "what this machine offers a run, and what is wrong with it",
        "distgan doctor",
        "distgan doctor --json > doctor.json",
    )
    doctor.add_argument("--json", action="store_true", help="for a bug report")

    bench = _command(
        commands,
        "bench",
        _bench,
        "measure a run: speed, where its time goes, traffic, memory",
        "distgan bench configs/dcgan64.yaml data.shards=synthetic train.batch=16 --against bare",
        "distgan bench configs/r3gan-ffhq64.yaml --sweep micro_batch",
    )
    _takes_config(bench)
    bench.add_argument("--against", action="append", default=[], choices=("bare", "alone"), help=AGAINST_HELP)
    bench.add_argument("--scaling", default="", metavar="N,N", help="measure groups of so many ranks on this machine")
    bench.add_argument("--sweep", choices=("micro_batch",), help="find the fastest that fits into memory")
    bench.add_argument("--images", type=int, default=0, metavar="N", help="to train on in all (default: some seconds)")
    bench.add_argument("--rounds", type=int, default=5, metavar="N", help="in which references take turns (default 5)")
    bench.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.set_defaults(known=tuple(commands.choices))
    return parser


def _takes_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="YAML file or run folder")
    about = "settings that win over the file's"
    # Where an argument is missing, argparse would name this one too if it had no default.
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=about)


def _command(
    commands: argparse._SubParsersAction,
    name: str,
    run: Callable[[argparse.Namespace], int | None],
    help: str,
    *examples: str,
) -> argparse.ArgumentParser:
    epilog = "\n  ".join([f"example{'s' if len(examples) > 1 else ''}:", *examples])
    verbatim = argparse.RawDescriptionHelpFormatter  # which leaves the examples' lines as they are
    parser = commands.add_parser(name, help=help, description=help, epilog=epilog, formatter_class=verbatim)
    parser.set_defaults(run=run)
    return parser


def _pack(options: argparse.Namespace) -> None:
    from distgan.data.pack import Options, pack, report

    fields = ("resolution", "crop", "filter", "image", "quality", "background", "max_pixels")
    started = time.perf_counter()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up, as after Ctrl-C
    try:
        summary = pack(
            options.source,
            options.out,
            Options(**{name: getattr(options, name) for name in fields}),
            shard_mb=options.shard_mb,
            workers=options.workers,
            labels=not options.no_labels,
            degraded=options.degraded,
            allow_damaged=options.allow_damaged,
            overwrite=options.overwrite,
        )
    finally:
        signal.signal(signal.SIGTERM, before)
    print(report(summary, options.out, time.perf_counter() - started))


def _index(options: argparse.Namespace) -> int:
    from distgan.data.dataset import default_cache_dir, find_shards
    from distgan.data.index import describe, load
    from distgan.data.source import Source, public

    source, samples, defects = Source(), 0, 0
    urls = find_shards(options.shards)
    for url in urls:
        summary = load(url, source, default_cache_dir() / "index").summary()
        samples += summary["samples"]
        print(describe(url, summary))
        for defect in summary["defects"]:
            defects += 1
            print(f"{public(url)}: DAMAGED: {defect}", file=sys.stderr)
    print(f"{samples:,} samples in {len(urls):,} shard(s), {defects} defect(s)")
    return 3 if defects else 0


def _train(options: argparse.Namespace) -> int:
    from distgan.configfile import load
    from distgan.rules import batch_plan

    if options.dry_run:
        return _check(options)
    with listening():
        world = settle()  # first, since it tells which rank this is, and rank 0 alone prints
        config = load(options.config, options.overrides)
        batch_plan(config, world)

        from distgan.run import train

        code = train(config)
    return _leave(code, world)


def _leave(code: int, world: int) -> int:
    """End the process of one of several ranks at once, with everything written; of a single one, by returning."""
    if world > 1:
        # While Python shuts down, threads of torch.distributed that ask for it may abort the process.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _check(options: argparse.Namespace) -> int:
    from distgan.configfile import load
    from distgan.rules import batch_plan

    launched = settle()
    asked = getattr(options, "ranks", None)
    world = launched if asked is None else asked
    if world < 1:
        raise ConfigError(f"--ranks {world}: at least 1")
    config = load(options.config, options.overrides)
    spread = batch_plan(config, world)
    if rank() > 0:
        return 0

    from distgan.check import check

    lines, warnings = check(config, spread)
    print("\n".join([*lines, *(f"warning: {line}" for line in warnings)]))
    return 0


def _bench(options: argparse.Namespace) -> int:
    from distgan.configfile import load
    from distgan.rules import batch_plan

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

    from distgan.bench.bench import bench, report
    from distgan.bench.scaling import scaling, sweep

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up, as after Ctrl-C
    try:
        if worlds:
            more = ["--images", str(options.images), "--rounds", str(options.rounds)]
            rows = scaling(config, [options.config, *options.overrides, *more], worlds)
        elif options.sweep:
            rows = sweep(config, options.images)
        else:
            rows = bench(config, options.images, options.against, options.rounds)
    finally:
        signal.signal(signal.SIGTERM, before)
    if rank() == 0:
        print(report(rows, world, options.json))
    return _leave(0, world)


def _config(options: argparse.Namespace) -> int:
    from distgan.configfile import load, to_yaml
    from distgan.confighelp import diff, help_keys, markdown
    from distgan.rules import batch_plan

    if options.help_keys is not None:
        print(markdown(), end="") if options.markdown else print(help_keys(options.help_keys))
    elif options.diff:
        if options.config is not None:
            raise ConfigError(f"--diff compares two files, without overrides: {options.config} is one too many")
        print(diff(*(load(path) for path in options.diff)))
    elif options.config is None:
        raise ConfigError("name a config file, or pass --help-keys or --diff")
    else:
        config = load(options.config, options.overrides)
        if options.ranks:
            batch_plan(config, options.ranks)
        print(to_yaml(config), end="")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    size = settle()
    if options.selfcheck:
        options.overrides = [text for text in (options.target, *options.overrides) if text]
    elif not options.target or "=" in options.target:
        raise ConfigError("name a run folder, a checkpoint, or a folder of pictures")

    import logging

    from distgan.configfile import load_to_evaluate
    from distgan.evaluation import scorecard, selfcheck, watching
    from distgan.world import World

    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("distgan").setLevel(logging.INFO if rank() == 0 else logging.WARNING)
    config = load_to_evaluate([], options.overrides) if options.selfcheck else None
    world, code = World(timeout_sec=3600), 0
    chosen = scorecard.Options(options.seeds, options.out, options.statistics, options.heldout, options.memorisation)
    if config is not None:
        lines = selfcheck.selfcheck(world, config)
        code = 0 if all(line.holds or line.why_not for line in lines) else 1
        if world.is_main:
            print(selfcheck.table(lines))
    elif options.watch:

        def tell(report: dict) -> None:
            print(f"{report['subject']['checkpoint']}\n{scorecard.table(report)}\n", flush=True)

        num = watching.watch(world, options.target, options.overrides, chosen, tell)
        if world.is_main:
            print(f"the run has ended, {num} checkpoint(s) measured")
    else:
        report = scorecard.evaluate(world, options.target, options.overrides, chosen)
        if world.is_main:
            print(scorecard.table(report))
    world.close()
    return _leave(code, size)


def _generate(options: argparse.Namespace) -> int:
    world = settle()

    from distgan.generate import generate
    from distgan.restoration import restore

    common = {name: getattr(options, name) for name in ("kind", "seed", "labels", "columns")}
    common |= {"rank": rank(), "world": world}
    if options.input and (options.filter < 1 or options.balance):
        raise ConfigError("--filter and --balance choose among images made of noise: leave them out with --input")
    try:
        if options.input:
            line = restore(options.checkpoint, options.input, options.num, options.out, **common)
        else:
            line = generate(
                options.checkpoint,
                64 if options.num is None else options.num,
                options.out,
                share=options.filter,
                filter_by=options.filter_by,
                balance=options.balance,
                shard_images=options.shard_images,
                stops=options.stops,
                fps=options.fps,
                **common,
            )
    except OSError as error:
        raise MachineError(f"--out {options.out}: {error.strerror or error}") from None
    if rank() == 0:
        print(line)
    return 0


def _export(options: argparse.Namespace) -> int:
    settle()
    if rank() > 0:
        return 0

    from distgan.export import export

    try:
        print(export(options.checkpoint, options.out, options.kind))
    except OSError as error:
        raise MachineError(f"{options.out}: {error.strerror or error}") from None
    return 0


def _plot(options: argparse.Namespace) -> None:
    from distgan.report.plot import plot

    for line in plot(options.runs, options.out, [key for key in options.keys.split(",") if key]):
        print(line)


def _report(options: argparse.Namespace) -> None:
    from distgan.report.page import report

    for line in report(options.run_folder, options.out):
        print(line)


def _doctor(options: argparse.Namespace) -> int:
    from distgan.doctor import FAIL, as_json, examine, report

    found = examine()
    print(as_json(found) if options.json else "\n".join(report(found)))
    return MachineError.exit_code if any(one.state == FAIL for one in found) else 0
