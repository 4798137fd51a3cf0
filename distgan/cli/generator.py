"""`distgan evaluate`, `generate`, `directions` and `export`: use a trained generator."""

import argparse
import logging

from distgan.cli.arguments import Commands, add_command, add_plugin_argument, load_plugins
from distgan.cli.process import leave, log_to_stderr
from distgan.distributed.launch_env import init_rank_env, rank
from distgan.errors import ConfigError, MachineError
from distgan.storage.printable import show


def add_commands(commands: Commands) -> None:
    """Add evaluate, generate, directions and export."""
    _add_evaluate(commands)
    _add_generate(commands)
    _add_directions(commands)
    _add_export(commands)


def _add_evaluate(commands: Commands) -> None:
    parser = add_command(
        commands,
        "evaluate",
        _evaluate,
        "metrics of generated images",
        "distgan evaluate runs/faces eval.extractor=efficientnet_lite0",
        "distgan evaluate pictures/ eval.reference=data/faces --memorization",
    )
    add_plugin_argument(parser)
    parser.add_argument(
        "target", nargs="?", default="", help="run, RUN/best, checkpoint, exported generator, or images"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, such as eval.num_images=10k")
    parser.add_argument("--watch", action="store_true", help="measure each new checkpoint of a run that trains")
    parser.add_argument("--self-test", action="store_true", help="compare values computed here with published ones")
    parser.add_argument(
        "--seeds", type=int, default=3, help="number of evaluations, each of eval.num_images images (default 3)"
    )
    parser.add_argument("--out", default="", help="file of the report (default: in the run's evaluations/)")
    parser.add_argument("--memorization", action="store_true", help="search for copies of training images")
    parser.add_argument(
        "--holdout", default="", metavar="SHARDS", help="for --memorization: images that were not trained on"
    )
    parser.add_argument(
        "--statistics", default="", metavar="FILE", help="write the statistics of the real images, as .npz"
    )


def _evaluate(options: argparse.Namespace) -> int:
    size = init_rank_env()
    if options.self_test:
        options.overrides = [text for text in (options.target, *options.overrides) if text]
    elif not options.target or "=" in options.target:
        raise ConfigError("name a run folder, a checkpoint, or a folder of images")

    log_to_stderr()
    load_plugins(options)
    from distgan.config.load import load_to_evaluate
    from distgan.distributed.process_group import World
    from distgan.evaluation import selfcheck, watch
    from distgan.evaluation.evaluate import evaluate
    from distgan.evaluation.report import EvaluateOptions, table

    config = load_to_evaluate([], options.overrides) if options.self_test else None
    world, code = World(timeout_sec=3600), 0
    for line in world.device_warnings if world.is_main else ():
        logging.getLogger("distgan").warning(f"warning: {line}")
    chosen = EvaluateOptions(options.seeds, options.out, options.statistics, options.holdout, options.memorization)
    if config is not None:
        lines = selfcheck.selfcheck(world, config)
        code = 0 if all(line.holds or line.why_not for line in lines) else 1
        if world.is_main:
            show(*selfcheck.table(lines))
    elif options.watch:

        def show_report(report: dict) -> None:
            show(report["subject"]["checkpoint"], *table(report), "")

        num = watch.watch_checkpoints(world, options.target, options.overrides, chosen, show_report)
        if world.is_main:
            show(f"the run has ended, {num} checkpoint(s) measured")
    else:
        report = evaluate(world, options.target, options.overrides, chosen)
        if world.is_main:
            show(*table(report))
    world.close()
    return leave(code, size)


def _add_generate(commands: Commands) -> None:
    parser = add_command(
        commands,
        "generate",
        _generate,
        "images from a trained generator",
        "distgan generate runs/faces --num 64 --as grid --out faces.png",
        "distgan generate runs/faces --num 50000 --as shards --out data/made --keep-best 0.5",
        "distgan generate runs/faces --as grid --sweep age=10:80:8 --out ages.png",
        "distgan generate runs/faces --num 250 --as video --out walk.webp",
        "distgan generate runs/restored --input holiday/ --out clean/",
    )
    add_plugin_argument(parser)
    parser.add_argument("checkpoint", help="run folder, RUN/best, checkpoint or exported generator")
    parser.add_argument("--num", type=int, help="number of images; of a video, frames (default 64; of --input, all)")
    parser.add_argument("--input", default="", metavar="SOURCE", help="images to restore: folder, archive, shards")
    parser.add_argument("--out", required=True, help="folder (png, shards), .png (grid), .webp or .mp4 (video)")
    kinds = ("png", "npy", "shards", "grid", "video")
    parser.add_argument("--as", dest="kind", default="png", choices=kinds, help="png (default), ..., video")
    parser.add_argument("--seed", type=int, default=0, help="image i is a function of the seed and i (default 0)")
    parser.add_argument(
        "--labels", default="", help="classes used in turn, as 0,3,7 or 0-9, or their names (default: all learned)"
    )
    parser.add_argument(
        "--condition",
        action="append",
        default=[],
        metavar="NAME=VALUE,...",
        help="conditions of all images, as age=40,kind=cat; given again: used in turn (default: as real images have)",
    )
    parser.add_argument(
        "--sweep",
        default="",
        metavar="NAME=FIRST:LAST:NUMBER",
        help="a grid with a latent to a row and a value of one condition to a column; or NAME=ONE;OTHER",
    )
    parser.add_argument(
        "--truncation",
        type=float,
        metavar="PSI",
        help="fewer kinds of images, but better ones: of stylegan2, how much of w's way from its mean is kept (such as "
        "0.7; 1: all); of others, the deviations at which latents are cut off",
    )
    parser.add_argument("--columns", type=int, help="columns of the grid (default: a square, or a row per class)")
    parser.add_argument("--keep-best", type=float, default=1.0, metavar="SHARE", help="keep this fraction, the best")
    parser.add_argument(
        "--filter-by",
        default="",
        choices=("discriminator", "nearest-real"),
        help="what is best: D's logit, or features near to those of a real image (default discriminator)",
    )
    parser.add_argument(
        "--aspect",
        nargs="?",
        const="data",
        default="",
        metavar="W:H",
        help="undo a stretch: enlarge one side, to the mean proportions of the training data or to W:H",
    )
    parser.add_argument("--balance", action="store_true", help="the same number of images of each class")
    parser.add_argument("--shard-images", type=int, default=0, metavar="N", help="default 2048, fewer if large")
    parser.add_argument(
        "--keyframes", type=int, default=0, help="latents between which a video moves (default: one a second)"
    )
    parser.add_argument("--fps", type=float, help="frames of a video per second (default 25)")


def _generate(options: argparse.Namespace) -> int:
    world = init_rank_env()

    log_to_stderr()
    load_plugins(options)
    from distgan.inference.generate import generate
    from distgan.inference.request import GenerateOptions
    from distgan.inference.restore import RestoreOptions, restore

    common = {name: getattr(options, name) for name in ("kind", "seed", "labels", "columns")}
    if options.input and (options.condition or options.sweep):
        raise ConfigError("--condition and --sweep are of images made of noise: leave them out with --input")
    if options.input and (options.keep_best < 1 or options.balance):
        raise ConfigError("--keep-best and --balance choose among images made of noise: leave them out with --input")
    if options.input and options.truncation is not None:
        raise ConfigError("--truncation is of images made of noise: leave it out with --input")
    for name in ("aspect", "shard_images", "keyframes", "fps", "filter_by") if options.input else ():
        if getattr(options, name):
            raise ConfigError(f"--{name.replace('_', '-')} is of images made of noise: leave it out with --input")
    try:
        if options.input:
            restoring = RestoreOptions(num=options.num, **common)
            line = restore(options.checkpoint, options.input, options.out, restoring, rank(), world)
        else:
            generating = GenerateOptions(
                num=64 if options.num is None else options.num,
                share=options.keep_best,
                filter_by=options.filter_by,
                balance=options.balance,
                shard_images=options.shard_images,
                keyframes=options.keyframes,
                fps=options.fps,
                aspect=options.aspect,
                conditions=tuple(options.condition),
                sweep=options.sweep,
                truncation=options.truncation,
                **common,
            )
            line = generate(options.checkpoint, options.out, generating, rank(), world)
    except OSError as error:
        raise MachineError(f"--out {options.out}: {error.strerror or error}") from None
    if rank() == 0:
        show(line)
    return 0


def _add_directions(commands: Commands) -> None:
    parser = add_command(
        commands,
        "directions",
        _directions,
        "directions of latents in which images change most, and walks along them",
        "distgan directions runs/faces faces-directions --num 12",
    )
    add_plugin_argument(parser)
    parser.add_argument("checkpoint", help="run folder, RUN/best, checkpoint or exported generator")
    parser.add_argument("out", help="folder for directions.npy and a grid of each")
    parser.add_argument("--num", type=int, default=8, metavar="N", help="number of directions (default 8)")
    parser.add_argument("--method", default="sefa", help="sefa: by the weights (default); pca: of many w, of stylegan2")
    parser.add_argument(
        "--strength", type=float, default=3.0, metavar="S", help="how far walks go, in deviations (default 3)"
    )
    parser.add_argument("--rows", type=int, default=4, metavar="N", help="latents of a grid (default 4)")
    parser.add_argument("--columns", type=int, default=7, metavar="N", help="steps of a walk (default 7)")
    parser.add_argument("--seed", type=int, default=0, help="of the latents that are moved (default 0)")


def _directions(options: argparse.Namespace) -> int:
    init_rank_env()
    if rank() > 0:
        return 0
    log_to_stderr()
    load_plugins(options)

    from distgan.inference.directions import DirectionOptions, directions

    fields = ("num", "method", "strength", "rows", "columns", "seed")
    chosen = DirectionOptions(**{name: getattr(options, name) for name in fields})
    show(directions(options.checkpoint, options.out, chosen))
    return 0


def _add_export(commands: Commands) -> None:
    parser = add_command(
        commands,
        "export",
        _export,
        "a trained generator as files that other programs load",
        "distgan export runs/faces faces-128",
        "distgan export runs/faces faces-128.onnx --as onnx",
    )
    add_plugin_argument(parser)
    parser.add_argument("checkpoint", help="run folder, RUN/best, checkpoint or exported generator")
    parser.add_argument("out", help="folder for safetensors, file for torchscript and onnx; must not exist")
    forms = ("safetensors", "torchscript", "onnx")
    parser.add_argument("--as", dest="kind", default=forms[0], choices=forms, help="safetensors (default), ..., onnx")


def _export(options: argparse.Namespace) -> int:
    init_rank_env()
    if rank() > 0:
        return 0
    log_to_stderr()
    load_plugins(options)

    from distgan.inference.export import export

    try:
        show(export(options.checkpoint, options.out, options.kind))
    except OSError as error:
        raise MachineError(f"{options.out}: {error.strerror or error}") from None
    return 0
