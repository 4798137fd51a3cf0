"""Refuse small images that are slow to read, by their bytes, before a decoder sees them.

JPEG: ITU-T T.81, annex B; each scan of a progressive image touches all of it. PNG: chunks, which Pillow reads one by
one in Python, as it does the blocks of a GIF, numbers written as text (PPM), and runs (BMP).
"""

import re

MAX_SCANS = 100  # of a JPEG; encoders write about ten
MAX_SEGMENTS = 4000  # of a JPEG: before its first scan, and from there on
MAX_CHUNKS, CHUNK_BYTES = 10_000, 1024  # of a PNG: so many, and one more for each of these bytes
MAX_SLOW_BYTES = 2**24  # of what Pillow reads in Python, bit by bit
GIF_BYTES = 2**25  # of a GIF, in which its first image must be
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers that begin a frame
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_ALONE = {0x00, 0x01, *range(0xD0, 0xD9)}  # markers without a length
_LONG = frozenset(range(0x02, 0xFF)) - _ALONE  # and those with one
_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")


def jpeg_objection(data: bytes) -> tuple[str, bool]:
    """Return why a JPEG is not decoded, if at all, and whether it has several scans, which take more memory."""
    components, is_progressive, at, size = 0, False, 2, len(data) - 8
    for _ in range(MAX_SEGMENTS):
        if at < size and data[at] == 0xFF and data[at + 1] in _LONG:  # nearly always
            kind, length, at = data[at + 1], data[at + 2] << 8 | data[at + 3], at + 2
        else:
            marker = _MARKER.search(data, at)
            if marker is None:
                return "", False  # the decoder says what is wrong
            kind, at = marker[1][0], marker.end()
            if kind in _ALONE:
                continue
            length = int.from_bytes(data[at : at + 2], "big")
        if kind == 0xDA:
            has_more = is_progressive or (len(data) > at + 2 and data[at + 2] < components)
            many = has_more and _num_scans(data, at + length) > MAX_SCANS
            return (f"a JPEG of more than {MAX_SCANS} scans" if many else ""), has_more
        if kind in _FRAMES and len(data) > at + 7:
            components, is_progressive = data[at + 7], kind in _PROGRESSIVE
        at += length
    return f"a JPEG of more than {MAX_SEGMENTS:,} segments", False


def _num_scans(data: bytes, at: int) -> int:
    """Count the scans of a JPEG to its end, one of which ends before byte `at`; many where much is between them."""
    scans = 1
    for _ in range(MAX_SEGMENTS):
        marker = _MARKER.search(data, at)
        if marker is None or marker[1][0] == 0xD9:
            return scans
        at = marker.end()
        if marker[1][0] not in _ALONE:
            scans += marker[1][0] == 0xDA
            at += int.from_bytes(data[at : at + 2], "big")
    return MAX_SCANS + 1


def objection(data: bytes) -> str:
    """Return why an image of another format is not read; empty where it is."""
    if data.startswith(b"\x89PNG"):
        at = 8
        for _ in range(MAX_CHUNKS + len(data) // CHUNK_BYTES):
            if at >= len(data):
                return ""
            at += 12 + int.from_bytes(data[at : at + 4], "big")
        return "a PNG of too many chunks"
    is_text = data[:2] in (b"P1", b"P2", b"P3")
    is_in_runs = data.startswith(b"BM") and data[30:34] in (b"\1\0\0\0", b"\2\0\0\0")
    if (is_text or is_in_runs) and len(data) > MAX_SLOW_BYTES:
        return f"an image in {'text' if is_text else 'runs'} of more than {MAX_SLOW_BYTES >> 20} MiB"
    return ""


def first_image(data: bytes) -> bytes:
    """Return the bytes of a file that are read for its first image."""
    return data[:GIF_BYTES] if data.startswith(b"GIF8") and len(data) > GIF_BYTES else data
