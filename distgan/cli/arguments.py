"""What can be asked for on the command line."""

import argparse
from typing import NoReturn

from distgan.storage.printable import printable
from distgan.version import __version__

BASELINE_HELP = "a reference to compare with: a bare loop, or every rank alone; may be given twice"


class Parser(argparse.ArgumentParser):
    """A parser that shows arguments in its messages as text."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; `command` is the name of the one that was chosen."""
    parser = Parser(prog="distgan", description="Train GANs on streamed image shards.")
    parser.add_argument("--version", action="version", version=f"distgan {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_data_commands, _training_commands, _generator_commands, _tools):
        add(commands)
    return parser


def _data_commands(commands: argparse._SubParsersAction) -> None:
    """Add pack and index."""
    pack = _command(
        commands,
        "pack",
        "images in a folder, archive, .npz or shards -> WebDataset shards",
        "distgan pack ~/pictures data/faces --resolution 128",
    )
    pack.add_argument("source", help="folder, .zip, .tar(.gz .bz2 .xz .zst), .npz, or shards")
    pack.add_argument("out", help="folder for the shards")
    pack.add_argument("--resolution", type=int, default=0, metavar="N", help="side in pixels (default: keep each size)")
    pack.add_argument("--crop", default="center", help="center (default) or stretch")
    pack.add_argument("--filter", default="lanczos", help="lanczos (default), area or bicubic")
    pack.add_argument("--image", default="png", help="png (default) or webp, both lossless, or jpg")
    pack.add_argument("--quality", type=int, default=95, help="quality of jpg (default 95)")
    pack.add_argument("--background", type=int, default=255, help="gray level under transparent pixels (default 255)")
    pack.add_argument("--max-pixels", type=int, default=100_000_000, help="larger images are skipped (default 10^8)")
    range_help = "stored values that become black and white (default: 0 and the largest of the format)"
    pack.add_argument("--range", type=float, nargs=2, metavar=("LO", "HI"), help=range_help)
    pack.add_argument("--shard-mb", type=float, default=256, help="largest shard in MB (default 256)")
    pack.add_argument("--workers", type=int, default=0, help="processes (default: one per core)")
    pack.add_argument(
        "--degraded", default="", metavar="SOURCE", help="degraded forms under the same names: pack pairs"
    )
    pack.add_argument(
        "--label",
        default="",
        metavar="WHERE",
        help="where labels are: folders, folders:LEVEL, archives, table, or a part such as cls or json:KEY "
        "(default: dataset.json, else cls, else folders)",
    )
    pack.add_argument("--no-labels", action="store_true", help="leave labels out")
    pack.add_argument("--image-part", default="", metavar="SUFFIX", help="suffix of the images, such as image.png")
    pack.add_argument("--allow-corrupt", action="store_true", help="use the good samples of corrupt shards")
    pack.add_argument("--overwrite", action="store_true", help="replace what OUT holds")

    index = _command(
        commands,
        "index",
        "write the index of plain WebDataset tars, and check them",
        "distgan index data/faces",
    )
    index.add_argument("shards", nargs="+", help="files, folders, globs or addresses")


def _training_commands(commands: argparse._SubParsersAction) -> None:
    """Add train, check and config."""
    train = _command(
        commands,
        "train",
        "train a GAN, or resume a run that stopped",
        "distgan train configs/folder128.yaml data.shards=data/faces run.dir=runs/faces",
        "accelerate launch --multi_gpu --num_processes 8 -m distgan train configs/cifar10.yaml train.batch=512",
    )
    _takes_config(train)
    train.add_argument("-n", "--dry-run", action="store_true", help="show what would be done, and stop there")

    check = _command(
        commands,
        "check",
        "validate a config, its shards and its batch plan",
        "distgan check configs/cifar10.yaml --ranks 8 data.shards=data/cifar10",
    )
    _takes_config(check)
    check.add_argument("--ranks", type=int, help="ranks to plan for (default: this launch's)")

    config = _command(
        commands,
        "config",
        "print the resolved config, or all keys",
        "distgan config configs/cifar10.yaml train.batch=256",
        "distgan config --help-keys loss",
        "distgan config --diff runs/faces configs/folder128.yaml",
    )
    config.add_argument("config", nargs="?", help="YAML file or run folder")
    config.add_argument("overrides", nargs="*", metavar="key=value")
    config.add_argument("--ranks", type=int, default=0, help="refuse a batch that this number of ranks cannot share")
    config.add_argument("--help-keys", nargs="?", const="", metavar="GROUP", help="list the keys that start with GROUP")
    config.add_argument("--markdown", action="store_true", help="with --help-keys: all keys, as docs/config.md")
    config.add_argument("--diff", nargs=2, metavar=("A", "B"), help="how two configs or run folders differ")


def _generator_commands(commands: argparse._SubParsersAction) -> None:
    """Add evaluate, generate and export."""
    evaluate = _command(
        commands,
        "evaluate",
        "metrics of generated images",
        "distgan evaluate runs/faces eval.extractor=efficientnet_lite0",
        "distgan evaluate pictures/ eval.reference=data/faces --memorization",
    )
    evaluate.add_argument(
        "target", nargs="?", default="", help="run, RUN/best, checkpoint, exported generator, or images"
    )
    evaluate.add_argument("overrides", nargs="*", metavar="key=value", help="settings, such as eval.num_images=10k")
    evaluate.add_argument("--watch", action="store_true", help="measure each new checkpoint of a run that trains")
    evaluate.add_argument("--self-test", action="store_true", help="compare values computed here with published ones")
    evaluate.add_argument(
        "--seeds", type=int, default=3, help="number of evaluations, each of eval.num_images images (default 3)"
    )
    evaluate.add_argument("--out", default="", help="file of the report (default: in the run's evaluations/)")
    evaluate.add_argument("--memorization", action="store_true", help="look for copies of training images")
    evaluate.add_argument(
        "--holdout", default="", metavar="SHARDS", help="for --memorization: images that were not trained on"
    )
    evaluate.add_argument(
        "--statistics", default="", metavar="FILE", help="write the statistics of the real images, as .npz"
    )

    generate = _command(
        commands,
        "generate",
        "images from a trained generator (no network family here has truncation)",
        "distgan generate runs/faces --num 64 --as grid --out faces.png",
        "distgan generate runs/faces --num 50000 --as shards --out data/made --keep-best 0.5",
        "distgan generate runs/faces --num 250 --as video --out walk.webp",
        "distgan generate runs/restored --input holiday/ --out clean/",
    )
    generate.add_argument("checkpoint", help="run folder, RUN/best, checkpoint or exported generator")
    generate.add_argument("--num", type=int, help="number of images; of a video, frames (default 64; of --input, all)")
    generate.add_argument("--input", default="", metavar="SOURCE", help="images to restore: folder, archive, shards")
    generate.add_argument("--out", required=True, help="folder (png, shards), .png (grid), .webp or .mp4 (video)")
    kinds = ("png", "shards", "grid", "video")
    generate.add_argument("--as", dest="kind", default="png", choices=kinds, help="png (default), ..., video")
    generate.add_argument("--seed", type=int, default=0, help="image i is a function of the seed and i (default 0)")
    generate.add_argument("--labels", default="", help="classes used in turn, as 0,3,7 or 0-9 (default: all learned)")
    generate.add_argument("--columns", type=int, help="columns of the grid (default: a square, or a row per class)")
    generate.add_argument("--keep-best", type=float, default=1.0, metavar="SHARE", help="keep this fraction, the best")
    generate.add_argument(
        "--filter-by",
        default="discriminator",
        choices=("discriminator", "nearest-real"),
        help="what is best: D's logit, or features near to those of a real image (default discriminator)",
    )
    generate.add_argument("--balance", action="store_true", help="the same number of images of each class")
    generate.add_argument("--shard-images", type=int, default=0, metavar="N", help="default 2048, fewer if large")
    generate.add_argument(
        "--keyframes", type=int, default=0, help="latents between which a video moves (default: one a second)"
    )
    generate.add_argument("--fps", type=float, default=25, help="frames of a video per second (default 25)")

    export = _command(
        commands,
        "export",
        "a trained generator as files that other programs load",
        "distgan export runs/faces faces-128",
        "distgan export runs/faces faces-128.onnx --as onnx",
    )
    export.add_argument("checkpoint", help="run folder, RUN/best, checkpoint or exported generator")
    export.add_argument("out", help="folder for safetensors, file for torchscript and onnx; must not exist")
    forms = ("safetensors", "torchscript", "onnx")
    export.add_argument("--as", dest="kind", default=forms[0], choices=forms, help="safetensors (default), ..., onnx")


def _tools(commands: argparse._SubParsersAction) -> None:
    """Add plot, report, doctor and bench."""
    plot = _command(
        commands,
        "plot",
        "draw the curves of one or several runs",
        "distgan plot runs/faces",
        "distgan plot runs/hinge runs/r3gan --keys Loss/D,Metrics/kid --out compared.svg",
    )
    plot.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    where = "plots/curves.png of the run; of several runs, curves.png in the current folder"
    plot.add_argument("--out", default="", help=f".png or .svg (default: {where})")
    plot.add_argument("--keys", default="", metavar="A,B", help="log keys to draw (default: the main curves)")

    report = _command(
        commands,
        "report",
        "write a run as one HTML file: samples over time, curves, metrics, data, settings",
        "distgan report runs/faces",
    )
    report.add_argument("run_folder", metavar="RUN", help="run folder")
    report.add_argument("--out", default="", help=".html file (default: report.html of the run)")

    doctor = _command(
        commands,
        "doctor",
        "check this machine: GPUs, memory, network, packages",
        "distgan doctor",
        "distgan doctor --json > doctor.json",
    )
    doctor.add_argument("--json", action="store_true", help="for a bug report")

    bench = _command(
        commands,
        "bench",
        "measure a run: speed, where its time goes, traffic, memory",
        "distgan bench configs/dcgan64.yaml data.shards=synthetic train.batch=16 --baseline bare",
        "distgan bench configs/r3gan-ffhq64.yaml --sweep micro_batch",
    )
    _takes_config(bench)
    bench.add_argument("--baseline", action="append", default=[], choices=("bare", "alone"), help=BASELINE_HELP)
    bench.add_argument(
        "--scaling", default="", metavar="N,N", help="measure groups of these numbers of ranks on this machine"
    )
    bench.add_argument("--sweep", choices=("micro_batch",), help="find the fastest value that fits into memory")
    bench.add_argument(
        "--images", type=int, default=0, metavar="N", help="images to train on in total (default: some seconds)"
    )
    bench.add_argument(
        "--rounds", type=int, default=5, metavar="N", help="rounds in which references alternate (default 5)"
    )
    bench.add_argument("--json", action="store_true", help="print the figures as JSON")


def _takes_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="YAML file or run folder")
    about = "settings that override the file's"
    # Where an argument is missing, argparse would name this one too if it had no default.
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=about)


def _command(
    commands: argparse._SubParsersAction,
    name: str,
    help: str,
    *examples: str,
) -> argparse.ArgumentParser:
    epilog = "\n  ".join([f"example{'s' if len(examples) > 1 else ''}:", *examples])
    verbatim = argparse.RawDescriptionHelpFormatter  # which leaves the examples' lines as they are
    return commands.add_parser(name, help=help, description=help, epilog=epilog, formatter_class=verbatim)
