"""Spread the global batch over ranks, passes and micro-batches."""

import math
from dataclasses import dataclass

from distgan.config.schema import Config, restores
from distgan.errors import ConfigError
from distgan.storage.formatting import one_of


@dataclass(frozen=True)
class BatchPlan:
    """A global batch spread over ranks: `world` ranks make `passes` passes over `micro_batch` images each."""

    batch: int
    world: int
    micro_batch: int
    passes: int

    def __str__(self) -> str:
        return f"{self.batch} images = {self.world} rank(s) x {self.passes} pass(es) x {self.micro_batch}"


def make_batch_plan(config: Config, world: int) -> BatchPlan:
    """Spread train.batch over `world` ranks. Raises ConfigError, which lists batches that fit."""
    batch, expected = config.train.batch, config.run.expected_world_size
    if expected and expected != world:
        raise ConfigError(f"{world} rank(s) started, run.expected_world_size={expected} wanted")
    if batch % world:
        fits = one_of([n for n in divisors(batch) if n <= 2 * world])
        below, above = batch - batch % world, batch - batch % world + world
        raise ConfigError(
            f"train.batch={batch} cannot be spread evenly over {world} ranks: use {fits} ranks, "
            f"or train.batch={one_of([n for n in (below, above) if n])}"
        )
    local = batch // world
    micro = config.train.micro_batch or local
    if local % micro:
        raise ConfigError(
            f"train.micro_batch={micro} does not divide the {local} images that each of {world} ranks gets of "
            f"train.batch={batch}: choose one of {one_of(_passes_of(config, local) or divisors(local))}"
        )
    if micro not in _passes_of(config, micro):
        group = config.model.minibatch_group_size
        raise ConfigError(
            f"model.minibatch_group_size={group} does not divide the {micro} images of a pass: "
            f"choose one of {one_of(divisors(micro)[1:] or [0])}"
        )
    return BatchPlan(batch, world, micro, local // micro)


def less_memory(config: Config, plan: BatchPlan) -> str:
    """Return which setting makes a rank need less memory, for a message."""
    micro, smaller = plan.micro_batch, _passes_of(config, plan.micro_batch)[:-1]
    if not smaller:
        why = f"a pass has {'1 image' if micro == 1 else f'one group of {micro} images'} already"
        bf16 = "" if config.train.precision == "bf16" else "train.precision=bf16, or "
        width = "widths" if "widths" in config.model.G else "base_channels"
        return f"{why}: {bf16}smaller networks (model.G.{width}, model.D.{width})"
    compares = [name for name, on in settings_that_compare(config).items() if on]
    grouped = config.model.minibatch_group_size > 0
    reasons = [f"model.{net}.norm" for net in batch_normed(config)] + ([] if grouped else compares)
    what = f"makes another update, by {' and '.join(reasons)}," if reasons else "makes the same update"
    return (
        f"a rank passes {micro} images at a time (train.micro_batch): train.micro_batch={smaller[-1]} {what} "
        "in more passes"
    )


def _passes_of(config: Config, num: int) -> list[int]:
    """Return how many of `num` images a pass may have, in rising order: whole groups, where images are compared."""
    group = config.model.minibatch_group_size if any(settings_that_compare(config).values()) else 0
    return [n for n in divisors(num) if n % (group or 1) == 0]


def batch_normed(config: Config) -> list[str]:
    """Return the networks, of G and D, whose batch norm makes an image depend on the others of its pass."""
    return [net for net in "GD" if getattr(config.model, net).get("norm", "none") != "none"]


def settings_that_compare(config: Config) -> dict[str, bool]:
    """Return settings that compare images of a group with one another, and whether they are in use."""
    return {
        "model.minibatch_layer": config.model.minibatch_layer != "none",
        "loss.feature_matching": config.loss.feature_matching > 0 and not restores(config),  # which compares pairs
    }


def divisors(n: int) -> list[int]:
    """Return all divisors of a number, from 1 to itself."""
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})
