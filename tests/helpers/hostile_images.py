"""A corpus of pictures that are small on the disk and large, slow or without an end for who decodes them."""

import io
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from hostile import Case, Share
from PIL import Image, ImageDraw

from distgan.data.decode import DecodeOptions, decode, decode_into
from distgan.data.image_format import CorruptImage
from distgan.image_spec import square

BAD, GOOD, EITHER = ("skipped",), ("right",), ("right", "skipped")
Made = tuple[str, Callable[[], bytes], tuple[str, ...]]
SECONDS = (  # take a second or more each; no share has them
    "a TIFF of 60,000 tags in the same place",
    "a GIF of small blocks",
    "16 million pixels with alpha",
    "a PPM in text of one million pixels",
    "a PPM with a comment without an end",
    "16 bits of 9 million pixels",
)


def cases(folder: Path, share: Share) -> Iterator[Case]:
    """Each is decoded both ways: as it is, and into a square."""

    def chosen(made: Iterable[Made]) -> Iterator[Made]:
        return (one for one in made if share.whole or one[0] not in SECONDS)

    for name, make, allowed in chosen((*jpegs(), *tiffs_and_gifs(), *pngs(), *others())):
        data = make()
        yield Case(name, lambda data=data: _decoded(data), allowed, memory_mb=768)
    for name, make, _ in chosen(deep()):
        data = make()
        yield Case(name, lambda data=data: _on_a_range(data), EITHER, memory_mb=768)


def _decoded(data: bytes) -> str | None:
    try:
        pixels = decode(data).pixels
        assert pixels.dtype == np.uint8 and pixels.shape[2] == 3
        decode_into(data, np.empty((64, 64, 3), np.uint8), DecodeOptions(square(64), "area"))
    except CorruptImage as reason:
        assert 5 < len(str(reason)) < 100, str(reason)
        return "skipped"
    return None


def _on_a_range(data: bytes) -> str | None:
    try:
        decode(data, value_range=(0, 4095), measure=True)
    except CorruptImage:
        return "skipped"
    return None


def jpegs() -> Iterator[Made]:
    few, many = _progressive(8), _progressive(1000)
    yield "a JPEG of 8 scans more", lambda: few, EITHER
    yield "a JPEG of 1,000 scans", lambda: many, BAD
    yield "a JPEG of 1,000 scans of its size", lambda: _progressive(1000, 64), BAD
    start, rest = few[:2], few[2:]
    comment = b"\xff\xfe\0\2"
    exif = b"\xff\xe1\0\x0eExif\0\0II*\0\0\0"
    yield "a JPEG of a million comments", lambda: start + comment * 10**6 + rest, BAD
    yield "a turned JPEG of a million comments", lambda: start + exif + comment * 10**6 + rest, BAD
    yield "a JPEG of a million filled markers", lambda: start + b"\xff" * 10**6 + rest, EITHER
    yield "a JPEG of zeros before its frame", lambda: start + bytes(10**7) + rest, EITHER
    yield "a JPEG of restarts", lambda: start + b"\xff\xd0" * 10**6 + rest, BAD
    yield "a JPEG without an end", lambda: few[:-200], EITHER
    size = few.index(b"\xff\xc2") + 5
    huge = few[:size] + b"\xff" * 4 + few[size + 4 :]
    yield "a JPEG of 65535 x 65535", lambda: huge, BAD


def tiffs_and_gifs() -> Iterator[Made]:
    yield "a TIFF of 50,000 pages", lambda: _pages(50_000), GOOD
    yield "a TIFF whose pages go round", lambda: _pages(3, last=8), EITHER
    yield "a TIFF of 60,000 tags in the same place", lambda: _tags(60_000), EITHER
    frame = b",\0\0\0\0\4\0\4\0\0\2\2\x4c\1\0"
    start = b"GIF89a\4\0\4\0\x80\0\0" + bytes(3) + b"\xff" * 3
    yield "a GIF of a million frames", lambda: start + frame * 10**6 + b";", GOOD
    yield "a GIF of small blocks", lambda: start + b"!\xfe" + b"\1x" * 5 * 10**6 + b"\0" + frame + b";", EITHER
    yield "a GIF of 60 MB of blocks", lambda: start + b"!\xfe" + (b"\xff" + bytes(255)) * 240_000 + b"\0" + frame, BAD
    yield "a GIF without an end", lambda: start + frame[:12] + b"\xff" * 10**6, EITHER


def pngs() -> Iterator[Made]:
    good = _png(8, 8, 2, bytes(25 * 8))
    chunk = _chunk(b"teSt", b"")
    yield "a PNG of a million chunks", lambda: good[:33] + chunk * 10**6 + good[33:], BAD
    yield "a PNG of a million empty data chunks", lambda: good[:33] + _chunk(b"IDAT", b"") * 10**6 + good[33:], BAD
    yield "a PNG of 20,000 chunks", lambda: good[:33] + _chunk(b"teSt", bytes(2000)) * 20_000 + good[33:], GOOD
    packed = zlib.compress(bytes(2**26))
    for name, kind, content in (
        ("10,000 frames", b"acTL", struct.pack(">II", 10_000, 0)),
        ("a text that inflates", b"zTXt", b"a\0\0" + packed),
        ("a profile that inflates", b"iCCP", b"a\0\0" + packed),
    ):
        content = good[:33] + _chunk(kind, content) + good[33:]
        yield f"a PNG with {name}", lambda content=content: content, EITHER
    yield "a PNG of 10^9 pixels", lambda: _png(31623, 31623, 2, bytes(100)), BAD
    yield "a PNG of 2^62 pixels", lambda: _png(2**31 - 1, 2**31 - 1, 2, bytes(100)), BAD
    yield "a PNG whose rows go on", lambda: _png(8, 8, 2, bytes(2**26)), EITHER
    yield "16 million pixels with alpha", lambda: _png(4096, 4096, 6, bytes(4096 * (4096 * 4 + 1))), GOOD


def others() -> Iterator[Made]:
    yield "a PPM in text of 40 MB", lambda: b"P3 2600 2600 255\n" + b"0 " * (3 * 2600**2), BAD
    yield "a PPM in text of one million pixels", lambda: b"P3 1000 1000 255\n" + b"0 " * (3 * 1000**2), GOOD
    yield "a PPM with a comment without an end", lambda: b"P6 #" + b"x" * 10**7, BAD
    yield "a PPM with a long number", lambda: b"P6 " + b"9" * 10**6 + b" 1 255\n", BAD
    runs = struct.pack("<IIiiHHIIiiII", 40, 0, 9000, 9000, 1, 8, 1, 0, 0, 0, 0, 0)[4:]
    head = b"BM" + struct.pack("<IHHI", 0, 0, 0, 54) + struct.pack("<I", 40) + runs[4:]
    yield "a BMP of 20 MB of runs", lambda: head + b"\1\0" * 10**7, BAD
    for name in ("WEBP", "AVIF", "JPEG2000", "TIFF", "GIF", "BMP", "PPM", "PNG"):
        yield f"half a {name}", lambda name=name: _saved(name)[: len(_saved(name)) // 2], EITHER
        yield f"a {name} with other bytes", lambda name=name: _disturbed(_saved(name)), EITHER


def deep() -> Iterator[Made]:
    yield "16 bits of 9 million pixels", lambda: _png(3000, 3000, 2, bytes(3000 * (3000 * 6 + 1)), 16), GOOD
    yield "16 bits of gray", lambda: _png(4096, 4096, 0, bytes(4096 * (4096 * 2 + 1)), 16), GOOD


# What makes them.


def _progressive(extra: int, side: int = 256) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    file = io.BytesIO()
    image = Image.new("RGB", (side, side))
    ImageDraw.Draw(image).ellipse((10, 10, side - 9, side - 9), fill=(200, 90, 20))
    image.save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data.rfind(b"\xff\xda")
    return data[:-2] + data[last:-2] * extra + data[-2:]


def _pages(num: int, last: int = 0) -> bytes:
    """A TIFF of many pages, all with the same pixels."""
    tags = ((256, 3, 1, 4), (257, 3, 1, 4), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8))
    tags += ((277, 3, 1, 1), (278, 3, 1, 4), (279, 4, 1, 16))
    page = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    size = len(page) + 4
    ends = [24 + size * (i + 1) for i in range(num - 1)] + [last]
    return b"II*\0" + struct.pack("<I", 24) + bytes(16) + b"".join(page + struct.pack("<I", end) for end in ends)


def _tags(num: int) -> bytes:
    """A TIFF whose tags all name the same bytes, many times as many as the file has."""
    tags = [(256, 3, 1, 4), (257, 3, 1, 4), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    tags += [(277, 3, 1, 1), (278, 3, 1, 4), (279, 4, 1, 16)]
    tags += [(1000 + i, 7, 500_000, 8) for i in range(num)]
    listed = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<I", 600_008) + bytes(600_000) + listed + bytes(4)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(width: int, height: int, kind: int, rows: bytes, bits: int = 8) -> bytes:
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + _chunk(b"IDAT", zlib.compress(rows, 1)) + _chunk(b"IEND", b"")


def _saved(name: str) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(file, name)
    return file.getvalue()


def _disturbed(data: bytes) -> bytes:
    numbers = np.frombuffer(data, np.uint8).copy()
    places = np.random.default_rng(len(data)).integers(4, len(data), 20)
    numbers[places] ^= 0x55
    return numbers.tobytes()
