"""`distgan pack` and `distgan index`: images into shards, and the index of shards made by others."""

import argparse
import sys
import time

from distgan.cli.arguments import Commands, add_command
from distgan.cli.process import term_interrupts
from distgan.storage.printable import show


def add_commands(commands: Commands) -> None:
    """Add pack and index."""
    _add_pack(commands)
    _add_index(commands)


def _add_pack(commands: Commands) -> None:
    parser = add_command(
        commands,
        "pack",
        _pack,
        "images in a folder, archive, .npz or shards -> WebDataset shards",
        "distgan pack ~/pictures data/faces --resolution 128",
    )
    parser.add_argument("source", help="folder, .zip, .tar(.gz .bz2 .xz .zst), .npz, .parquet, or shards")
    parser.add_argument("out", help="folder for the shards")
    parser.add_argument(
        "--resolution",
        type=_resolution,
        default=0,
        metavar="N",
        help="side in pixels, or HEIGHTxWIDTH such as 48x64 (default: keep each size)",
    )
    parser.add_argument(
        "--crop",
        default="center",
        help="other proportions: center (default) or random cut away what is too much, stretch changes them, pad adds "
        "bars of the background",
    )
    parser.add_argument("--filter", default="lanczos", help="lanczos (default), area or bicubic")
    parser.add_argument("--channels", type=int, default=3, metavar="C", help="channels, 1 (gray) to 32 (default 3)")
    parser.add_argument(
        "--dtype",
        default="uint8",
        help="type of the stored numbers: uint8 (default), or uint16 or float32, which keep them as they are",
    )
    parser.add_argument(
        "--alpha", action="store_true", help="the last of 2 or 4 channels is alpha (default: put on --background)"
    )
    parser.add_argument(
        "--image", default="png", help="png (default) or webp, both lossless, or jpg; what none holds becomes .npy"
    )
    parser.add_argument("--quality", type=int, default=95, help="quality of jpg (default 95)")
    parser.add_argument("--background", type=int, default=255, help="gray level under transparent pixels (default 255)")
    parser.add_argument("--max-pixels", type=int, default=100_000_000, help="larger images are skipped (default 10^8)")
    range_help = (
        "values that become black and white (default: 0 and the largest of the format); of uint16 and float32, in "
        "training alone"
    )
    parser.add_argument("--range", type=float, nargs=2, metavar=("LO", "HI"), help=range_help)
    parser.add_argument("--shard-mb", type=float, default=256, help="largest shard in MB (default 256)")
    parser.add_argument("--workers", type=int, default=0, help="processes (default: one per core)")
    parser.add_argument(
        "--degraded", default="", metavar="SOURCE", help="degraded forms under the same names: pack pairs"
    )
    parser.add_argument(
        "--label",
        default="",
        metavar="WHERE",
        help="where labels are: folders, folders:LEVEL, archives, table, or a part such as cls or json:KEY "
        "(default: dataset.json, else cls, else folders)",
    )
    parser.add_argument(
        "--images",
        default="",
        metavar="NAME",
        help="array of an .npz, or column of a parquet file, with the images",
    )
    parser.add_argument(
        "--labels",
        default="",
        metavar="NAME",
        help="array, or column of a table, with the labels",
    )
    parser.add_argument(
        "--table",
        default="",
        metavar="FILE",
        help="CSV, TSV or JSON lines with labels and conditions, a row for each image",
    )
    parser.add_argument(
        "--condition",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="columns of the table, or arrays, that become conditions; json:KEY or NAME.npy of parts; cls: the class; "
        "COLUMN:KIND sets a kind: number, flag, class or vector (default: by the values)",
    )
    parser.add_argument("--no-labels", action="store_true", help="leave labels out")
    parser.add_argument("--image-part", default="", metavar="SUFFIX", help="suffix of the images, such as image.png")
    parser.add_argument("--allow-corrupt", action="store_true", help="use the good samples of corrupt shards")
    parser.add_argument("--overwrite", action="store_true", help="replace what OUT holds")


def _resolution(text: str) -> int | tuple[int, int]:
    """Read a side, or height and width."""
    try:
        sides = [int(word) for word in text.lower().split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2):
        raise argparse.ArgumentTypeError(f"{text!r}: a side such as 64, or HEIGHTxWIDTH such as 48x64")
    return sides[0] if len(sides) == 1 or sides[0] == sides[1] else (sides[0], sides[1])


def _pack(options: argparse.Namespace) -> None:
    from distgan.data.encode import PackOptions
    from distgan.data.pack import pack
    from distgan.data.pack_entry import ListingOptions
    from distgan.data.pack_summary import report

    fields = ["resolution", "crop", "filter", "image", "quality", "background", "max_pixels"]
    fields += ["channels", "dtype", "alpha"]
    started = time.perf_counter()
    with term_interrupts():
        summary = pack(
            options.source,
            options.out,
            PackOptions(
                **{name: getattr(options, name) for name in fields},
                range=tuple(options.range) if options.range else None,
            ),
            ListingOptions(
                labels=not options.no_labels,
                label=options.label,
                part=options.image_part,
                allow_corrupt=options.allow_corrupt,
                degraded=options.degraded,
                images=options.images,
                labels_in=options.labels,
                table=options.table,
                conditions=tuple(options.condition),
            ),
            shard_mb=options.shard_mb,
            workers=options.workers,
            overwrite=options.overwrite,
        )
    show(*report(summary, options.out, time.perf_counter() - started))


def _add_index(commands: Commands) -> None:
    parser = add_command(
        commands,
        "index",
        _index,
        "write the index of plain WebDataset tars, and check them",
        "distgan index data/faces",
    )
    parser.add_argument("shards", nargs="+", help="files, folders, globs or addresses")


def _index(options: argparse.Namespace) -> int:
    from distgan.data.index_cache import load
    from distgan.data.shard_index import describe
    from distgan.data.shard_urls import find_shards
    from distgan.storage.byte_ranges import ByteRangeReader, public
    from distgan.storage.home import default_cache_dir

    source, samples, defects = ByteRangeReader(), 0, 0
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
