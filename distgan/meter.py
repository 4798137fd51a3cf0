"""Means of what the steps report, summed on the device: nothing waits for the GPU before a tick."""

import math

import torch
from torch import Tensor

from distgan.losses import LOGIT_STATISTICS
from distgan.world import World

D_REPORT = ("Loss/D", "Loss/D_adv", "Loss/r1", "Loss/r2", "Loss/gp", *(f"Logits/{n}" for n in LOGIT_STATISTICS))
G_REPORT = ("Loss/G",)


class Meter:
    """Sums of D's and G's reports since the last tick."""

    def __init__(self, world: World):
        self._world = world
        self._sums = torch.zeros(len(D_REPORT) + len(G_REPORT), device=world.device)
        self._steps = [0, 0]  # D's and G's

    def add_d(self, report: Tensor) -> None:
        """One D step's report, in the order of D_REPORT."""
        self._sums[: len(D_REPORT)] += report
        self._steps[0] += 1

    def add_g(self, report: Tensor) -> None:
        self._sums[len(D_REPORT) :] += report
        self._steps[1] += 1

    def flush(self) -> dict[str, float]:
        """Means over the steps and ranks since the last flush, by log key."""
        sums = self._world.sum(self._sums.clone()).tolist()
        d_steps, g_steps = (max(1, steps) * self._world.size for steps in self._steps)
        row = {name: value / d_steps for name, value in zip(D_REPORT, sums)}
        row |= {name: value / g_steps for name, value in zip(G_REPORT, sums[len(D_REPORT) :])}
        for kind in ("real", "fake"):
            mean, square = row[f"Logits/{kind}_mean"], row.pop(f"Logits/{kind}_square")
            row[f"Logits/{kind}_std"] = math.sqrt(max(0.0, square - mean**2))
        row["Logits/gap"] = row["Logits/real_mean"] - row["Logits/fake_mean"]
        self._sums.zero_()
        self._steps = [0, 0]
        return row

    def state(self) -> dict:
        """The sums of every rank, so that a run stopped between two ticks loses nothing of the next one's line."""
        return {"sums": self._world.gather(self._sums.tolist()), "steps": self._steps}

    def load_state(self, state: dict) -> None:
        """Take up saved sums; on another number of ranks, rank 0 takes all of them."""
        sums = torch.tensor(state["sums"], dtype=self._sums.dtype)
        if len(sums) != self._world.size:
            sums = torch.cat([sums.sum(0, keepdim=True), torch.zeros_like(sums[:1]).expand(self._world.size - 1, -1)])
        self._sums.copy_(sums[self._world.rank])
        self._steps = list(state["steps"])
