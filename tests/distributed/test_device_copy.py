"""Batches reach the device as they were, in buffers that the device has finished with."""

from collections.abc import Iterator
from unittest import mock

import numpy as np
import pytest
import torch

from distgan.distributed.device_copy import DeviceCopy

VALUES = {"uint8": 1, "uint16": 1111, "float32": -0.37}  # which no smaller type holds
SEEDS, LABELS = np.array([2**62, -5], np.int64), np.array([1, 0], np.int64)


def batch(number: int, dtype: str = "uint8") -> tuple[list[np.ndarray], list[np.ndarray]]:
    images = (np.full((2, 4, 4, 3), number) * VALUES[dtype]).astype(dtype)
    latents = np.arange(6, dtype=np.float32).reshape(2, 3) * number
    return [images], [SEEDS + number, LABELS, latents, -latents]


class Queue:
    """Stands for a stream of a GPU; work that it is given is done at once, and put down with what it waited for."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.after: set[str] = set()  # events that have been waited for

    def wait_event(self, event: "Event") -> None:
        self.after |= event.after

    def wait_stream(self, other: "Queue") -> None:
        self.after |= other.after


class Event:
    def __init__(self, blocking: bool = False) -> None:
        self.after: set[str] = set()
        self.was_waited_for = False

    def record(self, queue: Queue) -> None:
        self.after = set(queue.after)

    def synchronize(self) -> None:
        self.was_waited_for = True


@pytest.fixture
def compute() -> Iterator[Queue]:
    """The stream that trains, of a GPU whose memory is that of the host."""
    queue, empty = Queue(), torch.empty
    with (
        mock.patch.multiple(torch.cuda, Stream=Queue, Event=Event, current_stream=lambda device: queue),
        mock.patch.object(torch.cuda, "stream", lambda queue: mock.MagicMock()),
        mock.patch.object(torch, "empty", lambda *size, pin_memory=False, **options: empty(*size, **options)),
    ):
        yield queue


def on_gpu() -> DeviceCopy:
    copy = DeviceCopy(torch.device("cuda"))
    copy._device = torch.device("cpu")
    return copy


def test_a_cpu_gets_the_arrays_themselves() -> None:
    images, numbers = batch(3)
    there, others = DeviceCopy(torch.device("cpu"))(images, numbers)
    for tensor, array in zip([*there, *others], [*images, *numbers], strict=True):
        assert np.shares_memory(tensor.numpy(), array)


@pytest.mark.parametrize("dtype", VALUES)
def test_what_arrives_is_what_was_sent(compute: Queue, dtype: str) -> None:
    copy = on_gpu()
    for number in range(5):
        sent, arrived = batch(number, dtype), copy(*batch(number, dtype))
        for arrays, tensors in zip(sent, arrived, strict=True):
            for array, tensor in zip(arrays, tensors, strict=True):
                assert tensor.dtype is torch.from_numpy(array).dtype
                assert np.array_equal(tensor.numpy(), array)


def test_buffers_are_filled_when_the_work_on_them_is_done(compute: Queue) -> None:
    copy, addresses = on_gpu(), []
    for number in range(6):
        compute.after.add(f"memory before {number}")
        images, _ = copy(*batch(number))
        addresses.append(images[0].data_ptr())
        # Those of two batches ago are used again: the copy came after the work on that batch, and not after the work
        # on the last one, beside which it runs.
        assert (f"work on {number - 2}" in copy._stream.after) == (number >= 2)
        assert f"work on {number - 1}" not in copy._stream.after or number == 1
        if number < 2:  # memory that is new here may have been another tensor's
            assert f"memory before {number}" in copy._stream.after
        compute.after.add(f"work on {number}")
        copy.wait()
        assert copy._copied.was_waited_for
    assert len(set(addresses)) == 2
    assert addresses[:2] * 3 == addresses


def test_work_on_a_batch_comes_after_its_copy(compute: Queue) -> None:
    copy = on_gpu()
    copy._stream.after.add("the copy")
    copy(*batch(0))
    assert "the copy" in compute.after
