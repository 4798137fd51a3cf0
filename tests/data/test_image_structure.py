"""What makes a picture slow is found in its bytes, and no picture that an encoder writes is taken for one."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from distgan.data.image_structure import MAX_SCANS, jpeg_objection, objection


def saved(name: str, side: int = 64, **options: object) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(file, name, **options)
    return file.getvalue()


def test_scans_of_a_jpeg_are_counted_up_to_its_end() -> None:
    plain, progressive = saved("JPEG"), saved("JPEG", progressive=True)
    assert jpeg_objection(plain) == ("", False)
    assert jpeg_objection(progressive) == ("", True)
    last, own = progressive.rfind(b"\xff\xda"), progressive.count(b"\xff\xda")
    scan, end = progressive[last:-2], progressive[-2:]
    most = progressive[:-2] + scan * (MAX_SCANS - own)
    assert jpeg_objection(most + end) == ("", True)
    assert jpeg_objection(most + scan + end) == (f"a JPEG of more than {MAX_SCANS} scans", True)
    assert jpeg_objection(most + end + scan * 100) == ("", True)  # after the end, as in a picture that moves
    hidden = b"\xff\xfe\0\4\xff\xd9"  # an end within a comment is none
    assert jpeg_objection(most + hidden + scan + end)[0] != ""


@pytest.mark.parametrize("name", ["PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF"])
def test_pictures_of_encoders_are_read(name: str) -> None:
    assert objection(saved(name, 300)) == ""


@given(st.binary(max_size=300), st.integers(0, 40))
def test_any_bytes_have_an_answer(tail: bytes, cut: int) -> None:
    for start in (b"\xff\xd8\xff", b"\xff\xd8\xff\xc2\0\x11\x08", b"\x89PNG\r\n\x1a\n", b"BM", b"P3 ", b"GIF89a"):
        data = (start + tail)[: len(start) + len(tail) - cut]
        assert isinstance(objection(data), str)
        assert isinstance(jpeg_objection(data)[0], str)
