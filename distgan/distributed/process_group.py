"""This process among the ranks of a run. The only door to Accelerate and torch.distributed."""

import atexit
import contextlib
import copy
import math
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, GradientAccumulationPlugin
from torch import Tensor, nn

from distgan.distributed import gpus, launch_env, preemption
from distgan.errors import ConfigError, MachineError, of_kind, with_hint

T = TypeVar("T")
SettingsT = TypeVar("SettingsT", DistributedDataParallelKwargs, GradientAccumulationPlugin)
NCCL_HEARTBEAT_SEC = 480  # torch's own value


class World:
    """The ranks of a run, and what they do together. With one rank, every operation is local.

    Args:
        timeout_sec: How long a collective operation waits for the slowest rank.
        deterministic: "fast", or on a GPU "warn" / "strict": deterministic kernels, a warning or an error where
            there are none.
        tf32: Let a GPU round the factors of convolutions and matrix products to 10 bits.
        sync: "ddp": gradients are summed over the ranks in buckets, while the backward still runs; "flat": in one piece
            after it, which is slower and the reference for the other.
        bucket_mb: Size of DDP's buckets.
        bf16_gradients: Send them rounded to bfloat16, which is half as much. All ranks get the same sums all the same.
        bf16: Whether networks are to compute in bfloat16, which GPUs must have then.

    Attributes:
        device_warnings: Lines about the ranks' devices, for the log of rank 0.
    """

    def __init__(
        self,
        *,
        timeout_sec: float = 600,
        deterministic: str = "fast",
        tf32: bool = False,
        sync: str = "ddp",
        bucket_mb: int = 25,
        bf16_gradients: bool = False,
        bf16: bool = False,
    ) -> None:
        promised = launch_env.init_rank_env()
        if deterministic != "fast":
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
            os.environ.setdefault("NCCL_NVLS_ENABLE", "0")  # sums inside of a switch, whose order is not fixed
        launch_env.choose_gpu(gpus.require_usable_gpus())
        self.device_warnings: list[str] = []
        accumulation = settled(GradientAccumulationPlugin(num_steps=1))  # micro-batches are counted by the step itself
        ddp = settled(DistributedDataParallelKwargs(gradient_as_bucket_view=True, bucket_cap_mb=bucket_mb))
        try:
            with preemption.exit_on_signal("the other ranks"):
                if promised > 1 and not dist.is_initialized():
                    self.device_warnings = _join(timeout_sec, bf16)
                self._accelerator = Accelerator(
                    cpu=torch.backends.mps.is_available(),  # which has no float64, and no second rank
                    mixed_precision="no",  # autocast is in the losses, where penalties have a precision of their own
                    gradient_accumulation_plugin=accumulation,
                    kwargs_handlers=[ddp],
                )
        except NotImplementedError as error:  # Accelerate's, of GPUs whose old driver cannot reach one another
            raise MachineError(
                f"rank {launch_env.rank()}: {error} Set NCCL_P2P_DISABLE=1 and NCCL_IB_DISABLE=1 for all ranks, or "
                "install a newer driver"
            ).on_rank(launch_env.rank()) from None
        except dist.DistError as error:
            where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise MachineError(
                f"rank {launch_env.rank()} of {promised} did not meet the others at {where}: "
                f"{with_hint(str(error).splitlines()[0], True)}"
            ).on_rank(launch_env.rank()) from None
        self.rank: int = self._accelerator.process_index
        self.size: int = self._accelerator.num_processes
        self.local_size = int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
        self.is_main = self.rank == 0
        self.device: torch.device = self._accelerator.device
        if self.device.type not in ("cuda", "cpu"):
            raise MachineError(f"distgan trains on CUDA GPUs and CPUs, not {self.device}: set ACCELERATE_USE_CPU=true")
        if promised != self.size:
            raise MachineError(
                f"the launcher started {promised} processes, but each would train alone: on machines without a GPU "
                "set ACCELERATE_USE_CPU=true for all of them (launch/cpu.sh does)"
            )
        kind = self._accelerator.distributed_type
        if kind not in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
            raise ConfigError(
                f"a GAN trains under plain data parallelism, not {kind}: use `accelerate launch --multi_gpu`"
            )
        if self.size == 1:
            gpus.check([gpus.describe(self.device)], bf16)
        _choose_kernels(self.device, deterministic, tf32)
        self._flat, self._bf16_gradients = sync == "flat", bf16_gradients

    def single_rank(self) -> "World":
        """Return a world of this rank alone; the shared one stays as it is."""
        own = copy.copy(self)
        own.rank, own.size, own.is_main, own._flat = 0, 1, True, False
        return own

    def prepare(self, module: nn.Module) -> nn.Module:
        """Move a module to this rank's device and, among several ranks, wrap it in DDP.

        Rank 0's weights and buffers become everybody's. Afterwards buffers are left alone: DDP would broadcast them
        before every forward, which breaks two forwards with one backward on a GPU.
        """
        if self.size == 1:
            return module.to(self.device)
        if self._flat:
            self.broadcast_weights(module.to(self.device))
            return module
        wrapped = self._accelerator.prepare(module)
        wrapped.broadcast_buffers = False
        if self._bf16_gradients:
            wrapped.register_comm_hook(self.size, _average_rounded)
        return wrapped

    def broadcast_weights(self, *modules: nn.Module) -> None:
        """Give all ranks the weights and buffers of rank 0."""
        for tensor in (tensor for module in modules for tensor in module.state_dict().values()):
            if self.size > 1:
                same = tensor.contiguous()  # of another memory format, it would be refused
                dist.broadcast(same, 0)
                tensor.copy_(same)

    def grad_sync(self, module: nn.Module, last: bool) -> contextlib.AbstractContextManager:
        """Let gradients be reduced over the ranks in the last pass only; a context for a forward and its backward."""
        return contextlib.nullcontext() if last or self._flat else self._accelerator.no_sync(module)

    def average_gradients(self, weights: Iterable[nn.Parameter]) -> None:
        """Give all ranks the mean of their gradients, with sync="flat". (DDP has done so by now.)"""
        if self.size == 1 or not self._flat:
            return
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        share = torch.cat([gradient.flatten() for gradient in gradients]).div_(self.size)
        mean = self.all_reduce_sum(share.bfloat16() if self._bf16_gradients else share)
        for gradient, part in zip(gradients, mean.split([gradient.numel() for gradient in gradients])):
            gradient.copy_(part.view_as(gradient))

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all ranks, in place, and return it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def all_reduce_max(self, number: int) -> int:
        """Return the largest of the ranks' numbers; the host waits for it."""
        box = torch.tensor([number], device=self.device)
        if self.size > 1:
            dist.all_reduce(box, dist.ReduceOp.MAX)
        return int(box)

    def ping_pong(self, other: int, num: int) -> float:
        """Time `num` float32 numbers from rank `other` to rank 0 and back, in seconds; called by all ranks."""
        numbers = torch.ones(num, device=self.device)
        self.barrier()
        started = time.perf_counter()
        for sender, receiver in ((other, 0), (0, other)):
            if self.rank == sender:
                dist.send(numbers, receiver)
            elif self.rank == receiver:
                dist.recv(numbers, sender)
        numbers[0].item()  # waits for a GPU
        return time.perf_counter() - started

    @torch.no_grad()
    def average_batch_norm_stats(self, *nets: nn.Module) -> None:
        """Give all ranks the mean of their batch norm statistics, each rank having seen its own images."""
        statistics = ("running_mean", "running_var")  # other buffers are functions of the weights, alike on all ranks
        buffers = [b for net in nets for name, b in net.named_buffers() if name.endswith(statistics)]
        if self.size == 1 or not buffers:
            return
        flat = self.all_reduce_sum(torch.cat([b.flatten() for b in buffers])) / self.size
        for buffer, mean in zip(buffers, flat.split([b.numel() for b in buffers])):
            buffer.copy_(mean.view_as(buffer))

    def all_gather_object(self, item: T) -> list[T]:
        """Return what each rank passed, in rank order, on every rank."""
        if self.size == 1:
            return [item]
        items: list = [None] * self.size
        dist.all_gather_object(items, item)
        return items

    def gather_tensors(self, tensor: Tensor) -> list[Tensor]:
        """Return each rank's tensor, in rank order, on rank 0's CPU; [] elsewhere. Only the first size may differ."""
        if self.size == 1:
            return [tensor.cpu()]
        # One gather of tensors of one size: NCCL would build a communicator of its own for each pair that sends.
        lengths = self.all_gather_object(len(tensor))
        if not any(lengths):
            return [tensor.cpu() for _ in lengths] if self.is_main else []
        padded = tensor.new_zeros((max(lengths), *tensor.shape[1:]), device=self.device)
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in lengths] if self.is_main else None
        dist.gather(padded, parts, dst=0)
        return [part[:length].cpu() for part, length in zip(parts, lengths)] if parts is not None else []

    def broadcast_object(self, item: T) -> T:
        """Return rank 0's item, on every rank."""
        if self.size == 1:
            return item
        box = [item]
        dist.broadcast_object_list(box, device=self.device)
        return box[0]

    def run_on_main(self, function: Callable[[], T]) -> T:
        """Run something on rank 0 and give its result to all; if it fails there, every rank raises the error."""
        result, error = cast(T, None), None
        if self.is_main:
            try:
                result = function()
            except Exception as failure:
                error = failure
        result, kind, text = self.broadcast_object((result, type(error).__name__ if error else "", str(error)))
        if error is not None:
            raise error
        if kind:
            raise of_kind(kind, text)
        return result

    def run_on_all(self, function: Callable[[], T]) -> T:
        """Run something on every rank; if it fails on some, every rank raises the first of these errors."""
        return launch_env.run_on_all(function, self.all_gather_object)

    def require_same_on_all_ranks(self, **values: object) -> None:
        """Raise MachineError where ranks differ in one of these values, naming the first that does."""
        of_ranks = self.all_gather_object((socket.gethostname(), values))
        for rank, (host, theirs) in enumerate(of_ranks):
            for name, value in theirs.items():
                if value != of_ranks[0][1][name]:
                    raise MachineError(
                        f"rank {rank} on {host} has another {name} than rank 0 on {of_ranks[0][0]} "
                        f"({value}, not {of_ranks[0][1][name]}): start all ranks alike"
                    )

    def barrier(self) -> None:
        if self.size > 1:
            self._accelerator.wait_for_everyone()

    def close(self) -> None:
        """Leave the process group together with the others; the last thing that a rank does."""
        if self.size > 1 and dist.is_initialized():
            self.barrier()
            # Modules in DDP may outlive the group. Whatever lets go of it last waits for its threads: C++ would do that
            # with Python's lock held, for which those threads wait to free their last tensors. Python does it without.
            atexit.register(lambda group: None, dist.group.WORLD)
            dist.destroy_process_group()


def settled(settings: SettingsT) -> SettingsT:
    """Return settings for Accelerate, with what differs from its defaults found now.

    To find that, Accelerate empties the environment of the process for a moment, each time that it wraps a module.
    Threads of a process group read the environment meanwhile, and could crash, so it is asked before there are any.
    """
    arguments = settings.to_kwargs()
    settings.to_kwargs = lambda: dict(arguments)
    return settings


def _join(timeout_sec: float, bf16: bool) -> list[str]:
    """Meet the other ranks, compare devices, and start the process group; returns warnings about devices.

    Accelerate would start it without its device: NCCL then makes its communicators in the first operation of each kind,
    which is slow there, and guesses the device of a barrier.
    """
    timeout = timedelta(seconds=timeout_sec)
    store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
    store.set_timeout(timeout)
    device = gpus.take_device()
    warnings = gpus.compare(dist.PrefixStore("devices", store), rank, size, gpus.describe(device), bf16)
    if device.type == "cuda":
        # Ends the process where NCCL's own watchdog hangs, e.g. in the driver: not before we have said which phase.
        heartbeat = str(max(NCCL_HEARTBEAT_SEC, math.ceil(timeout_sec)))
        os.environ.setdefault("TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", heartbeat)
    elif not launch_env.uses_cpu():
        return warnings  # each process is alone, which World refuses
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=dist.PrefixStore("ranks", store),
        rank=rank,
        world_size=size,
        timeout=timeout,
        device_id=device if device.type == "cuda" else None,
    )
    return warnings


def _average_rounded(size: int, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Average a DDP bucket in bfloat16: a communication hook. (Torch's own refuses gloo, which supports it by now.)"""
    share = bucket.buffer().div(size).bfloat16()
    future = dist.all_reduce(share, async_op=True).get_future()
    return future.then(lambda done: bucket.buffer().copy_(done.value()[0]))


@contextlib.contextmanager
def allow_tf32(device: torch.device, allowed: bool) -> Iterator[None]:
    """Let a GPU round the factors of float32 products to 10 bits in this context; where not `allowed`, all stays."""
    if not allowed or device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    _set_tf32(True, True)
    try:
        yield
    finally:
        _set_tf32(*before)


def _set_tf32(convolutions: bool, products: bool) -> None:
    # Torch's newer settings (fp32_precision) leave these two behind, and then what still reads them raises, as
    # torch.compile of some versions does; these two set the newer ones as well.
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.backends.cuda.matmul.allow_tf32 = products


def _choose_kernels(device: torch.device, deterministic: str, tf32: bool) -> None:
    if device.type != "cuda":
        return
    # Torch's own default is tf32 for convolutions only.
    _set_tf32(tf32, tf32)
    torch.backends.cudnn.benchmark = deterministic == "fast"
    if deterministic != "fast":
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(True, warn_only=deterministic == "warn")
