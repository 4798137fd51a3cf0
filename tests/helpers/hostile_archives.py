"""A corpus of archives and array files that promise or hold far more than they are worth, for `pack` and statistics."""

import bz2
import gzip
import io
import json
import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from hostile import Case, Share, command
from shards import image_bytes, numbered_pixels
from streams import make_stream

from distgan.data import pixels, tar
from distgan.data.dataset import Dataset
from distgan.data.decode import DecodeOptions
from distgan.data.shuffle import ShuffleLayout, ShuffleOrder
from distgan.image_spec import square
from distgan.metrics.reference_stats import load_statistics
from distgan.storage.byte_ranges import ByteRangeReader

MIB = 2**20
GOOD = image_bytes(numbered_pixels(5))
BLOCK = (pack_mib := zlib.compressobj(9, wbits=-15)).compress(bytes(MIB)) + pack_mib.flush(zlib.Z_FULL_FLUSH)
HEADER = "{'descr': '|u1', 'fortran_order': False, 'shape': (6, 8, 8, 3), }"

SECONDS = {  # take about a second each, and are the like of another one, which every share has
    ("packed tar", "an image of 3000 MiB of zeros"),
    ("packed tar", "a table of 600 MiB"),
    ("packed tar", "200,000 empty files in few bytes"),
}


def cases(folder: Path, share: Share) -> Iterator[Case]:
    """All of them; each writes its input where it is made, so that the bounds hold for the reader alone."""
    folder.mkdir(exist_ok=True)
    for kind, made in (("zip", zips()), ("tar", tars()), ("packed tar", packed_tars()), ("npz", arrays())):
        for number, (name, suffix, write, allowed) in enumerate(made):
            if (kind, name) in SECONDS and not share.whole:
                continue
            path = folder / f"{kind.replace(' ', '-')}{number}{suffix}"
            write(path)
            yield Case(f"{kind}: {name}", packing(path), allowed)
    for number, size in enumerate((600 * MIB, 2**32 - 1, 2**32)):
        path = folder / f"shard{number}.tar"
        holed(tar.sample("good", {"png": GOOD}), header("bad.png", size), size + -size % tar.BLOCK)(path)
        allowed = ("quarantined",) if size < 2**32 else ("refused 3",)
        yield Case(f"loader: an image that is a hole of {size:,} bytes", training_on(path), allowed)
        yield Case(f"loader: seen before training, {size:,} bytes", looking_at(path), ("right", "refused 3"))
    for number, (name, content) in enumerate(statistics()):
        path = folder / f"statistics{number}.npz"
        path.write_bytes(content)
        yield Case(f"statistics: {name}", reading(path), ("refused 3",))


def packing(path: Path) -> Callable[[], str | None]:
    """Pack it; its good pictures, named good*.png, must all come out, and the others be counted."""

    def run() -> str | None:
        out = path.with_name(path.name + ".out")
        command("pack", path, out, "--resolution", 8, "--workers", 1)
        card = json.loads((out / "dataset.json").read_text())
        assert card["samples"] in (1, 2, 6), card
        return "skipped" if card["skipped"] else None

    return run


def training_on(path: Path) -> Callable[[], str]:
    """Read it as training does, which replaces what cannot be decoded and says so."""

    def run() -> str:
        source = ByteRangeReader()
        dataset = Dataset([str(path)], source)
        plan = ShuffleOrder(dataset.counts, ShuffleLayout.choose(dataset.num_samples, dataset.mean_bytes, 2), seed=0)
        with make_stream(dataset, plan, batch=2, resolution=16, max_corrupt_fraction=0.5) as stream:
            assert next(stream).num_replaced == 1
            bad = stream.pop_corrupt()
        source.close()
        assert [(one["key"], one["reason"]) for one in bad] == [("bad", "a file of more than 512 MiB")], bad
        return "quarantined"

    return run


def looking_at(path: Path) -> Callable[[], None]:
    return lambda: pixels.look(Dataset([str(path)], ByteRangeReader()), DecodeOptions(square(64))) and None


def reading(path: Path) -> Callable[[], None]:
    return lambda: load_statistics(path, "toy", 32, 0) and None


Made = tuple[str, str, Callable[[Path], object], tuple[str, ...]]


def zips() -> Iterator[Made]:
    """Zip archives: name, suffix, what writes one, and what may come of it."""
    good = deflated("good.png", GOOD)
    digits = b'{"labels":[["good.png",%d]]}' % 10**400
    refused = ("refused 3",)
    for size in (600, 3000):
        huge = "bad.png", zipfile.ZIP_DEFLATED, BLOCK * size + b"\3\0", size * MIB, 0
        yield f"an image of {size} MiB of zeros", ".zip", zip_of([good, huge]), ("skipped",)
        yield "which says that it is small", ".zip", zip_of([good, (*huge[:3], 1000, 0)]), ("skipped",)
        yield "among pairs of the same name", ".zip", zip_of([huge, good, huge]), ("skipped",)
    table = "dataset.json", zipfile.ZIP_DEFLATED, BLOCK * 1000 + b"\3\0", 1000 * MIB, 0
    yield "a table of 1,000 MiB", ".zip", zip_of([good, table]), refused
    spaces = deflated("dataset.json", b" " * (65 * MIB) + b"{}")
    yield "a table of 65 MiB of spaces", ".zip", zip_of([good, spaces]), refused
    yield "a label of 17 MiB", ".zip", zip_of([good, deflated("good.cls", b"1" * 17 * MIB)]), refused
    yield "a label of 5,000 digits", ".zip", zip_of([good, deflated("good.cls", b"1" * 5000)]), refused
    yield "a label of 400 digits", ".zip", zip_of([good, deflated("good.cls", b"1" * 400)]), refused
    yield "a class name of 10,000 letters", ".zip", zip_of([good, deflated("good.cls", b"x" * 10000)]), refused
    yield (
        "a table of huge numbers",
        ".zip",
        zip_of([good, deflated("dataset.json", digits)]),
        refused,
    )
    for method, packer in ((zipfile.ZIP_BZIP2, bz2.compress), (zipfile.ZIP_LZMA, lzma_in_zip)):
        for size in (8, 600):
            raw = packer(bytes(size * MIB)) if size == 8 else packer(bytes(8 * MIB)) * 75
            bad = "bad.png", method, raw, size * MIB, zlib.crc32(bytes(8 * MIB)) if size == 8 else 0
            yield f"{size} MiB of zeros by method {method}", ".zip", zip_of([good, bad]), ("skipped",)
    lie = "bad.png", zipfile.ZIP_STORED, b"", 100 * MIB, 0
    yield "a stored file without its bytes", ".zip", zip_of([good, lie]), ("skipped",)
    cut = "bad.png", zipfile.ZIP_DEFLATED, BLOCK[:100], 1000, 0
    yield "a file that ends early", ".zip", zip_of([good, cut]), ("skipped",)
    yield "an unknown method", ".zip", zip_of([good, ("bad.png", 99, b"x", 1, 0)]), ("skipped",)
    whole = io.BytesIO()
    zip_of([good])(whole)
    for at, what in ((-6, b"\xff\xff\xff\x7f"), (-10, b"\xff\xff\xff\x7f"), (-12, b"\xff\xff")):
        content = bytearray(whole.getvalue())
        content[at : at + len(what)] = what
        yield f"an end of the list with bytes {at}", ".zip", writer(bytes(content)), ("right", "refused 3")


def tars() -> Iterator[Made]:
    """Plain tars, most of them with holes."""
    refused = ("refused 3",)
    good = tar.sample("good", {"png": GOOD})
    for size in (600 * MIB, 3900 * MIB, 2**40):
        yield (
            f"an image that is a hole of {size >> 20} MiB",
            ".tar",
            holed(good, header("bad.png", size), size),
            ("skipped",),
        )
    yield "a label that is a hole", ".tar", holed(good, header("good.txt", 2**35), 2**35), ("right", "skipped")
    yield "zeros of 1 TiB after the end", ".tar", holed(good, tar.END, 2**40, b""), refused
    yield "an extended header of 2 GiB", ".tar", holed(good, header("pax", 2**31, b"x"), 2**31), refused
    yield "a long name of 2 GiB", ".tar", holed(good, header("L", 2**31, b"L"), 2**31), refused
    name = b"./" + b"a" * 5000 + b".png"
    yield "a name of 5,000 letters", ".tar", writer(good + member(b"L", name) + member(b"0", GOOD) + tar.END), refused
    tiny = b"5 a=\n" * 200_000
    yield "an extended header of 200,000 records", ".tar", writer(member(b"x", tiny) + good + tar.END), refused
    many = member(b"g", b"".join(b"%d k%d=%s\n" % (17, i, b"0" * (11 - len(b"%d" % i))) for i in range(100)))
    yield "many global headers", ".tar", writer(many * 500 + good + tar.END), ("right", "refused 3")
    yield "a size of 2^80", ".tar", writer(good + header("bad.png", 2**80) + tar.END), refused
    record = b"29 size=18446744073709551615\n"
    yield "an extended size of 2^64", ".tar", writer(good + member(b"x", record) + member(b"0", b"") + tar.END), refused


def packed_tars() -> Iterator[Made]:
    """Compressed ones, of which nothing is known before it is inflated."""
    good = tar.sample("good", {"png": GOOD})
    for size in (600, 3000):
        yield f"an image of {size} MiB of zeros", ".tar.gz", gz_of(good, "bad.png", size), ("skipped", "refused 3")
    yield "a label of 600 MiB", ".tar.gz", gz_of(good, "good.cls", 600), ("refused 3",)
    yield "a table of 600 MiB", ".tar.gz", gz_of(good, "dataset.json", 600), ("refused 3",)
    for suffix, start, repeated in (
        (".tar.bz2", bz2.compress(good + header("bad.png", 4000 * MIB)), bz2.compress(bytes(20 * MIB))),
        (".tar.xz", lzma.compress(good + header("bad.png", 4000 * MIB)), lzma.compress(bytes(20 * MIB))),
    ):
        yield "an image of 4,000 MiB", suffix, writer(start + repeated * 200), ("refused 3",)
    names = header("a.png", 0) * 200_000
    yield "200,000 empty files in few bytes", ".tar.gz", writer(gzip.compress(names, 1)), ("refused 3",)
    links = header("a.png", 0, b"1") * 200_000
    yield "200,000 links in few bytes", ".tar.gz", writer(gzip.compress(links, 1)), ("refused 3",)
    yield "an extended header of 2 GiB", ".tar.gz", gz_of(header("pax", 2**31, b"x"), "a.png", 1), ("refused 3",)
    yield "no end", ".tar.gz", writer(gzip.compress(good)), ("refused 3",)
    yield "garbage", ".tar.xz", writer(b"\xfd7zXZ\0" + bytes(100)), ("refused 3",)
    huge = bytearray(lzma.compress(good + tar.END, lzma.FORMAT_ALONE))
    huge[1:5] = (2**30).to_bytes(4, "little")
    yield "a dictionary of 1 GiB", ".tar.xz", writer(bytes(huge)), ("right", "refused 3")


def arrays() -> Iterator[Made]:
    """Array files with images."""
    refused = ("refused 3",)
    pixels = np.arange(6 * 8 * 8 * 3, dtype=np.uint8).reshape(6, 8, 8, 3).tobytes()
    yield "as it should be", ".npz", npz_of(HEADER, pixels), ("right",)
    for shape in (
        *("(1000000000000, 8, 8, 3)", f"({10**30}, 8, 8, 3)", "(-6, 8, 8, 3)", "(6, -8, -8, 3)", "(0, 8, 8, 3)"),
        *("(6, 8, 8, 3.0)", "(True, 8, 8, 3)", "()", "(6, 100000000000, 0, 3)", "(7, 8, 8, 3)", "(6, 8, 8, 'x')"),
        *(f"({'1, ' * 40})", f"({'9' * 5000}, 8, 8, 3)", "None", "[6, 8, 8, 3]", "(6, 2**62, 8, 3)"),
    ):
        yield f"shape {shape[:40]}", ".npz", npz_of(HEADER.replace("(6, 8, 8, 3)", shape), pixels), refused
    for kind in ("O", "|O", "<f8", "<M8[s]", "|V999999999", "<U2000000000", "<c16", "|S0", "é", "i" * 1000):
        yield f"type {kind[:20]}", ".npz", npz_of(HEADER.replace("|u1", kind), pixels), refused
    yield "masks", ".npz", npz_of(HEADER.replace("|u1", "|b1"), pixels), ("right",)
    deep = "{'descr': '|u1', 'fortran_order': False, 'shape': " + "(" * 5000 + ")" * 5000 + "}"
    for name, text in (
        ("nothing", ""),
        ("words", "import os"),
        ("a call", "__import__('os').system('touch X')"),
        ("deep", deep),
        ("minus signs", HEADER.replace("(6", "(" + "-" * 9000 + "6")),
        ("too long", HEADER + " " * 60_000),
        ("a list of types", HEADER.replace("'|u1'", "[('a', '|u1')] * 9")),
        ("zero bytes", HEADER.replace("|u1", "\0")),
        ("no shape", "{'descr': '|u1', 'fortran_order': False}"),
        ("columns first", HEADER.replace("False", "9")),
    ):
        allowed = refused
        yield f"header of {name}", ".npz", npz_of(text, pixels), allowed
    yield "a header of 4 GiB", ".npz", npz_of(HEADER, pixels, b"\x93NUMPY\x02\0\xff\xff\xff\xff"), refused
    yield "version 3", ".npz", npz_of(HEADER, pixels, b"\x93NUMPY\x03\0\x40\0\0\0"), refused
    zeros = HEADER.replace("(6, 8, 8, 3)", f"({1000 * 16}, 256, 256, 3)")
    yield "3 GB of zeros in 3 MB", ".npz", inflating(zeros, 3000), refused
    rows = HEADER.replace("(6, 8, 8, 3)", f"(1, {1000 * MIB // 3}, 1, 3)")
    yield "one image of 1 GB", ".npz", inflating(rows, 1000), refused
    first = HEADER.replace("(6", f"({300 * MIB // 192}").replace("False", "True")
    yield "300 MB by columns", ".npz", inflating(first, 300, level=4), refused
    yield "labels without an end", ".npz", labelled("<i8", (6,), bytes(8)), refused
    yield "labels of another number", ".npz", labelled("<i8", (2**40,), bytes(48)), refused
    yield "labels that are objects", ".npz", labelled("|O", (6,), bytes(48)), refused
    yield "a label of 2^62", ".npz", labelled("<i8", (6,), struct.pack("<6q", *[2**62] * 6)), refused
    yield "cut", ".npz", npz_of(HEADER, pixels[:-1]), refused


def statistics() -> Iterator[tuple[str, bytes]]:
    """Statistics files."""
    for name, shapes in {
        "10^12 features": ("(1000000000000,)", "(32, 32)"),
        "sigma of 10^30": ("(32,)", f"({10**30}, 32)"),
        "negative": ("(-32,)", "(-32, -32)"),
        "sigma without its bytes": ("(32,)", "(32, 32)"),
        "another number": ("(33,)", "(33, 33)"),
    }.items():
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for array, shape in zip(("mu", "sigma"), shapes):
                archive.writestr(
                    f"{array}.npy", npy(HEADER.replace("|u1", "<f8").replace("(6, 8, 8, 3)", shape), bytes(256))
                )
        yield name, file.getvalue()
    yield "not even an archive", b"PK\x05\x06" + bytes(18)


# What makes them.


def writer(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def deflated(name: str, content: bytes) -> tuple[str, int, bytes, int, int]:
    packer = zlib.compressobj(1, wbits=-15)
    return name, zipfile.ZIP_DEFLATED, packer.compress(content) + packer.flush(), len(content), zlib.crc32(content)


def lzma_in_zip(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x", content)
        size = archive.getinfo("x").compress_size
    return file.getvalue()[31 : 31 + size]


def zip_of(members: Iterable[tuple[str, int, bytes, int, int]]) -> Callable[[Path | io.BytesIO], None]:
    """A zip archive whose list says of each file: name, method, packed bytes, size and checksum."""
    body, listed = b"", b""
    for name, method, raw, size, crc in members:
        fields = struct.pack("<HHHHIIIHH", 0, method, 0, 0, crc, len(raw), size % 2**32, len(name), 0)
        listed += b"PK\1\2\x14\0\x14\0" + fields + struct.pack("<HHHII", 0, 0, 0, 0, len(body)) + name.encode()
        body += b"PK\3\4\x14\0" + fields + name.encode() + raw
    number = len(list(members))
    content = body + listed + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, number, number, len(listed), len(body), 0)
    return lambda out: out.write(content) if isinstance(out, io.BytesIO) else out.write_bytes(content)


def header(name: str, size: int, kind: bytes = b"0") -> bytes:
    block = bytearray(tar.header(name, 0))
    block[124:136] = b"%011o\0" % size if size < 8**11 else b"\x80" + size.to_bytes(11, "big")
    block[156:157], block[148:156] = kind, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(kind: bytes, content: bytes) -> bytes:
    return header("member.png", len(content), kind) + content + bytes(-len(content) % tar.BLOCK)


def holed(start: bytes, end: bytes, hole: int, after: bytes = tar.END) -> Callable[[Path], None]:
    """A file with a hole that takes no room on the disk."""

    def write(path: Path) -> None:
        with open(path, "wb") as file:
            file.write(start + end)
            file.truncate(len(start + end) + hole)
            file.seek(0, 2)
            file.write(after)

    return write


def gz_of(start: bytes, name: str, size_mib: int) -> Callable[[Path], object]:
    """A compressed tar of few bytes, whose last member are zeros."""
    first = zlib.compressobj(9, wbits=-15)
    raw = first.compress(start + header(name, size_mib * MIB)) + first.flush(zlib.Z_FULL_FLUSH)
    return writer(b"\x1f\x8b\x08\0\0\0\0\0\0\3" + raw + BLOCK * size_mib + b"\3\0" + bytes(8))


def npy(text: str, content: bytes, start: bytes = b"") -> bytes:
    raw = text.encode("latin1")
    start = start or b"\x93NUMPY\1\0" + struct.pack("<H", len(raw))
    return start + raw + content


def npz_of(text: str, content: bytes, start: bytes = b"") -> Callable[[Path], object]:
    return zip_of([deflated("images.npy", npy(text, content, start))])


def inflating(text: str, size_mib: int, level: int = 0) -> Callable[[Path], object]:
    """An array file of few bytes whose values are zeros; a `level` keeps it below the ratio that is refused at once."""
    first = zlib.compressobj(9, wbits=-15)
    raw = first.compress(npy(text, b"")) + first.flush(zlib.Z_FULL_FLUSH)
    noise = np.random.default_rng(0).bytes(level * MIB)
    part = b"\0" + struct.pack("<HH", 2**15, 2**16 - 1 - 2**15)
    stored = b"".join(part + noise[i : i + 2**15] for i in range(0, len(noise), 2**15))
    size = len(npy(text, b"")) + (size_mib + level) * MIB
    return zip_of([("images.npy", zipfile.ZIP_DEFLATED, raw + BLOCK * size_mib + stored + b"\3\0", size, 0)])


def labelled(kind: str, shape: tuple[int, ...], content: bytes) -> Callable[[Path], object]:
    labels = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
    return zip_of(
        [deflated("images.npy", npy(HEADER, bytes(6 * 8 * 8 * 3))), deflated("labels.npy", npy(labels, content))]
    )
