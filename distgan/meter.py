"""Means of what the steps report. A step only puts its tensors down: nothing waits for a GPU before a tick."""

import math

import torch
from torch import Tensor

from distgan.world import World

LOSSES = ("Loss/D", "Loss/D_adv", "Loss/r1", "Loss/r2", "Loss/gp", "Loss/G")
STATISTICS = ("mean", "square", "sign")  # of logits, each of real images and of fakes
NUM_SUMS = len(LOSSES) + 2 * len(STATISTICS) + 3  # also: pairs in the right order, images of D's steps, of G's
COMPACT = 256  # passes whose reports are kept before they become sums


class Meter:
    """What D's and G's steps reported since the last tick, on this rank's device.

    Sums are taken in float64, where those of float32 numbers of similar size are exact. So their grouping does not
    matter, and a run that was stopped between two ticks shows the same means as an unbroken one.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._losses: dict[str, list[Tensor]] = {name: [] for name in LOSSES}
        self._logits: list[tuple[Tensor, Tensor]] = []  # of real images and fakes
        self._sums = torch.zeros(NUM_SUMS, dtype=torch.float64, device=world.device)

    def add_d(self, losses: dict[str, Tensor], real_logits: Tensor, fake_logits: Tensor) -> None:
        """One pass of a D step: its losses by log key, scalars, and its logits, [B] each; without gradients."""
        for name, value in losses.items():
            self._losses[name].append(value)
        self._logits.append((real_logits, fake_logits))
        if len(self._logits) >= COMPACT:
            self._compact()

    def add_g(self, loss: Tensor) -> None:
        """One pass of a G step."""
        self._losses["Loss/G"].append(loss)

    def _compact(self) -> None:
        """Turn what was put down into sums over images."""
        if not self._logits:
            return
        num = len(self._logits[0][0])  # images of a pass, in D's and in G's steps
        losses = [torch.stack(v).double().sum() * num if v else self._sums.new_zeros(()) for v in self._losses.values()]
        both = torch.stack([torch.cat(logits).float() for logits in zip(*self._logits)])  # real and fake, [2, images]
        logits = torch.cat([x.double().sum(1) for x in (both, both.square(), both.sign(), both[:1] > both[1:])])
        images = self._sums.new_tensor([num * len(self._logits), num * len(self._losses["Loss/G"])])
        self._sums += torch.cat([torch.stack(losses), logits, images])
        self._losses = {name: [] for name in LOSSES}
        self._logits = []

    def flush(self) -> dict[str, float]:
        """Means over the images of all ranks since the last flush, by log key; the same on every rank."""
        self._compact()
        *sums, d_images, g_images = self._world.sum(self._sums.clone()).tolist()
        self._sums.zero_()
        row = {name: value / max(1, g_images if name == "Loss/G" else d_images) for name, value in zip(LOSSES, sums)}
        means = iter([value / max(1, d_images) for value in sums[len(LOSSES) :]])
        found = {f"{kind}_{statistic}": next(means) for statistic in STATISTICS for kind in ("real", "fake")}
        for kind in ("real", "fake"):
            mean, square = found[f"{kind}_mean"], found[f"{kind}_square"]
            row[f"Logits/{kind}_mean"], row[f"Logits/sign_{kind}"] = mean, found[f"{kind}_sign"]
            row[f"Logits/{kind}_std"] = math.sqrt(max(0.0, square - mean**2)) if math.isfinite(square) else square
        row["Logits/gap"] = found["real_mean"] - found["fake_mean"]
        row["Logits/acc"] = next(means)
        return row

    def state(self) -> list[list[float]]:
        """The sums of every rank, so that a run stopped between two ticks loses nothing of the next line."""
        self._compact()
        return self._world.gather(self._sums.tolist())

    def load_state(self, state: list[list[float]]) -> None:
        """Take up saved sums; on another number of ranks, rank 0 takes them all."""
        sums = torch.tensor(state, dtype=torch.float64)
        if len(sums) != self._world.size:
            rest = sums.new_zeros(self._world.size - 1, NUM_SUMS)
            sums = torch.cat([sums.sum(0, keepdim=True), rest])
        self._sums.copy_(sums[self._world.rank])
