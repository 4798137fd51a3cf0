"""Average what the steps report. A step only stores its tensors: nothing waits for a GPU before a tick."""

import logging
import math
from collections.abc import Collection

import torch
from torch import Tensor

from distgan.distributed.process_group import World

log = logging.getLogger("distgan")

TERMS = {  # of D's and of G's loss, which is their sum
    "Loss/D": ("Loss/D_adv", "Loss/r1", "Loss/r2", "Loss/gp"),
    "Loss/G": ("Loss/G_adv", "Loss/fm", "Loss/pixel", "Loss/path"),
}
LOSSES = tuple(name for total, terms in TERMS.items() for name in (total, *terms))
STATISTICS = ("mean", "square", "sign")  # of logits, each of real images and of fakes
NETS = ("D", "G")
COMPACT = 256  # passes whose reports are kept before they become sums

# The sums, by their place in one vector.
KINDS = ("real", "fake")
LOGITS = (
    *(f"{statistic} of {kind} logits" for statistic in STATISTICS for kind in KINDS),
    "pairs in the right order",
    *(f"{kind} logits" for kind in KINDS),  # their numbers, of those that are finite
    "pairs",
)
NAMES = (
    *LOSSES,
    *LOGITS,
    *(f"images of {name}" for name in LOSSES),  # in passes that had it, and in which it was finite
    *(f"bad {name}" for name in LOSSES),  # passes in which it was not finite
    *(f"{what} {net}" for what in ("norm", "steps", "skipped") for net in NETS),
)


class TrainingStats:
    """Collects what D's and G's steps report between two ticks, on this rank's device.

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

    def add_d_pass(self, losses: dict[str, Tensor], real_logits: Tensor, fake_logits: Tensor) -> None:
        """Take one pass of a D step: its losses by log key, scalars, and its logits, [B] each; without gradients."""
        for name, value in losses.items():
            self._losses[name].append(value)
        self._logits.append((real_logits, fake_logits))
        if len(self._logits) >= COMPACT:
            self._compact()

    def add_g_pass(self, losses: dict[str, Tensor]) -> None:
        """Take one pass of a G step: its losses by log key, scalars without gradients."""
        for name, value in losses.items():
            self._losses[name].append(value)

    def add_update(self, net: str, norm: Tensor) -> None:
        """Take one optimizer step: the norm of all ranks' gradient. Where it is not finite, the step was skipped."""
        if self._world.is_main:
            self._norms[net].append(norm)

    def _compact(self) -> None:
        """Turn what was put down into sums over images."""
        if not self._logits:
            return
        num = len(self._logits[0][0])  # images of a pass, in D's and in G's steps
        losses, good, bad = self._totals(self._losses)
        both = torch.stack([torch.cat(logits).float() for logits in zip(*self._logits)])  # real and fake, [2, images]
        finite = both.isfinite()
        pairs, both = finite.all(0, keepdim=True), both.where(finite, 0)
        ordered = pairs & (both[:1] > both[1:])
        logits = torch.cat([x.double().sum(1) for x in (both, both.square(), both.sign(), ordered, finite, pairs)])
        self._sums += torch.cat([num * losses, logits, num * good, bad, *self._totals(self._norms)])
        self._clear()

    def _totals(self, put_down: dict[str, list[Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
        """Return each name's sum of finite values, their number, and the number of the others."""
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
        return dict(zip(NAMES, self._world.all_reduce_sum(self._sums.clone()).tolist()))

    def skipped(self) -> tuple[int, str]:
        """Return how many steps were skipped since the last flush, and why, in words; the same on every rank."""
        sums = self._of_all_ranks()
        steps = {net: int(sums[f"skipped {net}"]) for net in NETS}
        steps_text = " and ".join(f"{num} step(s) of {net}" for net, num in steps.items() if num)
        causes = ", ".join(f"{name} {int(sums[f'bad {name}'])} times" for name in LOSSES if sums[f"bad {name}"])
        return sum(steps.values()), f"{steps_text} not taken, since not finite: {causes or 'the gradient'}"

    def flush(self, penalties: Collection[str] = (), keep: bool = False) -> dict[str, float]:
        """Return means over the images of all ranks since the last flush, by log key; the same on every rank.

        Each term's mean is over the passes that had it, and a loss is the sum of its terms' means: so both mean the
        same whatever number of steps a line covers, where some terms are applied in every few steps only. A term that
        no pass had has no key.

        Args:
            penalties: Terms in use. Where no pass had one of them, the loss that has it is not known and has no key.
            keep: Whether the next flush covers these images once more.
        """
        sums = self._of_all_ranks()
        if not keep:
            self._sums.zero_()
        means = {name: sums[name] / images for name in LOSSES if (images := sums[f"images of {name}"])}
        row = {}
        for total, terms in TERMS.items():
            had = {name: means[name] for name in terms if name in means}
            if had and all(name in had or name not in terms for name in penalties):
                row[total] = sum(had.values())
            row |= had
        for kind in KINDS:
            mean, square, sign = (sums[f"{x} of {kind} logits"] / max(1, sums[f"{kind} logits"]) for x in STATISTICS)
            row[f"Logits/{kind}_mean"], row[f"Logits/sign_{kind}"] = mean, sign
            row[f"Logits/{kind}_std"] = math.sqrt(max(0.0, square - mean**2))
        row["Logits/real_minus_fake"] = row["Logits/real_mean"] - row["Logits/fake_mean"]
        row["Logits/D_accuracy"] = sums["pairs in the right order"] / max(1, sums["pairs"])
        row |= {f"Optim/grad_norm_{net}": sums[f"norm {net}"] / max(1, sums[f"steps {net}"]) for net in NETS}
        return row | {"Optim/skipped_steps": sum(sums[f"skipped {net}"] for net in NETS)}

    def state(self) -> list[list[float]]:
        """Return the sums of every rank, so that a run stopped between two ticks loses nothing of the next line."""
        self._compact()
        return self._world.all_gather_object(self._sums.tolist())

    def load_state(self, state: list[list[float]]) -> None:
        """Take up saved sums; on another number of ranks, rank 0 takes them all."""
        self._clear()
        sums = torch.tensor(state, dtype=torch.float64)
        if sums.shape[1] != len(NAMES):
            log.info("the checkpoint is of another version: the next line of metrics is of the steps from here on")
            sums = sums.new_zeros(len(sums), len(NAMES))
        if len(sums) != self._world.size:
            rest = sums.new_zeros(self._world.size - 1, len(NAMES))
            sums = torch.cat([sums.sum(0, keepdim=True), rest])
        self._sums.copy_(sums[self._world.rank])
