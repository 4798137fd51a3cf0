"""Files that are whole or not there: written under another name, then renamed.

The other name cannot be foreseen, and a file is made under it only where nothing has it, so that a link which somebody
left in a shared folder is never followed. Rights are what the umask leaves of 666. What a killed process left goes when
the next one writes into that folder.
"""

import contextlib
import functools
import os
import re
import secrets
import shutil
import socket
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

_PART = re.compile(r"\..+\.([0-9a-f]{8})-(\d+)-[0-9a-f]{16}\.part", re.DOTALL)  # host, process


def aside(path: Path) -> Path:
    """Return a name next to `path` under which to write what shall take its place; nothing has that name."""
    _sweep_once(path.parent, os.getpid())
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{secrets.token_hex(8)}.part")


@contextlib.contextmanager
def replacing(path: Path, sync: bool = False) -> Iterator[Path]:
    """Give an empty file to write, which takes the place of `path` in the end, or is removed after an error.

    Args:
        sync: Whether its bytes are on disk before it does.
    """
    part = aside(path)
    try:
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666))
        yield part
        if sync:
            with open(part, "rb") as file:
                os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):  # the disk that could not be written may be gone
            part.unlink(missing_ok=True)
        raise


def replace_file(path: Path, text: str) -> None:
    """Replace a small file as a whole: readers see the old text or the new."""
    with replacing(path, sync=True) as part:
        part.write_text(text)


def no_follow(path: str, flags: int) -> int:
    """Open a file as `open` does (`opener`), but not through a link."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def _host() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


@functools.lru_cache
def _sweep_once(folder: Path, process: int) -> None:
    """Sweep a folder once in each process, and so after a fork too."""
    sweep(folder)


def sweep(folder: Path, older_sec: float = 24 * 3600) -> None:
    """Remove what killed processes left in a folder: at once those of this host, of others what is so old."""
    try:
        names = os.listdir(folder)
    except OSError:  # to be reported by whoever writes there
        return
    for name in names:
        if (match := _PART.fullmatch(name)) and _is_abandoned(folder / name, match, older_sec):
            shutil.rmtree(folder / name, ignore_errors=True)
            with contextlib.suppress(OSError):
                (folder / name).unlink()


def _is_abandoned(path: Path, match: re.Match[str], older_sec: float) -> bool:
    try:
        if match[1] == _host():
            os.kill(int(match[2]), 0)
            return False
        return time.time() - path.lstat().st_mtime > older_sec
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:  # it is another user's, or gone
        return False
