"""Test the machines before a long job: all ranks answer, sums over them are correct, and no host is slow.

    srun python -m distgan.tools.preflight        (slurm/check.sbatch), or any other launcher

Every rank multiplies matrices, all of them add numbers, known ones and many, and rank 0 exchanges data with one rank of
each other host. Prints a line for each host and names those that stand out; exit code 5 where something is wrong.
"""

import socket
import statistics
import sys
import time
from dataclasses import dataclass

import torch

from distgan.distributed.preemption import handle_signals
from distgan.distributed.process_group import World
from distgan.errors import DistganError
from distgan.storage.printable import open_streams, public_line, show

SIDE, PRODUCTS = 2048, 5  # of the matrices
NUMBERS = 2**24  # float32: 64 MiB over the network
SLOW = 1.5  # times the median


@dataclass(frozen=True)
class PreflightResult:
    """The measurements of one rank on its host.

    Attributes:
        product_sec: For one product of matrices.
        right: Whether the sum over all ranks was correct.
        exchange_sec: For sending NUMBERS to rank 0 and back; None where that is rank 0's own host.
        sum_sec: For adding NUMBERS over all ranks; None where there is one.
    """

    host: str
    device: str
    product_sec: float
    right: bool
    exchange_sec: float | None = None
    sum_sec: float | None = None


def preflight(world: World) -> list[PreflightResult]:
    """Measure every host; returns what every rank found, in rank order, the same on each."""
    product_sec = _time_product(world.device)
    right, sum_sec = _sum_is_right(world), _time_sum(world)
    hosts = world.all_gather_object(socket.gethostname())
    exchange_sec = None
    for host in dict.fromkeys(hosts):
        if host != hosts[0]:
            other = hosts.index(host)
            world.ping_pong(other, 1)  # the first time, NCCL makes a connection of these two ranks
            taken = world.ping_pong(other, NUMBERS)
            exchange_sec = taken if world.rank == other else exchange_sec
    name = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "CPU"
    return world.all_gather_object(PreflightResult(hosts[world.rank], name, product_sec, right, exchange_sec, sum_sec))


def _time_product(device: torch.device) -> float:
    a = torch.ones(SIDE, SIDE, device=device)
    times = []
    for _ in range(PRODUCTS):
        started = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for a GPU
        times.append(time.perf_counter() - started)
    return min(times)


def _sum_is_right(world: World) -> bool:
    """Sum whole numbers, other ones in each place and on each rank; returns whether the sum is exact."""
    places = torch.arange(1000, device=world.device, dtype=torch.float32)
    total = world.all_reduce_sum(places * (world.rank + 1))
    return bool((total == places * (world.size * (world.size + 1) // 2)).all())


def _time_sum(world: World) -> float | None:
    if world.size == 1:
        return None
    numbers = torch.ones(NUMBERS, device=world.device)
    world.all_reduce_sum(numbers)  # the first time, connections are made
    world.barrier()
    started = time.perf_counter()
    world.all_reduce_sum(numbers)[0].item()  # waits for a GPU
    return time.perf_counter() - started


def report(found: list[PreflightResult]) -> tuple[list[str], list[str]]:
    """Return readable lines, one for each host and one for all; and what is wrong."""
    product = statistics.median(rank.product_sec for rank in found)
    exchanges = [rank.exchange_sec for rank in found if rank.exchange_sec is not None]
    exchange = statistics.median(exchanges) if exchanges else 0.0
    lines, wrong = [], []
    for host in dict.fromkeys(rank.host for rank in found):
        own = [rank for rank in found if rank.host == host]
        slowest = max(rank.product_sec for rank in own)
        line = f"{host}: {len(own)} rank(s) on {own[0].device}, {2 * SIDE**3 / slowest / 1e12:.3g} TFLOP/s"
        if slowest > SLOW * product:
            wrong.append(f"{host} computes {slowest / product:.1f} times as slowly as the median rank")
        for rank in own:
            if rank.exchange_sec is not None:
                line += f", {8 * NUMBERS / rank.exchange_sec / 1e9:.3g} GB/s to {found[0].host}"
                if rank.exchange_sec > SLOW * exchange:
                    wrong.append(f"{host} exchanges data {rank.exchange_sec / exchange:.1f} times as slowly as others")
        if not all(rank.right for rank in own):
            wrong.append(f"{host} has wrong sums over the ranks")
        lines.append(line)
    sums = [rank.sum_sec for rank in found if rank.sum_sec is not None]
    if sums:
        lines.append(f"sums over {len(found)} ranks: {4 * NUMBERS / max(sums) / 1e9:.3g} GB/s")
    return lines, wrong


def main() -> int:
    """Run the preflight on the ranks that were launched; returns the exit code."""
    open_streams()
    try:
        with handle_signals():
            world = World(timeout_sec=60)
            started = time.perf_counter()
            found = preflight(world)
            lines, wrong = report(found)
            if world.is_main:
                show(*lines, *(f"warning: {line}" for line in world.device_warnings))
                show(*([f"WRONG: {line}" for line in wrong] or [f"{world.size} ranks are fine"]))
                show(f"{time.perf_counter() - started:.1f} s")
            world.close()
    except DistganError as error:
        show(f"distgan.tools.preflight: {public_line(str(error))}", file=sys.stderr)
        return error.exit_code
    return 5 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
