"""Iterations of real trainers on fake CUDA tensors, in a process that has loaded the library of tests/fakecuda.cpp.

Reads cases (`fakecuda.Case`) as lines of JSON; prints what was counted of one iteration of each, {"name", "error"} or
{"name", "D", "G", "copies", "arrays", "waits", "mixes"}, as lines of JSON. D and G are launches in a step; arrays are
those that the batches hold, each of which is to be copied once.
"""

import contextlib
import functools
import tempfile
import types
from pathlib import Path
from unittest import mock

import fakecuda
import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from distgan.config.batch_plan import make_batch_plan
from distgan.config.schema import Config, image_spec, restores
from distgan.data.dataset import Dataset
from distgan.data.loader import Batch
from distgan.data.synthetic import write_shards
from distgan.distributed.device_copy import DeviceCopy
from distgan.distributed.process_group import World
from distgan.image_spec import square
from distgan.training import factory
from distgan.training.gan_step import GanStep
from distgan.training.learner import Learner
from distgan.training.schedulers import Schedulers
from distgan.training.step_inputs import LatentSampler
from distgan.training.timing import D_STEP, G_STEP
from distgan.training.trainer import Trainer
from distgan.transforms import degrade

FROM_NUMPY = torch.from_numpy
DEVICE = torch.device("cuda", 0)
SETTINGS = ["data.holdout=0", "wandb.mode=disabled", "train.batch=32", "loss.penalty_interval=1"]
SETTINGS += ["train.memory_format=contiguous"]  # not the probe of real GPUs


class Event:
    """Stands for torch.cuda.Event."""

    def __init__(self, counts: fakecuda.Counts, blocking: bool = False, enable_timing: bool = False) -> None:
        self._counts, self._blocking = counts, blocking

    def record(self, stream: object = None) -> None:
        pass

    def synchronize(self) -> None:
        self._counts.wait("waits for an event" if self._blocking else "spins for an event")


class Stream:
    """Stands for torch.cuda.Stream, and for the context that selects one."""

    def __init__(self, device: object = None) -> None:
        pass

    def wait_event(self, event: Event) -> None:
        pass

    def wait_stream(self, stream: "Stream") -> None:
        pass


class Batches:
    """Endless batches; their pictures are in memory that stands for pinned, as `build.open_stream` allocates it."""

    def __init__(self, config: Config, num_classes: int, pairs: bool) -> None:
        self._config, self._num_classes, self._pairs, self._start = config, num_classes, pairs, 0
        self._noise = LatentSampler(config.train.seed, config.model.z_dim)
        self.num_arrays = 0
        image = image_spec(config.data)
        self._pictures = np.zeros((config.train.batch, *image.shape), image.dtype)

    def __next__(self) -> Batch:
        positions = np.arange(self._start, self._start + self._config.train.batch)
        self._start += len(positions)
        labels = positions % max(1, self._num_classes)
        degraded = self._pictures if self._pairs else None
        self.num_arrays += 2 + self._pairs  # pictures, all numbers packed, pairs
        return Batch(self._pictures, labels, positions, positions, self._noise(positions), degraded=degraded)

    def tensor(self, array: np.ndarray) -> torch.Tensor:
        """Stands for torch.from_numpy, and knows what is pinned."""
        made = FROM_NUMPY(array)
        return pinned(made) if array is self._pictures else made


def trainer_of(config: Config, dataset: Dataset, counts: fakecuda.Counts) -> Trainer:
    """A trainer without records and watchdog, whose device is a GPU that is not there."""
    world = World()
    world.device = DEVICE
    # A fake network cannot be copied; another one of the same config is as good, since there are no values.
    another = types.SimpleNamespace(deepcopy=lambda net: factory.build_nets(config, dataset.num_classes)[0])
    with (
        mock.patch.object(factory, "open_dataset", lambda config, *_: dataset),
        mock.patch("distgan.training.learner.copy", another),
    ):
        learner = Learner(config, world, make_batch_plan(config, 1))
    stream = Batches(config, dataset.num_classes, restores(config) and not config.restore.degrade)
    with (
        mock.patch(
            "distgan.training.trainer.Tracker", lambda *_: types.SimpleNamespace(update_progress=lambda images: None)
        ),
        mock.patch("distgan.training.trainer.SampleGrids", lambda *_: None),
        mock.patch("distgan.training.trainer.Watchdog", lambda *_: types.SimpleNamespace(phase=lambda name: None)),
        mock.patch.object(Trainer, "_write_status", lambda *_: None),
        mock.patch.object(Trainer, "open_stream", lambda self: stream),
    ):
        trainer = Trainer(learner, None, 0)
    trainer._tick = lambda measured: None  # lines of metrics may wait
    return trainer


class Fakes(FakeTensorMode):
    avoid_device_init = True  # a tensor of the host's numbers is made on the host, then copied


def count(config: Config) -> dict:
    """What one iteration asks of the device, after one that builds the optimizers' state."""
    dataset = factory.open_dataset(config)
    counts, steps = fakecuda.Counts(), {"D": [], "G": []}
    empty = torch.empty

    def allocate(*size: int, pin_memory: bool = False, **options: object) -> torch.Tensor:
        if not pin_memory:
            return empty(*size, **options)
        with _disable_current_modes():  # a real one, which numpy writes to
            return pinned(empty(*size, **options))

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(torch.cuda, "Event", functools.partial(Event, counts)))
        stack.enter_context(mock.patch.object(torch.cuda, "Stream", Stream))
        stack.enter_context(mock.patch.object(torch.cuda, "current_stream", Stream))
        stack.enter_context(mock.patch.object(torch.cuda, "stream", lambda stream: contextlib.nullcontext()))
        stack.enter_context(mock.patch.object(torch, "empty", allocate))
        stack.enter_context(mock.patch.object(torch.cuda, "is_available", lambda: True))
        stack.enter_context(mock.patch.object(torch.cuda, "is_bf16_supported", lambda *_: True))
        stack.enter_context(mock.patch.object(torch.Tensor, "pin_memory", pinned))
        stack.enter_context(mock.patch.object(torch.nn.Module, "to", moved))
        stack.enter_context(Fakes(allow_non_fake_inputs=True))
        stack.enter_context(counts)
        trainer = trainer_of(config, dataset, counts)
        stack.enter_context(mock.patch.object(torch, "from_numpy", trainer.stream.tensor))
        watch_steps(trainer, counts, steps)
        trainer.train_iteration()
        counts.clear()
        for launches in steps.values():
            launches.clear()
        trainer.stream.num_arrays = 0
        trainer.train_iteration()
    CACHED_TABLE.cache_clear()  # its tensors are of this mode
    found = {name: max(launches) for name, launches in steps.items()}
    copies = {"copies": counts.copies, "arrays": trainer.stream.num_arrays}
    told = copies | {"waits": counts.waits, "mixes": counts.mixes, "refused": sorted(counts.refused)}
    return found | told


def watch_steps(trainer: Trainer, counts: fakecuda.Counts, steps: dict[str, list[int]]) -> None:
    """Put down the launches of each step by the phases that a trainer tells of."""
    before, current = [0], [""]

    def told(name: str) -> None:
        if current[0]:
            steps[current[0]].append(counts.launches - before[0])
        before[0], current[0] = counts.launches, {D_STEP: "D", G_STEP: "G"}.get(name, "")

    trainer._on_phase = told


def moved(
    net: torch.nn.Module, device: torch.device | None = None, memory_format: torch.memory_format | None = None
) -> torch.nn.Module:
    """Stands for Module.to, which fake tensors refuse; networks are in torch's default memory format here."""
    if device is None:
        return net
    for module in net.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = torch.nn.Parameter(weight.detach().to(device), weight.requires_grad)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)
    return net


def pinned(tensor: torch.Tensor) -> torch.Tensor:
    tensor.is_said_to_be_pinned = True
    return tensor


# Faults that the tests must see.


def _pack_unpinned(self: DeviceCopy, *arrays: list[np.ndarray]) -> object:
    made = ALLOCATE(self, *arrays)
    self._packed.is_said_to_be_pinned = False
    return made


def _observe_by_numbers(self: Schedulers, real_logits: torch.Tensor, fake_logits: torch.Tensor) -> None:
    OBSERVE(self, real_logits, fake_logits)
    real_logits.new_tensor([len(real_logits)])


def _scale_once_more(self: GanStep, pixels: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
    return SCALED(self, pixels, seeds) * 1


def _scale_on_the_host(self: GanStep, pixels: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
    return SCALED(self, pixels, seeds) * torch.ones(pixels.shape[1])


def _scale_by_a_look(self: GanStep, pixels: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
    return SCALED(self, pixels, seeds) * float(seeds.sum())


ALLOCATE, OBSERVE, SCALED = DeviceCopy._allocate, Schedulers.observe, GanStep._scaled
CACHED_TABLE = degrade._on_device
FAULTS = {
    "": (Schedulers, "observe", OBSERVE),
    "memory that is not pinned": (DeviceCopy, "_allocate", _pack_unpinned),
    "a number of the host": (Schedulers, "observe", _observe_by_numbers),
    "a table of the host": (degrade, "_on_device", degrade._on_device.__wrapped__),
    "one launch more": (GanStep, "_scaled", _scale_once_more),
    "a tensor of the host": (GanStep, "_scaled", _scale_on_the_host),
    "a number of the device": (GanStep, "_scaled", _scale_by_a_look),
}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder) / "shards"
        write_shards(shards, 64, square(32))  # opened, never read
        fakecuda.answer(lambda case, config: count(config), FAULTS, [f"data.shards={shards}", *SETTINGS])


if __name__ == "__main__":
    main()
