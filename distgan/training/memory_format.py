"""The order of a network's numbers in memory: channel by channel (NCHW), or pixel by pixel ("channels_last", NHWC).

Values are the same up to rounding; which order has the faster kernels depends on the layers and the device. Checkpoints
and exports are NCHW in any case.
"""

import contextlib
import logging
import time
from collections.abc import Callable

import torch
from torch import nn

from distgan.condition_spec import VectorInput
from distgan.config.schema import Config, image_spec, restores
from distgan.distributed.process_group import World
from distgan.models.label_embedding import VectorEmbedding, blank_labels
from distgan.models.networks import run_generator

log = logging.getLogger("distgan")

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# Families that train faster in channels_last on a CPU: `python tests/e2e/memory_formats.py` measures them.
FASTER_ON_CPU = ("resnet",)
WARM_UP, PASSES = 3, 5  # of the probe on a GPU


def choose(
    config: Config, world: World, saved: Callable[[], str], nets: Callable[[], tuple[nn.Module, nn.Module]], num: int
) -> str:
    """Return the memory format of a run, a key of `FORMATS`, the same on all ranks.

    Args:
        saved: Reads the format of the checkpoint that the run resumes from, or "": `auto` keeps it, so that a resumed
            run is the unbroken one to the last bit.
        nets: Builds G and D, for a probe on a GPU.
        num: Images of a pass.
    """
    if config.train.memory_format != "auto":
        return config.train.memory_format
    if world.device.type == "cpu":
        return "channels_last" if config.model.family in FASTER_ON_CPU else "contiguous"
    if config.train.deterministic != "fast":  # a clock would decide over the last bits
        return "contiguous"

    def of_main() -> str:
        known = saved()
        return known if known in FORMATS else _probe(config, world.device, nets, num)

    return world.run_on_main(of_main)


def convert(net: nn.Module, name: str) -> None:
    """Bring a network's weights to a memory format, a key of `FORMATS`."""
    net.to(memory_format=FORMATS[name])  # type: ignore[call-overload]  # which torch's own types lack


def _probe(config: Config, device: torch.device, nets: Callable[[], tuple[nn.Module, nn.Module]], num: int) -> str:
    """Return the format in which G and D are faster, forward and backward, on this rank's device.

    Raises:
        torch.OutOfMemoryError: The device is too small for a pass, for training all the more.
    """
    seconds = {name: time_passes(config, device, *nets(), num, name) for name in FORMATS}
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what was cut for the other format would be in the way
    fastest = min(seconds, key=lambda name: seconds[name])
    listed = ", ".join(f"{name} {1000 * value:.1f} ms" for name, value in seconds.items())
    log.info(f"memory format: {fastest}, as a forward and a backward of G and D took: {listed}")
    return fastest


def time_passes(
    config: Config, device: torch.device, G: nn.Module, D: nn.Module, num: int, memory_format: str
) -> float:
    """Return the seconds that a forward and a backward of D behind G take."""
    for net in (G, D):
        convert(net.to(device), memory_format)
    z, image = torch.randn(num, config.model.z_dim, device=device), image_spec(config.data)
    vectors = next((module for module in D.modules() if isinstance(module, VectorEmbedding)), None)
    labeled = int(config.model.conditional) if vectors is None else VectorInput(len(vectors.weight), 1.0)
    labels = blank_labels(labeled, num, device)
    condition = torch.zeros(num, image.channels, image.height, image.width, device=device) if restores(config) else None
    is_paired = restores(config) and config.model.D["paired"]
    started = 0.0
    for number in range(WARM_UP + PASSES):
        if number == WARM_UP:
            started = _clock(device)
        bf16 = config.train.precision == "bf16"
        with torch.autocast(device.type, torch.bfloat16) if bf16 else contextlib.nullcontext():
            fake = run_generator(G, z, condition, labels)
            seen = torch.cat([fake, condition.to(fake.dtype)], 1) if is_paired and condition is not None else fake
            logits = D(seen, labels)
        logits.float().mean().backward()
    return (_clock(device) - started) / PASSES


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
