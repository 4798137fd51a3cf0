"""Check the ranks, and the network between them."""

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from distgan.distributed import launch_env
from distgan.errors import DistganError
from distgan.tools.doctor.finding import FAIL, OK, WARN, Finding

INTERFACES = "/sys/class/net"
INFINIBAND = "/sys/class/infiniband"
NAME_SEC = 2.0  # that looking up this host's own name may take


def launcher() -> Iterator[Finding]:
    """Tell what the launcher of this process said; the environment is left as it is."""
    environment = dict(os.environ)
    try:
        size = launch_env.init_rank_env(environment)
    except DistganError as error:
        yield Finding("ranks", FAIL, str(error))
        return
    launched = "RANK" in environment
    told = f"rank {launch_env.rank(environment)} of {size}" if launched else "no launcher: one rank"
    address = f", meeting at {environment['MASTER_ADDR']}" if launched and "MASTER_ADDR" in environment else ""
    yield Finding("ranks", OK, told + address)


def interfaces() -> Iterator[Finding]:
    """Look at the interfaces that ranks may talk over."""
    names = [name for _, name in socket.if_nameindex()]
    up = [f"{name}{_speed(name)}" for name in names if name != "lo" and _state(name) in ("up", "unknown")]
    yield Finding("network", OK, f"up: {', '.join(up)}" if up else "no interface but loopback: this host alone")
    if os.path.isdir(INFINIBAND):
        yield Finding("infiniband", OK, ", ".join(sorted(os.listdir(INFINIBAND))) or "no cards")
    for variable in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        wanted = os.environ.get(variable, "")
        prefixes = [name.lstrip("=") for name in wanted.split(",") if name]
        if wanted and not wanted.startswith("^") and not any(n.startswith(p) for n in names for p in prefixes):
            cure = f"unset it, or name one of {', '.join(names)}"
            yield Finding("network", FAIL, f"{variable}={wanted}: there is no such interface", cure)
    host = socket.gethostname()
    if _resolves(host):
        yield Finding("host name", OK, host)
    else:
        cure = f"add {host} to /etc/hosts, or set MASTER_ADDR and GLOO_SOCKET_IFNAME: ranks may not find one another"
        yield Finding("host name", WARN, f"{host} has no address, or none within {NAME_SEC:g} s", cure)


def _state(interface: str) -> str:
    try:
        return Path(INTERFACES, interface, "operstate").read_text().strip()
    except OSError:  # no such system
        return "unknown"


def _speed(interface: str) -> str:
    try:
        megabits = int(Path(INTERFACES, interface, "speed").read_text())
    except (OSError, ValueError):  # virtual ones have none
        return ""
    return f" ({megabits / 1000:g} Gbit/s)" if megabits > 0 else ""


def _resolves(host: str) -> bool:
    """Return whether a name has an address; a server that does not answer is not waited for."""
    found: list[object] = []

    def look() -> None:
        try:
            found.extend(socket.getaddrinfo(host, None))
        except OSError:
            return  # which leaves nothing found

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(NAME_SEC)
    return bool(found)
