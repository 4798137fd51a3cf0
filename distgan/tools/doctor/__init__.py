"""`distgan doctor`: report what this machine offers a run, and what is wrong with it.

Each check is independent: where one fails, its line says so and the others continue. Nothing is changed or sent.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict

from distgan.storage.formatting import one_line
from distgan.tools.doctor import gpus, host, network, packages, services
from distgan.tools.doctor.finding import FAIL, WARN, Finding
from distgan.version import __version__

LOOKS: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
    ("python", packages.python),
    ("packages", packages.packages),
    ("torch", gpus.torch_build),
    ("gpu", gpus.cards),
    ("nccl", gpus.nccl),
    ("ranks", network.launcher),
    ("network", network.interfaces),
    ("/dev/shm", host.shared_memory),
    ("limits", host.limits),
    ("cpu", host.cpu),
    ("disk", host.disk),
    ("wandb", services.wandb),
    ("slurm", services.slurm),
)


def examine() -> list[Finding]:
    """Look at everything on this machine, in the order of the report."""
    found = []
    for name, look in LOOKS:
        try:
            found += list(look())
        except Exception as error:  # a machine may lack anything; the other checks continue, and this one is reported
            found.append(Finding(name, WARN, f"could not be checked ({one_line(error)})"))
    return found


def report(found: list[Finding]) -> list[str]:
    """Return readable lines; a fix is below what it fixes."""
    width = max(len(one.name) for one in found)
    lines = []
    for one in found:
        lines.append(f"{one.state:4}  {one.name.ljust(width)}  {one.told}")
        if one.cure:
            lines.append(f"{'':{width + 8}}-> {one.cure}")
    counts = {state: sum(one.state == state for one in found) for state in (FAIL, WARN)}
    bad = ", ".join(f"{num} {state}" for state, num in counts.items() if num)
    return [*lines, bad or "all is well"]


def as_json(found: list[Finding]) -> str:
    """Return the findings as JSON, for a bug report."""
    return json.dumps({"distgan": __version__, "findings": [asdict(one) for one in found]}, indent=1)
