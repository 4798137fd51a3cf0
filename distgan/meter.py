"""Means of what the steps report. A step only puts its tensors down: nothing waits for a GPU before a tick."""

import math

import torch
from torch import Tensor

from distgan.world import World

D_LOSSES = ("Loss/D", "Loss/D_adv", "Loss/r1", "Loss/r2", "Loss/gp")
G_LOSSES = ("Loss/G", "Loss/G_adv", "Loss/fm", "Loss/pixel")
LOSSES = (*D_LOSSES, *G_LOSSES)
STATISTICS = ("mean", "square", "sign")  # of logits, each of real images and of fakes
NETS = ("D", "G")
COMPACT = 256  # passes whose reports are kept before they become sums

# The sums, by their place in one vector.
NUM_LOGITS = 2 * len(STATISTICS) + 1  # and pairs in the right order
NAMES = (
    *LOSSES,
    *(f"logits {i}" for i in range(NUM_LOGITS)),
    *(f"images of {net}" for net in NETS),
    *(f"bad {name}" for name in LOSSES),  # passes in which it was not finite
    *(f"{what} {net}" for what in ("norm", "steps", "skipped") for net in NETS),
)


class Meter:
    """What D's and G's steps reported since the last tick, on this rank's device.

    Sums are taken in float64, where those of float32 numbers of similar size are exact. So their grouping does not
    matter, and a run that was stopped between two ticks shows the same means as an unbroken one. What is not finite is
    left out of the sums and counted.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._sums = torch.zeros(len(NAMES), dtype=torch.float64, device=world.device)
        self._clear()

    def _clear(self) -> None:
        self._losses: dict[str, list[Tensor]] = {name: [] for name in LOSSES}
        self._logits: list[tuple[Tensor, Tensor]] = []  # of real images and fakes
        self._norms: dict[str, list[Tensor]] = {net: [] for net in NETS}

    def add_d(self, losses: dict[str, Tensor], real_logits: Tensor, fake_logits: Tensor) -> None:
        """One pass of a D step: its losses by log key, scalars, and its logits, [B] each; without gradients."""
        for name, value in losses.items():
            self._losses[name].append(value)
        self._logits.append((real_logits, fake_logits))
        if len(self._logits) >= COMPACT:
            self._compact()

    def add_g(self, losses: dict[str, Tensor]) -> None:
        """One pass of a G step: its losses by log key, scalars without gradients."""
        for name, value in losses.items():
            self._losses[name].append(value)

    def add_update(self, net: str, norm: Tensor) -> None:
        """One step of an optimizer: the norm of all ranks' gradient. Where it is not finite, the step was not taken."""
        if self._world.is_main:
            self._norms[net].append(norm)

    def _compact(self) -> None:
        """Turn what was put down into sums over images."""
        if not self._logits:
            return
        num = len(self._logits[0][0])  # images of a pass, in D's and in G's steps
        losses, good, bad = self._totals(self._losses)
        both = torch.stack([torch.cat(logits).float() for logits in zip(*self._logits)])  # real and fake, [2, images]
        both = both.where(both.isfinite(), 0)
        logits = torch.cat([x.double().sum(1) for x in (both, both.square(), both.sign(), both[:1] > both[1:])])
        images = num * torch.stack([good[LOSSES.index(name)] for name in ("Loss/D", "Loss/G")])
        self._sums += torch.cat([num * losses, logits, images, bad, *self._totals(self._norms)])
        self._clear()

    def _totals(self, put_down: dict[str, list[Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
        """Of each name, the sum of the finite values, their number, and the number of the others."""
        sums, good = [], []
        for values in put_down.values():
            stacked = torch.stack(values).double() if values else self._sums.new_zeros(0)
            finite = stacked.isfinite()
            sums.append(stacked.where(finite, 0).sum())
            good.append(finite.sum(dtype=torch.float64))
        given = self._sums.new_tensor([len(values) for values in put_down.values()])
        return torch.stack(sums), torch.stack(good), given - torch.stack(good)

    def _of_all_ranks(self) -> dict[str, float]:
        self._compact()
        return dict(zip(NAMES, self._world.sum(self._sums.clone()).tolist()))

    def skipped(self) -> tuple[int, str]:
        """How many steps were skipped since the last flush, and why, for a person; the same on every rank."""
        sums = self._of_all_ranks()
        steps = {net: int(sums[f"skipped {net}"]) for net in NETS}
        told = " and ".join(f"{num} step(s) of {net}" for net, num in steps.items() if num)
        causes = ", ".join(f"{name} {int(sums[f'bad {name}'])} times" for name in LOSSES if sums[f"bad {name}"])
        return sum(steps.values()), f"{told} not taken, since not finite: {causes or 'the gradient'}"

    def flush(self) -> dict[str, float]:
        """Means over the images of all ranks since the last flush, by log key; the same on every rank."""
        sums = self._of_all_ranks()
        self._sums.zero_()
        images = {net: max(1, sums[f"images of {net}"]) for net in NETS}
        row = {name: sums[name] / images["G" if name in G_LOSSES else "D"] for name in LOSSES}
        means = iter([sums[f"logits {i}"] / images["D"] for i in range(NUM_LOGITS)])
        found = {f"{kind}_{statistic}": next(means) for statistic in STATISTICS for kind in ("real", "fake")}
        for kind in ("real", "fake"):
            mean, square = found[f"{kind}_mean"], found[f"{kind}_square"]
            row[f"Logits/{kind}_mean"], row[f"Logits/sign_{kind}"] = mean, found[f"{kind}_sign"]
            row[f"Logits/{kind}_std"] = math.sqrt(max(0.0, square - mean**2))
        row["Logits/gap"] = found["real_mean"] - found["fake_mean"]
        row["Logits/acc"] = next(means)
        row |= {f"Optim/grad_norm_{net}": sums[f"norm {net}"] / max(1, sums[f"steps {net}"]) for net in NETS}
        return row | {"Optim/skipped_steps": sum(sums[f"skipped {net}"] for net in NETS)}

    def state(self) -> list[list[float]]:
        """The sums of every rank, so that a run stopped between two ticks loses nothing of the next line."""
        self._compact()
        return self._world.gather(self._sums.tolist())

    def load_state(self, state: list[list[float]]) -> None:
        """Take up saved sums; on another number of ranks, rank 0 takes them all."""
        self._clear()
        sums = torch.tensor(state, dtype=torch.float64)
        if len(sums) != self._world.size:
            rest = sums.new_zeros(self._world.size - 1, len(NAMES))
            sums = torch.cat([sums.sum(0, keepdim=True), rest])
        self._sums.copy_(sums[self._world.rank])
