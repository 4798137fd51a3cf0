"""A loopback HTTP/1.1 server of byte ranges, with faults on request."""

import threading
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class RangeServer:
    """Serves `files`, a dictionary of path and content, and keeps a list of the ranges it was asked for.

    Each request takes the next of `faults`; requests beyond their end are served well:

        "503"       (any number) answer with this status and no content
        "cut N"     promise the whole range, send N bytes of it and close
        "short N"   an honest answer that holds only the first N bytes of the range
        "long N"    N bytes more than were asked for
        "shifted N" the range that begins N bytes later, and says so
        "stall N"   send N bytes, then nothing for as long as the server lives
        "trickle"   send a byte every 20 ms
        "reset"     close without an answer
        "whole"     ignore the range and send the file
        "no total"  do not tell the file's size

    A path that begins with /moved is redirected to the same path without it.
    """

    def __init__(self, files: dict[str, bytes]):
        self.files = files
        self.ranges: list[tuple[str, int, int]] = []
        self.connections = 0
        self.closing = threading.Event()
        self._faults: Iterator[str] = iter(())
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name="range-server")
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def fail(self, faults: Iterable[str]) -> None:
        """What happens to the next requests; may be endless."""
        self._faults = iter(faults)

    def next_fault(self) -> tuple[str, int]:
        with self._lock:
            word, _, number = next(self._faults, "").partition(" ")
        return (word, int(number)) if number.isdigit() else (f"{word} {number}".strip(), 0)

    def __enter__(self) -> "RangeServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    owner: RangeServer
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.owner.connections += 1

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        owner, path = self.server.owner, self.path.partition("?")[0]
        first, _, last = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
        start, stop = int(first or 0), int(last or -2) + 1
        owner.ranges.append((path, start, stop))
        fault, number = owner.next_fault()
        if fault == "reset":
            self.close_connection = True
            return
        if fault.isdigit():
            self._answer(int(fault), b"")
            return
        if path.startswith("/moved"):
            self._answer(302, b"", Location=path.removeprefix("/moved"))
            return
        if path not in owner.files:
            self._answer(404, b"")
            return
        content = owner.files[path]
        if fault == "whole" or stop < 0:
            self._answer(200, content)
            return
        if fault == "shifted":
            start, stop = start + number, stop + number
        stop = min(stop + (number if fault == "long" else 0), len(content))
        if start >= stop:
            self._answer(416, b"", **{"Content-Range": f"bytes */{len(content)}"})
            return
        if fault == "short":
            stop = min(stop, start + number)
        total = "*" if fault == "no total" else len(content)
        self._answer(206, content[start:stop], fault, number, **{"Content-Range": f"bytes {start}-{stop - 1}/{total}"})

    def _answer(self, status: int, body: bytes, fault: str = "", number: int = 0, **headers: str) -> None:
        closing = self.server.owner.closing
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if fault in ("cut", "stall"):
            self.wfile.write(body[:number])
            self.close_connection = True
            if fault == "stall":
                closing.wait()
        elif fault == "trickle":
            for at in range(len(body)):
                self.wfile.write(body[at : at + 1])
                if closing.wait(0.02):
                    return
        else:
            self.wfile.write(body)
