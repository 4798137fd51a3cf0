"""Schedules and controllers: what they say, when they act, and that a stop or other ranks change nothing."""

import json

import pytest
import torch

from distgan.config.schema import Augment, Config, Ema, Loss, Optim, Optimizer, Train
from distgan.config.schema import Balance as Settings
from distgan.distributed.process_group import World
from distgan.training.controllers import Balance
from distgan.training.schedulers import Schedulers


def controls(**groups: object) -> Schedulers:
    return Schedulers(Config(**groups), World())


def test_strengths_follow_their_schedules() -> None:
    train = Train(batch=10, schedule_images=1000, schedule_shape="linear")
    found = controls(
        train=train, loss=Loss(r1=[4.0, 2.0], penalty_interval=2), augment=Augment(instance_noise=[0.5, 0.0])
    )
    assert found.step_hyperparams(0).r1 == 8  # lazy: half as often, twice as much
    assert found.step_hyperparams(10).r1 == 0
    assert found.step_hyperparams(500).r1 == pytest.approx(6)
    assert [found.step_hyperparams(i).instance_noise for i in (0, 500, 1000, 9000)] == pytest.approx([0.5, 0.25, 0, 0])
    assert found.step_hyperparams(0).augment_p == 0  # no augmentation


def test_rates_follow_their_schedules() -> None:
    optim = Optim(
        D=Optimizer(lr=[1.0, 0.5], betas=(0.0, 0.9), beta2=[0.9, 0.99]), G=Optimizer(betas=(0.5, 0.9)), warmup=100
    )
    found = controls(train=Train(schedule_images=1000, schedule_shape="linear"), optim=optim)
    assert found.lr_and_betas("D", 50).lr == pytest.approx(0.5 * 0.975)
    assert found.lr_and_betas("D", 1000).lr == 0.5
    assert found.lr_and_betas("D", 500).betas == (0.0, pytest.approx(0.945))
    assert found.lr_and_betas("G", 500).betas == (0.5, 0.9)


def test_the_half_life_of_the_average_follows_its_schedule() -> None:
    """As R3GAN's recipe has it: with no ramp beside the schedule, and no average at all at the start."""
    found = controls(train=Train(schedule_images=1000), ema=Ema(half_life=[0.0, 400.0], ramp_up=0))
    assert found.ema_decay(0, 8) == 0
    assert found.ema_decay(500, 8) == pytest.approx(0.5 ** (8 / 200))
    assert found.ema_decay(2000, 8) == pytest.approx(0.5 ** (8 / 400))
    found = controls(ema=Ema(half_life=[400.0], ramp_up=0.05))
    assert found.ema_decay(2000, 8) == pytest.approx(0.5 ** (8 / 100))


def logits(right: int, num: int = 100) -> tuple[torch.Tensor, torch.Tensor]:
    """Of `num` pairs of which so many are in the right order, with a real logit above zero."""
    real = torch.ones(num)
    real[right:] = -1
    return real, torch.zeros(num)


@pytest.mark.parametrize("adapt", ["d_lr", "d_steps", "augment"])
def test_a_d_that_is_too_strong_is_weakened_step_by_step(adapt: str) -> None:
    settings = Settings(adapt=adapt, low=0.6, high=0.8, max_factor=16, step=0.25, every=200)
    augment = Augment(pipe="ada", p_max=0.8)
    found = controls(balance=settings, augment=augment, train=Train(n_critic=8))
    seen = []
    for number, right in enumerate([90, 90, 90, 90, 70, 70, 90, 90, 50, 50, 50, 50]):
        found.observe(*logits(right))
        found.update(number * 100, (number + 1) * 100)
        values = {"d_lr": found.lr_and_betas("D", 0).lr, "d_steps": found.num_d_steps(), "augment": found.augment_p(0)}
        seen.append(values[adapt])
    assert seen[::2] != seen[1::2]  # it acts at every second one only
    levels = [0, 0.25, 0.25, 0.5, 0.5, 0.5, 0.5, 0.75, 0.75, 0.5, 0.5, 0.25]
    expected = {
        "d_lr": [2e-4 * 16**-level for level in levels],
        "d_steps": [max(1, round(8 * 16**-level)) for level in levels],
        "augment": [0.8 * level for level in levels],
    }
    assert seen == pytest.approx(expected[adapt])


def test_levels_stay_within_bounds() -> None:
    balance = Balance(0.4, 0.6, max_factor=4, step=0.3)
    for value, levels in ((1.0, [0.3, 0.6, 0.9, 1.0, 1.0]), (0.0, [0.7, 0.4, 0.1, 0.0, 0.0])):
        for level in levels:
            balance.update(value)
            assert balance.level == pytest.approx(level)
    balance.update(0.5)
    assert balance.level == 0


@pytest.mark.parametrize(
    "groups",
    [
        {"augment": Augment(pipe="ada", target=0.6, speed=2000, interval=300)},
        {"balance": Settings(adapt="d_lr", every=300, step=0.1)},
    ],
)
def test_a_stop_in_between_changes_nothing(groups: dict) -> None:
    whole, broken = controls(**groups), controls(**groups)
    for number in range(12):
        for one in (whole, broken):
            one.observe(*logits(95))
            one.update(number * 100, (number + 1) * 100)
        if number % 5 == 3:
            state = json.loads(json.dumps(broken.state()))  # as a checkpoint keeps it
            broken = controls(**groups)
            broken.load_state(state)
    assert broken.row(1200) == whole.row(1200)
    assert broken.state() == whole.state()
    assert (whole.augment_p(1200) or whole.lr_and_betas("D", 1200).lr) not in (0, 2e-4)  # it did act


def test_controllers_that_were_not_there_begin_anew() -> None:
    found = controls(balance=Settings(adapt="d_lr"))
    found.load_state(controls().state())
    assert found.lr_and_betas("D", 0).lr == 2e-4
