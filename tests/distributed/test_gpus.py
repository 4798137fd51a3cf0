"""What the ranks' devices must be, shown without a GPU: by what torch says, and by what ranks say of their devices."""

import re
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from processes import run_ranks

from distgan.distributed import gpus
from distgan.distributed.gpus import RankDevice, check, compare, require_usable_gpus
from distgan.distributed.process_group import World
from distgan.errors import MachineError

TOO_OLD = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by downloading "
    "and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx"
)
OLD_TOLD = r"driver of \S+ supports CUDA 11.4 at most, too old for torch \S+, .* CUDA 13.0: update the driver"


def gpu(host: str, uuid: str, name: str = "NVIDIA H100", has_bf16: bool = True) -> RankDevice:
    return RankDevice(host, name, uuid, has_bf16)


@pytest.fixture(autouse=True)
def build(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch as if built for CUDA, and nothing said of the CPU."""
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")


@pytest.mark.parametrize("by_nvml", [True, False])
def test_a_driver_older_than_the_build_is_one_line(by_nvml: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where NVML counts the GPUs, CUDA does not start; else torch warns, and counts none: a run would take the CPU."""

    def count() -> int:
        if not by_nvml:
            warnings.warn(
                f"CUDA initialization: {TOO_OLD} (Triggered internally at CUDAFunctions.cpp:119.)", stacklevel=2
            )
        return 8 if by_nvml else 0

    def init() -> None:
        raise RuntimeError(TOO_OLD)

    monkeypatch.setattr(torch.cuda, "device_count", count)
    monkeypatch.setattr(torch.cuda, "init", init)
    for start in (require_usable_gpus, World):
        with pytest.raises(MachineError, match=OLD_TOLD) as error:
            start()
        assert "\n" not in str(error.value)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert require_usable_gpus() == 0


def test_gpus_that_cuda_cannot_start_are_told_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> None:
        raise RuntimeError("CUDA unknown error - this may be due to\n an incorrectly set up environment")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "init", init)
    with pytest.raises(MachineError, match=r"cannot use the GPUs of \S+: CUDA unknown error .* to an incorrectly"):
        require_usable_gpus()


def test_two_ranks_on_one_gpu_are_named() -> None:
    both = [gpu(host, uuid) for host in ("a", "b") for uuid in ("GPU-1", "GPU-2")]
    assert check(both, bf16=True) == []  # a uuid counts within its host: virtual machines may repeat it
    told = r"ranks 1 and 3 on b have the same GPU \(NVIDIA H100, GPU-1\): start as many ranks on a machine"
    with pytest.raises(MachineError, match=told):
        check([gpu("a", "GPU-1"), gpu("b", "GPU-1"), gpu("a", "GPU-2"), gpu("b", "GPU-1")], bf16=False)
    assert check([RankDevice("a", "CPU")] * 3, bf16=True) == []  # which ranks do share


def test_a_gpu_too_old_for_bf16_is_named() -> None:
    devices = [gpu("a", "GPU-1"), gpu("b", "GPU-1", "Tesla V100", has_bf16=False)]
    with pytest.raises(MachineError, match=r"rank 1 on b has .* without bfloat16 \(Tesla V100\): set train.precision="):
        check(devices, bf16=True)
    check(devices, bf16=False)


@pytest.mark.parametrize("first", ["CPU", "GPU"])
def test_a_rank_without_a_gpu_among_others_is_named(first: str) -> None:
    with_one, without = gpu("a", "GPU-1"), RankDevice("b", "CPU")
    devices = [without, with_one] if first == "CPU" else [with_one, without]
    with pytest.raises(MachineError, match=r"rank \d on b has no GPU, and rank \d on a has one \(NVIDIA H100\)"):
        check(devices, bf16=False)


def test_different_kinds_of_gpus_are_a_warning() -> None:
    kinds = ["H100"] * 3 + ["A100"] + ["H100", "A100"]
    (line,) = check([gpu("a", f"GPU-{i}", name) for i, name in enumerate(kinds)], bf16=True)
    assert line.startswith("ranks have GPUs of different kinds (H100: ranks 0-2, 4; A100: ranks 3, 5): ")
    assert line.endswith("all wait for the slowest")


def test_a_gpu_is_told_by_what_torch_says_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(name="Tesla V100", uuid="0000-1111")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    told = gpus.describe(torch.device("cuda", 0))
    assert told[1:] == ("Tesla V100", "0000-1111", False)
    assert gpus.describe(torch.device("cpu")).uuid == ""


def compare_all(devices: list[RankDevice], bf16: bool) -> list[object]:
    """What `compare` returns or raises on each rank; ranks are threads that share a store in memory."""
    store, results = dist.HashStore(), [None] * len(devices)

    def compare_own(rank: int) -> None:
        try:
            results[rank] = compare(store, rank, len(devices), devices[rank], bf16)
        except MachineError as error:
            results[rank] = str(error)

    threads = [threading.Thread(target=compare_own, args=(rank,)) for rank in reversed(range(len(devices)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results


def test_all_ranks_learn_what_rank_0_finds() -> None:
    good = [gpu("a", "GPU-1"), gpu("a", "GPU-2"), gpu("b", "GPU-1", "A100")]
    assert compare_all(good, bf16=True) == [check(good, bf16=True)] * 3
    told = compare_all([gpu("a", "GPU-1"), gpu("b", "GPU-1"), gpu("b", "GPU-1")], bf16=True)
    assert len(set(told)) == 1
    assert re.match(r"ranks 1 and 2 on b have the same GPU", told[0])


SAME_GPU = """
from distgan.distributed import gpus
from distgan.distributed.process_group import World
gpus.describe = lambda device: gpus.RankDevice("a", "H100", "GPU-1")
World(timeout_sec=30)
"""


@pytest.mark.multi
def test_ranks_on_one_gpu_all_end_with_the_same_line(tmp_path: Path) -> None:
    """Rank 0 holds the store that the others read this from, and does not end before them."""
    assert run_ranks(2, ["-c", SAME_GPU], tmp_path / "log") == [1, 1]
    for rank in range(2):
        last = Path(f"{tmp_path / 'log'}.{rank}").read_text().splitlines()[-1]
        assert "MachineError: ranks 0 and 1 on a have the same GPU (H100, GPU-1)" in last


def test_the_process_group_knows_its_device_and_ends_after_us(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL's communicator is made for this rank's GPU, and torch's heartbeat waits longer than run.timeout_sec."""
    from distgan.distributed import process_group

    started: dict[str, object] = {}
    store = dist.HashStore()
    for name in ("TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(dist, "rendezvous", lambda url, timeout: iter([(store, 0, 2)]))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **more: started.update(more, backend=backend))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: started.update(set_device=device))
    monkeypatch.setattr(gpus, "describe", lambda device: gpu("a", "GPU-1"))
    dist.PrefixStore("devices", store).set("device 1", '["a", "NVIDIA H100", "GPU-2", true]')
    assert process_group._join(1260, bf16=True) == []
    assert started["backend"] == "nccl"
    assert started["device_id"] == started["set_device"] == torch.device("cuda", 1)
    assert started["timeout"].total_seconds() == 1260
    assert process_group.os.environ.pop("TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC") == "1260"
