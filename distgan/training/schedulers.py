"""Schedules and controllers: learning rates, penalty weights, D steps per G step, as functions of the images seen."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distgan.config.schema import Config, Optimizer
from distgan.distributed.process_group import World
from distgan.losses.gradient_penalty import is_due
from distgan.storage.saved_state import Controls
from distgan.training import ema
from distgan.training.controllers import Ada, Balance
from distgan.training.step_inputs import StepHyperparams

PENALTIES = ("r1", "r2", "gp")  # keys of the config's loss


@dataclass(frozen=True)
class OptimizerRates:
    """Learning rate and betas of one optimizer at one image count."""

    lr: float
    betas: tuple[float, float]


class Schedulers:
    """All values that change during a run: functions of the images seen, and of D's logits so far.

    Controllers read signs of D's logits every `augment.interval` and `balance.every` images, as sums over all ranks,
    which are whole numbers. So they do the same on any number of ranks, and after a stop.
    """

    def __init__(self, config: Config, world: World) -> None:
        self._config, self._world = config, world
        augment, balance = config.augment, config.balance
        self._ada = Ada(augment.target, augment.speed, augment.p_max) if augment.target else None
        self._balance = Balance(balance.low, balance.high, balance.max_factor, balance.step) if balance.adapt else None
        # Since the last update of a controller: images, the sum of D's signs on real ones, pairs in the right order.
        self._sign_sums = {name: torch.zeros(3, dtype=torch.float64, device=world.device) for name in self._intervals()}

    def _intervals(self) -> dict[str, int]:
        """Return the intervals of the controllers in use, in images."""
        intervals = {"augment": self._config.augment.interval} if self._ada else {}
        return intervals | ({"balance": self._config.balance.every} if self._balance else {})

    @property
    def _balance_level(self) -> float:
        """Return how far D is held back, 0..1."""
        return self._balance.level if self._balance else 0.0

    def num_d_steps(self) -> int:
        """Return the number of D steps before the next G step."""
        steps = self._config.train.n_critic
        if self._config.balance.adapt == "d_steps":
            steps = max(1, round(steps * self._config.balance.max_factor**-self._balance_level))
        return steps

    def step_hyperparams(self, images: int) -> StepHyperparams:
        """Return the hyperparameters of the step that starts at `images`."""
        loss, augment = self._config.loss, self._config.augment
        due = is_due(images, self._config.train.batch, loss.penalty_interval)
        r1, r2, gp = (self._at(images, getattr(loss, x)) * loss.penalty_interval if due else 0.0 for x in PENALTIES)
        noise = self._at(images, augment.instance_noise)
        every = loss.path_length_interval
        is_due_for_G = is_due(images, self._config.train.batch * self._config.train.n_critic, every)
        return StepHyperparams(
            r1,
            r2,
            gp,
            noise,
            self.augment_p(images),
            loss.penalty_interval,
            loss.path_length * every if is_due_for_G else 0.0,
            every,
        )

    def penalties(self, images: int) -> set[str]:
        """Return log keys of the penalties that are in use."""
        used = {f"Loss/{name}" for name in PENALTIES if self._at(images, getattr(self._config.loss, name)) > 0}
        return used | ({"Loss/path"} if self._config.loss.path_length else set())

    def augment_p(self, images: int) -> float:
        """Return the probability of each augmentation."""
        augment = self._config.augment
        if augment.pipe == "none":
            return 0.0
        if self._config.balance.adapt == "augment":
            return augment.p_max * self._balance_level
        return self._ada.p if self._ada else self._at(images, augment.p)

    def lr_and_betas(self, net: str, images: int) -> OptimizerRates:
        settings: Optimizer = getattr(self._config.optim, net)
        lr = self._at(images, settings.lr) * warm_up(images, self._config.optim.warmup)
        if net == "D" and self._config.balance.adapt == "d_lr":
            lr *= self._config.balance.max_factor**-self._balance_level
        return OptimizerRates(
            lr, (settings.betas[0], self._at(images, settings.beta2) if settings.beta2 else settings.betas[1])
        )

    def ema_decay(self, images: int, step_images: int) -> float:
        """Return the average's decay for the iteration that begins at `images` and takes `step_images` of them."""
        half_life = self._at(images, self._config.ema.half_life)
        return ema.decay(images, step_images, half_life, self._config.ema.ramp_up)

    def _at(self, images: int, ends: list[float]) -> float:
        return value_at(images, ends, self._config.train.schedule_images, self._config.train.schedule_shape)

    def observe(self, real_logits: Tensor, fake_logits: Tensor) -> None:
        """Count the logits of one pass of a D step, [B] each. Nothing waits for the device."""
        if self._sign_sums:
            counts = torch.stack([(real_logits > fake_logits).double().sum(), real_logits.sign().double().sum()])
            seen = torch.cat(
                [counts.new_full((1,), len(real_logits)), counts.flip(0)]
            )  # no copy of a number from the host
            for sums in self._sign_sums.values():
                sums += seen

    def update(self, before: int, images: int) -> None:
        """Update the controllers that are due, after a D step that brought the run from `before` to `images`."""
        for name, every in self._intervals().items():
            if images // every > before // every:
                seen, signs, right = self._world.all_reduce_sum(self._sign_sums[name].clone()).tolist()
                self._sign_sums[name].zero_()
                if seen and name == "augment" and self._ada:
                    self._ada.update(signs / seen, int(seen))
                elif seen and name == "balance" and self._balance:
                    self._balance.update(right / seen if self._config.balance.signal == "acc" else signs / seen)

    def row(self, images: int) -> dict[str, float]:
        """Return the values for a line of metrics, by log key."""
        g, d = self.lr_and_betas("G", images), self.lr_and_betas("D", images)
        row = {"Optim/lr_G": g.lr, "Optim/lr_D": d.lr}
        if self._config.augment.pipe != "none":
            row["Augment/p"] = self.augment_p(images)
        if self._balance:
            row |= {"Balance/level": self._balance.level, "Balance/d_steps": self.num_d_steps()}
        return row

    def state(self) -> dict:
        """Return what a checkpoint keeps; called by all ranks."""
        sign_sums = {name: self._world.all_reduce_sum(sums.clone()).tolist() for name, sums in self._sign_sums.items()}
        controllers = {"augment": self._ada, "balance": self._balance}
        return {"verdicts": sign_sums} | {name: one.state() for name, one in controllers.items() if one}

    def load_state(self, state: Controls) -> None:
        """Undo `state`, on any number of ranks; controllers that were not there start from zero."""
        if self._ada and "augment" in state:
            self._ada.load_state(state["augment"])
        if self._balance and "balance" in state:
            self._balance.load_state(state["balance"])
        for name, kept in self._sign_sums.items():
            if name in state:
                sums = torch.tensor(state["verdicts"][name], dtype=torch.float64)
                kept.copy_(sums if self._world.is_main else torch.zeros_like(sums))


# Share of the images that are done, 0..1 -> share of the way from the first value to the last, 0 at 0 and 1 at 1.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: (1 - math.cos(math.pi * done)) / 2,
    "linear": lambda done: done,
}


def value_at(images: int, ends: Sequence[float], ramp: int, shape: str) -> float:
    """Interpolate from the first of `ends` at the start to the last after `ramp` images; one end is a constant.

    Args:
        shape: A key of `SCHEDULES`.
    """
    first, last = ends[0], ends[-1]
    if first == last or images >= ramp:
        return last
    done = images / ramp
    return first + (last - first) * SCHEDULES[shape](done)


def warm_up(images: int, duration: int) -> float:
    """Return a factor that rises from 0 to 1 over the first `duration` images."""
    return min(1.0, images / duration) if duration else 1.0
