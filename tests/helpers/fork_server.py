"""A process that has imported torch and the package once, and forks a rank for each that is asked for.

Started by `processes.py`, once for each process of pytest. A client connects to the socket that it names, sends one
line of JSON (command, environment, log, cwd, umask), and reads the rank's process id and, in the end, its exit code.
The server ends with its standard input. Its ranks are what `python COMMAND` would be, but for the seconds of importing,
and for those of taking all that was imported apart again at the end.
"""

import atexit
import contextlib
import gc
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import tempfile
import threading
import traceback

import accelerate  # noqa: F401
import torch
import torch._dynamo  # which optimizers import when they are made
import torch.distributed

import distgan.evaluation.measure
import distgan.inference.generate
import distgan.training.trainer  # noqa: F401


def serve(address: str) -> dict:
    """Fork a rank for each request until the standard input ends. Returns in each rank, with its request."""
    clients: dict[int, socket.socket] = {}  # of ranks that run
    wake, waker = socket.socketpair()
    for end in (wake, waker):
        end.setblocking(False)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as selector:
        listener.bind(f"{address}.new")
        listener.listen(64)
        os.rename(f"{address}.new", address)  # clients look for the name, and may connect at once
        for source in (sys.stdin.fileno(), listener, wake):
            selector.register(source, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in selector.select()]
            if sys.stdin.fileno() in ready:
                os._exit(0)
            if wake in ready:
                wake.recv(4096)
                _tell_of_ended(clients)
            if listener in ready:
                client, _ = listener.accept()
                with client.makefile() as lines:
                    request = json.loads(lines.readline())
                child = os.fork()
                if not child:
                    break
                clients[child] = client
                client.sendall(f"{child}\n".encode())
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for other in (wake, waker, client, *clients.values()):
        other.close()
    return request


def _tell_of_ended(clients: dict[int, socket.socket]) -> None:
    while clients:
        child, status = os.waitpid(-1, os.WNOHANG)
        if not child:
            return
        with clients.pop(child) as client, contextlib.suppress(OSError):  # whoever asked may be gone
            client.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


def become(request: dict) -> None:
    """Turn this process into what `python COMMAND` would be, and run it."""
    os.setsid()
    os.umask(request["umask"])
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None  # it may be another one now
    for path, flags, targets in (
        (os.devnull, os.O_RDONLY, (0,)),
        (request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, (1, 2)),
    ):
        opened = os.open(path, flags, 0o666)
        for target in targets:
            os.dup2(opened, target)
        os.close(opened)
    sys.orig_argv = [sys.executable, *request["command"]]
    first, *rest = request["command"]
    if first == "-m":
        sys.argv = rest
        sys.path[0] = os.getcwd()
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.path[0] = ""
        exec(compile(rest[0], "<string>", "exec"), sys.modules["__main__"].__dict__)
    else:
        sys.argv = [first, *rest]
        sys.path[0] = os.path.dirname(os.path.abspath(first))
        runpy.run_path(first, run_name="__main__")


def leave(code: object) -> None:
    """End this process as Python would with `SystemExit(code)`, but leave its modules to the system."""
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # waits for the threads that are no daemons
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        code = 120
    os._exit(code or 0)


if __name__ == "__main__":
    # A fork keeps no thread but the one that forks, and no CUDA context.
    assert len(os.listdir("/proc/self/task")) == 1
    assert not torch.cuda.is_initialized()
    gc.collect()
    gc.freeze()  # a rank that looked through all of this for garbage would make its own copy of it
    request = serve(sys.argv[1])
    try:
        become(request)
    except SystemExit as left:
        leave(left.code)
    except Exception:
        traceback.print_exc()
        leave(1)
    leave(0)
