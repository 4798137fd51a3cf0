"""Measurements that take several runs: more ranks, and other micro-batches."""

import contextlib
import gc
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from distgan.config.batch_plan import make_batch_plan
from distgan.config.schema import Config
from distgan.distributed.process_group import World
from distgan.errors import ConfigError, MachineError, out_of_memory
from distgan.tools.bench.harness import running_trainer, temporary_run
from distgan.tools.bench.table import Row
from distgan.training.timing import peak_memory

ROUNDS, WARM_UP, SLICE_SEC = 3, 3, 1.0
TOLD = ("images per second", "over the same number of runs", "all-reduce of")  # of a child's rows, those to pass on


def scaling(config: Config, arguments: Sequence[str], worlds: Sequence[int]) -> list[Row]:
    """Measure groups of ranks on this machine, each next to the same number of runs of one rank at the same time.

    Args:
        arguments: Of `distgan bench`. A group of n ranks gets n times train.batch: each rank has the same work always.
    """
    num_gpus = torch.cuda.device_count()
    if num_gpus and max(worlds) > num_gpus:
        raise ConfigError(f"--scaling {max(worlds)}: this machine has {num_gpus} GPU(s)")
    rows = []
    for world in worlds:
        command = [*arguments, f"train.batch={world * config.train.batch}", "run.expected_world_size=0", "--json"]
        found = json.loads(_group(command + ["--baseline", "alone"] * (world > 1), world, on_cpu=not num_gpus))
        rows += [
            Row(f"{world} rank(s): {row['name']}", row["unit"], row["figures"])
            for row in found["rows"]
            if any(words in row["name"] for words in TOLD)
        ]
    return rows


def _group(arguments: Sequence[str], world: int, on_cpu: bool) -> str:
    """Return what rank 0 of a `distgan bench` of so many ranks prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
    environment |= {"LOCAL_WORLD_SIZE": str(world)}
    environment |= {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // world)))}
    environment |= {"ACCELERATE_USE_CPU": "true"} if on_cpu else {}
    children = []
    try:
        for rank in range(world):
            own = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if world > 1 else {}
            children.append(
                subprocess.Popen(
                    [sys.executable, "-m", "distgan", "bench", *arguments],
                    env=os.environ | own,
                    stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
                    text=True,
                )
            )
        output, _ = children[0].communicate()
        codes = [child.wait() for child in children]
    finally:
        for child in children:  # where this process is asked to leave; they clean up on TERM
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
        for child in children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=10)
            child.kill()
    if any(codes):
        raise MachineError(f"--scaling: the ranks of a group of {world} ended with {codes}")
    return output


def sweep(config: Config, images: int) -> list[Row]:
    """Measure the speed of one rank by micro-batch, in turns; those that do not fit into memory are left out."""
    speeds: dict[int, list[float]] = {micro: [] for micro in _micro_batches(config)}
    memory: dict[int, float] = {}
    formats: dict[int, str] = {}  # of weights; a probe chooses it once
    with temporary_run(config) as (config, world):
        if world.size > 1:
            raise ConfigError("--sweep measures one rank: start one process")
        for number in range(ROUNDS):
            for micro in list(speeds)[:: -1 if number % 2 else 1]:
                train = replace(config.train, micro_batch=micro)
                if micro in formats:
                    train.memory_format = formats[micro]  # type: ignore[assignment]  # one of its values
                folder = str(Path(config.run.dir) / f"{micro}-{number}")
                try:
                    found, peak, formats[micro] = _speed(
                        replace(config, train=train, run=replace(config.run, dir=folder)), world, images
                    )
                    speeds[micro].append(found)
                    memory[micro] = peak
                except (RuntimeError, MemoryError) as error:  # torch's or NumPy's, on a CPU or a GPU
                    if out_of_memory(str(error)) is None:
                        raise
                    del speeds[micro]
                gc.collect()
                torch.cuda.empty_cache()
    if not speeds:
        raise MachineError("--sweep: not even one image fits into memory: lower the widths of model.G and model.D")
    rows = []
    for micro, figures in speeds.items():
        rows.append(Row(f"train.micro_batch={micro}: images per second", "img/s", figures))
        rows += [Row(f"train.micro_batch={micro}: peak memory, GPU", "GB", [memory[micro]])] if memory[micro] else []
    fastest = max(speeds, key=lambda micro: sorted(speeds[micro])[len(speeds[micro]) // 2])
    return [*rows, Row("fastest train.micro_batch", "images", [float(fastest)])]


def _micro_batches(config: Config) -> list[int]:
    """Return the whole batch, half of it, and so on, where the config allows it."""
    found, micro = [], config.train.batch
    while micro >= 1:
        with contextlib.suppress(ConfigError):
            make_batch_plan(replace(config, train=replace(config.train, micro_batch=micro)), 1)
            found.append(micro)
        micro = micro // 2 if micro % 2 == 0 else 0
    return found


def _speed(config: Config, world: World, images: int) -> tuple[float, float, str]:
    """Return images per second, peak memory of a GPU in GB, and the memory format."""
    images_of_iteration = config.train.batch * config.train.n_critic
    with running_trainer(config, world, make_batch_plan(config, 1)) as trainer:
        for _ in range(WARM_UP):
            trainer.train_iteration()
        started, num = _now(world), math.ceil(images / images_of_iteration)
        for _ in range(num or 2):
            trainer.train_iteration()
        if not images:
            more = round(2 * SLICE_SEC / (_now(world) - started))
            for _ in range(more):
                trainer.train_iteration()
            num = 2 + more
        seconds = _now(world) - started
        memory = peak_memory(world.device).get("Resources/gpu_mem_peak_gb", 0.0)
        return num * images_of_iteration / seconds, memory, trainer.learner.memory_format


def _now(world: World) -> float:
    if world.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
