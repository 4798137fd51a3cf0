"""What a launcher says of the ranks, and what ranks make of one another's errors."""

import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from processes import environment, free_port, output, run_ranks

from distgan.distributed.launch_env import (
    choose_gpu,
    ignored_settings,
    init_rank_env,
    local_rank,
    node_rank,
    run_on_all,
)
from distgan.errors import ConfigError, DataError, DistganError, MachineError

STEP = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_GTIDS": "2,3"}
MEETING = {"MASTER_ADDR": "node1", "MASTER_PORT": "1"}


def test_a_task_of_a_step_is_a_rank() -> None:
    found = STEP | MEETING
    assert init_rank_env(found) == 4
    assert [found[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")] == ["3", "1", "4", "2"]


@pytest.mark.parametrize("visible", [None, "", "5", "5,6", "GPU-8932f937-d72c", "MIG-GPU-8932f937/1/0"])
@pytest.mark.parametrize(("num", "local"), [(0, "5"), (1, "0"), (4, "1"), (8, "5")])
def test_local_rank_is_the_number_of_a_gpu_that_the_rank_sees(visible: str | None, num: int, local: str) -> None:
    """However few those are: one's own by number, UUID, MIG or cgroup, or some of them (--gpu-bind)."""
    found = STEP | MEETING | {"SLURM_LOCALID": "5"} | ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    init_rank_env(found)
    for _ in range(2):  # a process may open its world twice
        choose_gpu(num, found)
        assert (found["LOCAL_RANK"], local_rank(found), node_rank(found)) == (local, int(local), 5)


def test_a_process_without_a_launcher_has_no_number_to_choose_by() -> None:
    found: dict[str, str] = {}
    choose_gpu(4, found)
    assert (found, local_rank(found), node_rank(found)) == ({}, 0, 0)


@pytest.mark.parametrize(
    ("variables", "size"),
    [
        ({}, 1),
        ({k: v for k, v in STEP.items() if k != "SLURM_STEP_ID"}, 1),  # an interactive shell inside of an allocation
        (STEP | MEETING | {"RANK": "0", "WORLD_SIZE": "2"}, 2),  # a launcher that srun started
        (STEP | MEETING | {"SLURM_NTASKS": "1", "ACCELERATE_USE_CPU": "true"}, 1),  # a job of one task
    ],
)
def test_what_is_no_task_among_several(variables: dict[str, str], size: int) -> None:
    assert init_rank_env(variables) == size


def test_launches_that_would_start_something_else_are_refused() -> None:
    with pytest.raises(MachineError, match="srun tasks need MASTER_ADDR"):
        init_rank_env(dict(STEP))
    with pytest.raises(MachineError, match="starts a single process"):
        init_rank_env(MEETING | {"ACCELERATE_USE_CPU": "true"})


def on_ranks(functions: list[Callable[[], int]]) -> list[int | DistganError]:
    """What each rank gets from `together`."""
    told: list = [None] * len(functions)
    barrier = Barrier(len(functions), timeout=10)

    def run(rank: int) -> int | DistganError:
        def gather(item: object) -> list:
            told[rank] = item
            barrier.wait()
            return list(told)

        try:
            return run_on_all(functions[rank], gather)
        except DistganError as error:
            return error

    with ThreadPoolExecutor(len(functions)) as pool:
        return list(pool.map(run, range(len(functions))))


def fails() -> int:
    raise DataError("no shards here")


def test_an_error_of_one_rank_becomes_everyones() -> None:
    assert on_ranks([lambda: 1, lambda: 2]) == [1, 2]
    found = on_ranks([lambda: 1, lambda: 2, fails])
    assert [(type(error), str(error)) for error in found] == [(DataError, "rank 2: no shards here")] * 3
    assert [str(error) for error in on_ranks([fails, fails])] == ["no shards here"] * 2  # of all alike: no rank named


@pytest.mark.multi
def test_a_mistake_that_one_rank_alone_has_is_told(tmp_path: Path) -> None:
    """As where a node has another file under the same name: the others cannot know why it is missing."""
    config = tmp_path / "a.yaml"
    config.write_text("data: {shards: x, resolution: 16}\n")
    more = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    command = [sys.executable, "-m", "distgan", "train", str(config), "train.bach=12"]
    done = subprocess.run(command, env=environment(**more), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "rank 1: " in done.stderr
    assert "train.bach" in done.stderr


@pytest.mark.multi
@pytest.mark.parametrize(
    ("rank", "is_taken", "told"),
    [
        ("0", False, "1/2 clients joined"),
        ("1", False, "is that address rank 0's, seen from here"),
        ("0", True, "set another MASTER_PORT"),
    ],
)
def test_ranks_that_do_not_meet_are_told_why(rank: str, is_taken: bool, told: str, tmp_path: Path) -> None:
    """Without a traceback, whether the others are missing or another program is there."""
    with socket.socket() as other:
        other.bind(("", 0))
        if is_taken:
            other.listen()
            port = other.getsockname()[1]
        else:
            port = free_port()
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
        more = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", **place}
        code = "from distgan.distributed.process_group import World; World(timeout_sec=3)"
        assert run_ranks(1, ["-c", code], tmp_path / "log", **more) == [1]
    last = output(tmp_path / "log").splitlines()[-1]
    assert f"MachineError: rank {rank} of 2 did not meet the others at 127.0.0.1:{port}: " in last
    assert told in last


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "no MASTER_ADDR and no MASTER_PORT"),
        ({"RANK": "0", "WORLD_SIZE": "1"}, "no MASTER_ADDR"),
        ({"LOCAL_RANK": "0"}, "no RANK and no WORLD_SIZE"),
        ({"WORLD_SIZE": "4"} | MEETING, "no RANK"),
        ({"RANK": "one", "WORLD_SIZE": "2"} | MEETING, "RANK='one' is not a whole number"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK='-1'"),
        ({"LOCAL_WORLD_SIZE": "2.0"}, "LOCAL_WORLD_SIZE='2.0'"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE=''"),
        ({"RANK": "²", "WORLD_SIZE": "2"} | MEETING, "RANK='²'"),
        ({"RANK": "2", "WORLD_SIZE": "2"} | MEETING, "below 2"),
    ],
)
def test_what_a_launcher_left_over_is_named_with_the_way_out(variables: dict[str, str], told: str) -> None:
    with pytest.raises(MachineError, match=told) as found:
        init_rank_env(variables)
    assert "`unset " in str(found.value)
    assert len(str(found.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"])
def test_other_ways_to_train_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"ACCELERATE_USE_{name}=true"):
        init_rank_env({f"ACCELERATE_USE_{name}": "true"})
    assert init_rank_env({f"ACCELERATE_USE_{name}": "false"}) == 1


@pytest.mark.parametrize(
    ("variables", "precision", "told"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "no"}, "fp32", []),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "bf16", []),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "fp32", ["train.precision=bf16"]),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, "bf16", ["mixed_precision=fp16 is not used"]),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1"}, "fp32", []),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "fp32", ["train.micro_batch"]),
    ],
)
def test_settings_of_accelerate_that_are_not_used_are_told(variables: dict, precision: str, told: list[str]) -> None:
    lines = ignored_settings(precision, variables)
    assert len(lines) == len(told)
    assert all(text in line for text, line in zip(told, lines))
