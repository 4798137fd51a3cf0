"""The commands. Each body imports what it needs, so that a typo is told without waiting for torch."""

import argparse
import os
import sys
import time
from collections.abc import Sequence

from distgan import __version__
from distgan.errors import DistganError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the process's exit code."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options) or 0
    except DistganError as error:
        if _rank() == 0:
            print(f"distgan {options.command}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `distgan ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _rank() -> int:
    """Of this process under a launcher; each message appears once."""
    return int(os.environ.get("RANK", "0") or 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="distgan", description="Train GANs on streamed image shards.")
    parser.add_argument("--version", action="version", version=f"distgan {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    pack = _command(commands, "pack", _pack, "images in a folder, archive, .npz or shards -> WebDataset shards")
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
    pack.add_argument("--no-labels", action="store_true", help="do not take class folders or labels over")
    pack.add_argument("--allow-damaged", action="store_true", help="take the good samples of damaged shards")
    pack.add_argument("--overwrite", action="store_true", help="replace what OUT holds")

    index = _command(commands, "index", _index, "make the index of plain WebDataset tars, and check them")
    index.add_argument("shards", nargs="+", help="files, folders, globs or addresses")
    return parser


def _command(commands, name: str, run, help: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help, description=help)
    parser.set_defaults(run=run)
    return parser


def _pack(options: argparse.Namespace) -> None:
    from distgan.data.pack import Options, pack, report

    fields = ("resolution", "crop", "filter", "image", "quality", "background", "max_pixels")
    started = time.perf_counter()
    summary = pack(
        options.source,
        options.out,
        Options(**{name: getattr(options, name) for name in fields}),
        shard_mb=options.shard_mb,
        workers=options.workers,
        labels=not options.no_labels,
        allow_damaged=options.allow_damaged,
        overwrite=options.overwrite,
    )
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
