"""Loops timed in turns: absolute times are noise on a shared machine, so what is compared is measured side by side."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from distgan.distributed.process_group import World
from distgan.training.timing import Timeline

SLICE_SEC, WARM_UP = 1.5, 5
REST_SEC = 0.02
Phases = dict[str, tuple[float, int]]  # seconds and number, by phase


@dataclass(frozen=True)
class Slice:
    """Times of some iterations, by one rank's clocks."""

    wall_sec: float
    cpu_sec: float  # of all threads of the process, the loader's included, with the iterations that led in
    host_sec: float  # of CPU time of the thread that calls the device


class Turns:
    """Times iterations of several loops in rounds of A B and B A, in which all ranks take part.

    Args:
        prefetch: Batches that a loop makes ahead, which are used up before each slice.
    """

    def __init__(self, world: World, rounds: int, prefetch: int) -> None:
        self.world, self.rounds, self.prefetch = world, rounds, prefetch
        self._on_gpu = world.device.type == "cuda"

    def warm_up(self, iterate: Callable[[], object], images: int, images_of_iteration: int) -> int:
        """Return the number of iterations of a slice: for `images` over all rounds, or, where it is 0, for 1.5 s."""
        for _ in range(WARM_UP):
            iterate()
        self._wait_for_device()
        started = time.perf_counter()
        for _ in range(WARM_UP):
            iterate()
        self._wait_for_device()
        num = round(SLICE_SEC * WARM_UP / (time.perf_counter() - started))
        if images:
            num = math.ceil(images / images_of_iteration / self.rounds)
        return self.world.broadcast_object(max(2, min(num, 1000)))

    def take(
        self, sides: Mapping[str, Callable[[], object]], num: int, *, rounds: int = 0, timeline: Timeline | None = None
    ) -> tuple[dict[str, list[list[Slice]]], list[Phases]]:
        """Time a slice of every side in each round, in an order that changes.

        Args:
            sides: Functions that run one iteration.
            rounds: 0: those of this object.
            timeline: Where the first side leaves its phases.

        Returns:
            Slices of all ranks by side and round; and this rank's phases of the first side by round.
        """
        timeline = timeline or Timeline(self.world.device)
        first, *others = sides
        slices: dict[str, list[list[Slice]]] = {side: [] for side in sides}
        phases = []
        for side in others:
            self._slice(sides[side], 0, WARM_UP, timeline)
        lead = self.prefetch if num > 1 else 0
        for number in range(rounds or self.rounds):
            for side in list(sides)[:: -1 if number % 2 else 1]:
                own, found = self._slice(sides[side], lead, num, timeline)
                slices[side].append(self.world.all_gather_object(own))
                phases += [found] if side == first else []
        return slices, phases

    def seconds(self, function: Callable[[], object]) -> float:
        """Return how long all ranks take for one call that they begin together."""
        self._wait_for_device()
        self.world.barrier()
        started = time.perf_counter()
        function()
        self._wait_for_device()
        return time.perf_counter() - started

    def wait_for_loaders(self) -> None:
        """Wait until the loaders' threads have made all that they make ahead, as this process's CPU time shows."""
        last = -1.0
        while not self._on_gpu and time.process_time() - last > REST_SEC / 10:
            last = time.process_time()
            time.sleep(REST_SEC)

    def _slice(self, iterate: Callable[[], object], lead: int, num: int, timeline: Timeline) -> tuple[Slice, Phases]:
        """Time some iterations, after others that use up what was made ahead."""
        self.wait_for_loaders()
        cpu_sec = -time.process_time()
        for _ in range(lead):
            iterate()
        self._wait_for_device()
        self.world.barrier()
        timeline.pop()
        wall_sec, host_sec = -time.perf_counter(), -time.thread_time()
        for _ in range(num):
            iterate()
        host_sec += time.thread_time()
        self._wait_for_device()
        wall_sec += time.perf_counter()
        found = timeline.pop()
        self.wait_for_loaders()
        return Slice(wall_sec, (cpu_sec + time.process_time()) * num / (num + lead), host_sec), found

    def _wait_for_device(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()
