"""Whatever bytes a reader is given, it reads what is there or refuses it in its own way; nothing else comes of it."""

import gzip
import io
import os
import socket
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from distgan.config.load import load
from distgan.config.schema import Config
from distgan.data import archives, tar
from distgan.errors import ConfigError, DataError
from distgan.storage.array_file import MAX_EMPTY, WHOLE, ArrayFile
from distgan.storage.byte_ranges import ByteRangeReader

SAME_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
CHANGES = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6)


def changed(data: bytes, changes: list[tuple[float, int]], cut: float) -> bytes:
    """A file in which some bytes are others, and whose end may be gone."""
    content = bytearray(data)
    for where, value in changes:
        content[int(where * len(content))] = value
    return bytes(content[: round(len(content) * cut)])


def a_tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, size in (("a.png", 700), ("ä" * 60 + ".png", 3), ("b.cls", 1), ("n" * 150 + ".png", 0)):
            member = tarfile.TarInfo(name)
            member.size, member.mtime = size, 1.5
            archive.addfile(member, io.BytesIO(bytes(range(size % 251)) * size))
    return file.getvalue()


def a_zip(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


TAR, ZIP = a_tar(), a_zip(a=bytes(5000), b=b"b" * 700, c=os.urandom(300))


@given(changes=CHANGES, cut=st.sampled_from([1, 1, 0.97, 0.4]))
@SAME_FOLDER
def test_a_changed_tar_names_places_in_itself_or_is_damaged(
    changes: list[tuple[float, int]], cut: float, tmp_path: Path
) -> None:
    data = changed(TAR, changes, cut)
    (tmp_path / "a.tar").write_bytes(data)
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(data, 1))

    def found(source: tar.Bytes) -> tuple[list, str]:
        members = []
        try:
            for name, kind, first, at, length in tar.members(source, len(data)):
                assert 0 <= first < at <= at + length <= len(data)
                assert len(name) <= tar.MAX_NAME
                members.append((name, kind, first, at, length))
        except tar.TarError as damage:
            return members, str(damage)
        return members, ""

    expected = found(data)
    with open(tmp_path / "a.tar", "rb", buffering=0) as file:
        assert found(tar._FromFile(file)) == expected
    plain = [] if not data else archives.tar_names(tmp_path / "a.tar", [], allow_corrupt=True)
    skipped: list[archives.Skipped] = []
    streamed = [
        (name, read(size)) for name, size, read in archives.unpacked(tmp_path / "a.tar.gz", skipped, allow_corrupt=True)
    ]
    # A member that the end of the file cuts is known in a plain tar before it is read, in a stream when it is.
    assert [(name, data[at : at + size]) for name, (at, size) in plain] == streamed[: len(plain)]
    assert len(streamed) <= len(plain) + 1
    if expected[1]:
        with pytest.raises(DataError):
            list(archives.unpacked(tmp_path / "a.tar.gz", []))


def read_zip(path: Path) -> None:
    """List and read a zip; raises nothing but what callers expect."""
    try:
        names = archives.zip_names(path)
    except DataError:
        return
    for name in names:
        try:
            assert len(archives.zip_read(str(path), name, 1000)) <= 1000
        except OSError:
            continue


@given(changes=CHANGES, cut=st.sampled_from([1, 1, 0.97, 0.4]))
@SAME_FOLDER
def test_a_changed_zip_is_read_or_refused(changes: list[tuple[float, int]], cut: float, tmp_path: Path) -> None:
    path = tmp_path / f"{os.urandom(8).hex()}.zip"  # an archive is kept open by its name
    path.write_bytes(changed(ZIP, changes, cut))
    read_zip(path)
    path.unlink()


@pytest.mark.parametrize("value", [0, 8, 127, 128, 255])
def test_every_byte_of_a_zip_that_is_not_content_may_be_another(value: int, tmp_path: Path) -> None:
    """Sizes, places, flags, versions and names, one byte after the other: what chance seldom finds."""
    whole = a_zip(**{"a.png": b"a" * 300, "b/\u00e9.png": b"b"})
    for at in range(len(whole)):
        path = tmp_path / f"{at}.zip"
        path.write_bytes(changed(whole, [((at + 0.5) / len(whole), value)], 1))
        read_zip(path)


@given(changes=CHANGES, cut=st.sampled_from([1, 1, 0.97, 0.4]))
@SAME_FOLDER
def test_a_changed_array_file_is_read_or_refused(changes: list[tuple[float, int]], cut: float, tmp_path: Path) -> None:
    file = io.BytesIO()
    np.savez(file, images=np.arange(48, dtype=np.uint8).reshape(4, 4, 3), labels=np.arange(4))
    (tmp_path / "a.npz").write_bytes(changed(file.getvalue(), changes, cut))
    _require_bounded(tmp_path / "a.npz")


SIZES = st.one_of(st.integers(-5, 50), st.sampled_from([2**31, 2**63, 10**30, 1.5, True, None, "3"]))


@given(
    shape=st.one_of(st.lists(SIZES, max_size=5).map(tuple), SIZES),
    kind=st.sampled_from(["|u1", "<i8", ">f4", "|O", "<U9", "|S0", "<M8[s]", "|V8", "x", 3, [("a", "<i4")]]),
    is_fortran=st.sampled_from([True, False, 0, None]),
    content=st.binary(max_size=200),
)
@example(shape=(10**12,), kind="<f8", is_fortran=False, content=b"")
@example(shape=(2**31, 0), kind="<f8", is_fortran=False, content=b"")
@example(shape=(2**31,), kind="|S0", is_fortran=False, content=b"")
@SAME_FOLDER
def test_a_header_is_held_against_the_bytes(
    shape: object, kind: object, is_fortran: object, content: bytes, tmp_path: Path
) -> None:
    text = repr({"descr": kind, "fortran_order": is_fortran, "shape": shape}).encode()
    array = b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + content
    (tmp_path / "a.npz").write_bytes(a_zip(**{"images.npy": array}))
    _require_bounded(tmp_path / "a.npz")
    try:
        expected = np.load(io.BytesIO(array), allow_pickle=False)
    except Exception:
        return
    is_refused = expected.ndim and not expected.nbytes and len(expected) > MAX_EMPTY
    if expected.dtype.kind in "biufUS" and expected.dtype.itemsize and not is_refused:
        with ArrayFile(tmp_path / "a.npz") as file:
            np.testing.assert_array_equal(file.read("images"), expected)


def _require_bounded(path: Path) -> None:
    """What comes of an array file is an error of ours, or arrays whose bytes it has; both ways of reading agree."""
    try:
        with ArrayFile(path) as file:
            for name in file.names:
                array = file.read(name)
                assert array.nbytes <= max(WHOLE, 4 * path.stat().st_size)
                if array.ndim:
                    np.testing.assert_array_equal(np.array(list(file.rows(name))).reshape(array.shape), array)
    except DataError as error:
        assert len(str(error).splitlines()) == 1


WORDS = ["data", "train", "batch", "base", "&a", "*a", "!!int", "!!bool", "2001-99-99", "9" * 300, "0x", "${", "}"]
YAML = st.lists(
    st.sampled_from([*WORDS, ":", " ", "\n", "  ", "-", "[", "]", "{", "}", ",", "'", '"', "#", "<<", "\0"])
)


@given(text=st.one_of(YAML.map("".join), st.text(max_size=60)))
@SAME_FOLDER
def test_any_text_is_a_config_or_mistakes_in_one(text: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    for path, overrides in ((str(file), []), (str(_good(tmp_path)), [f"train.batch={text}", f"run.dir={text}"])):
        try:
            assert isinstance(load(path, overrides), Config)
        except ConfigError as error:
            assert str(error)


def _good(folder: Path) -> Path:
    (folder / "good.yaml").write_text("data: {shards: x, resolution: 8}\n")
    return folder / "good.yaml"


WANTED = bytes(range(256)) * 8
PIECES = st.lists(st.integers(0, 3000), min_size=1, max_size=4)


@pytest.fixture
def server() -> Iterator[tuple[int, list[bytes]]]:
    """A port, and a list that holds what is answered there before the connection closes."""
    answers: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                try:
                    connection.sendall(answers[0])
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(65536):
                        pass
                except OSError:
                    continue

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()[1], answers
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(timeout=10)


@given(
    sizes=PIECES,
    is_chunked=st.booleans(),
    said=st.sampled_from([None, 0, 2047, 2048, 2049]),
    span=st.sampled_from(
        ["0-2047/2048", "0-2047/99999", "0-2048/9999", "0-99/2048", "1-2047/2048", "*/2048", "0-2047/*"]
    ),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_an_answer_gives_the_bytes_asked_for_or_an_error(
    sizes: list[int], is_chunked: bool, said: int | None, span: str, server: tuple[int, list[bytes]]
) -> None:
    port, answers = server
    sent = (WANTED * 6)[: sum(sizes)]
    head = f"HTTP/1.1 206 OK\r\nContent-Range: bytes {span}\r\nConnection: close\r\n"
    if is_chunked:
        head += "Transfer-Encoding: chunked\r\n"
    elif said is not None:
        head += f"Content-Length: {said}\r\n"
    pieces = np.split(np.frombuffer(sent, np.uint8), np.cumsum(sizes)[:-1])
    body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece.tobytes()) for piece in pieces if len(piece)) + b"0\r\n\r\n"
    answers[:] = [head.encode() + b"\r\n" + (body if is_chunked else sent)]
    source = ByteRangeReader(timeout_sec=0.2)
    try:
        assert source.read(f"http://127.0.0.1:{port}/a.tar", 0, len(WANTED)) == WANTED
    except DataError as error:
        assert str(error)
    finally:
        source.close()
