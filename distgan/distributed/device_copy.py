"""Copies from the host to a rank's device, beside what the device computes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def copy_to_device(values: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """Return values on a device, without waiting for the copy; those that are there already stay as they are.

    Only pinned memory can be copied to a GPU in the background, so the values go through some. What is pinned already
    is read later, and must stay as it is: a caller who does not know uses `Tensor.to`, which waits.
    """
    tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@dataclass
class _Buffers:
    """Where one batch lies on a GPU; `used` is recorded behind the last work that reads it."""

    images: list[Tensor]
    numbers: Tensor
    used: torch.cuda.Event


class DeviceCopy:
    """Copies batch after batch to a device.

    On a GPU a stream of its own does it: while the device computes with one of two sets of buffers, the other one is
    filled. Images are copied from where they are, which is to be pinned memory; all other arrays of a batch are small
    and are packed into one. Nothing is allocated after the first two batches, and the host waits for no work of the
    device. On a CPU there is nothing to copy: the tensors share the memory of the arrays.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._on_gpu = device, device.type == "cuda"
        self._filled: list[_Buffers] = []  # the one that was filled last comes last
        if self._on_gpu:
            self._stream = torch.cuda.Stream(device)
            self._copied = torch.cuda.Event(blocking=True)  # a host that waits sleeps, and leaves its core to decoding

    def wait(self) -> None:
        """Wait until the last batch is copied: its arrays may be written to then."""
        if self._on_gpu:
            self._copied.synchronize()

    def __call__(
        self, images: Sequence[np.ndarray], numbers: Sequence[np.ndarray]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Copy images, uint8, and other arrays, of the same shapes in each call.

        Start all work on the tensors before the next call. Of `numbers`, those of the widest type come first.
        """
        if not self._on_gpu:
            return self._as_tensors(images), self._as_tensors(numbers)
        compute = torch.cuda.current_stream(self._device)
        if self._filled:
            self._filled[-1].used.record(compute)
        if len(self._filled) < 2:
            self._filled.append(self._allocate(images, numbers))
            self._stream.wait_stream(compute)  # that may still read what was in this memory before
        else:
            self._filled.reverse()
        buffers = self._filled[-1]
        np.concatenate([_as_bytes(array) for array in numbers], out=self._packed.numpy())
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(buffers.used)
            for array, there in zip(images, buffers.images, strict=True):
                there.copy_(torch.from_numpy(array), non_blocking=True)
            buffers.numbers.copy_(self._packed, non_blocking=True)
            self._copied.record(self._stream)
        compute.wait_event(self._copied)
        parts = buffers.numbers.split([array.nbytes for array in numbers])
        unpacked = [part.view(_dtype(array)).view(array.shape) for part, array in zip(parts, numbers)]
        return buffers.images, unpacked

    def _as_tensors(self, arrays: Sequence[np.ndarray]) -> list[Tensor]:
        tensors = [torch.from_numpy(array) for array in arrays]
        return tensors if self._device.type == "cpu" else [tensor.to(self._device) for tensor in tensors]

    def _allocate(self, images: Sequence[np.ndarray], numbers: Sequence[np.ndarray]) -> _Buffers:
        size = sum(array.nbytes for array in numbers)
        self._packed = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        on_device = [torch.empty(array.shape, dtype=_dtype(array), device=self._device) for array in images]
        return _Buffers(on_device, torch.empty(size, dtype=torch.uint8, device=self._device), torch.cuda.Event())


def _as_bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _dtype(array: np.ndarray) -> torch.dtype:
    return torch.from_numpy(array[:0]).dtype
