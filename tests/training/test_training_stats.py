"""Means of what the steps report: equal to those computed at once, however they are grouped or interrupted."""

import math

import pytest
import torch
from torch import Tensor

from distgan.distributed.process_group import World
from distgan.training import training_stats
from distgan.training.training_stats import TrainingStats


def reports(num: int, size: int = 4) -> list[tuple[dict[str, Tensor], Tensor, Tensor, Tensor]]:
    """D's losses, with R1 in every third step only; logits of real and fake images; G's loss."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for i in range(num):
        numbers = torch.randn(4, generator=generator)
        losses = {"Loss/D_adv": numbers[1]} | ({"Loss/r1": numbers[2]} if i % 3 == 0 else {})
        losses["Loss/D"] = sum(losses.values())
        real, fake = torch.randn(2, size, generator=generator) + torch.tensor([[1.0], [-0.5]])
        found.append((losses, real, fake, numbers[3]))
    return found


def put_down(into: TrainingStats, given: list[tuple[dict[str, Tensor], Tensor, Tensor, Tensor]]) -> None:
    for losses, real, fake, g in given:
        into.add_d_pass(losses, real, fake)
        into.add_g_pass({"Loss/G_adv": g, "Loss/G": g})


def test_means_are_those_of_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_stats, "COMPACT", 7)  # several times in between
    found, given = TrainingStats(World()), reports(30)
    put_down(found, given)
    row = found.flush()
    real, fake = torch.cat([g[1] for g in given]).double(), torch.cat([g[2] for g in given]).double()
    d_adv = sum(g[0]["Loss/D_adv"].item() for g in given) / 30
    r1 = sum(g[0]["Loss/r1"].item() for g in given if "Loss/r1" in g[0]) / 10  # over the steps that had it
    expected = {
        "Loss/D_adv": d_adv,
        "Loss/r1": r1,
        "Loss/D": d_adv + r1,
        "Loss/G": sum(g[3].item() for g in given) / 30,
        "Logits/real_mean": real.mean().item(),
        "Logits/fake_std": fake.std(correction=0).item(),
        "Logits/sign_real": real.sign().mean().item(),
        "Logits/real_minus_fake": (real.mean() - fake.mean()).item(),
        "Logits/D_accuracy": (real > fake).double().mean().item(),
    }
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    assert not {"Loss/r2", "Loss/gp", "Loss/fm", "Loss/pixel"} & row.keys()  # which no step had
    assert not [name for name in found.flush() if name.startswith("Loss/")]  # nothing is left over


def test_a_line_means_the_same_whatever_number_of_steps_it_covers() -> None:
    """A penalty in every third step, constant: a line shows it and D's loss as they are, or not at all."""
    one = torch.tensor(1.0)
    for first in range(3):
        for num in range(1, 8):
            found = TrainingStats(World())
            for i in range(first, first + num):
                losses = {"Loss/D_adv": one} | ({"Loss/r1": 2 * one} if i % 3 == 0 else {})
                found.add_d_pass(losses | {"Loss/D": sum(losses.values())}, torch.ones(4), torch.zeros(4))
            row = found.flush({"Loss/r1"}, keep=True)
            has_penalty = any(i % 3 == 0 for i in range(first, first + num))
            told = {name: value for name, value in row.items() if name.startswith("Loss/")}
            assert told == {"Loss/D_adv": 1} | ({"Loss/D": 3, "Loss/r1": 2} if has_penalty else {})
            assert found.flush({"Loss/r1"}) == row  # it was kept


def test_sums_of_another_version_are_left_behind() -> None:
    found = TrainingStats(World())
    put_down(found, reports(3))
    found.load_state([[1.0, 2.0]])
    put_down(found, reports(5))
    again = TrainingStats(World())
    put_down(again, reports(5))
    assert found.flush() == again.flush()


def test_a_stop_in_between_changes_no_bit() -> None:
    given = reports(40)
    whole, before, after = TrainingStats(World()), TrainingStats(World()), TrainingStats(World())
    put_down(whole, given)
    put_down(before, given[:13])
    after.load_state(before.state())
    put_down(after, given[13:])
    assert after.flush() == whole.flush()


def test_what_is_not_finite_is_counted_and_left_out_of_the_means() -> None:
    found, nan = TrainingStats(World()), torch.tensor(float("nan"))
    bad = {"Loss/D_adv": nan, "Loss/D": nan, "Loss/r1": nan}
    found.add_d_pass(bad, torch.ones(2), torch.full((2,), float("inf")))
    found.add_update("D", nan)
    good = {"Loss/D_adv": torch.tensor(2.0), "Loss/D": torch.tensor(3.0), "Loss/r1": torch.tensor(1.0)}
    found.add_d_pass(good, torch.ones(2), torch.full((2,), -1.0))
    found.add_update("D", torch.tensor(5.0))
    found.add_g_pass({"Loss/G_adv": torch.tensor(2.0), "Loss/G": torch.tensor(2.0)})
    found.add_update("G", torch.tensor(7.0))
    num, told = found.skipped()
    assert num == 1
    assert "1 step(s) of D" in told
    assert "Loss/D 1 times, Loss/D_adv 1 times, Loss/r1 1 times" in told
    row = found.flush()
    expected = {"Loss/D": 3, "Loss/r1": 1, "Loss/G": 2, "Optim/grad_norm_D": 5, "Optim/grad_norm_G": 7}
    expected |= {"Logits/real_mean": 1, "Logits/fake_mean": -1, "Logits/D_accuracy": 1}  # of those that are finite
    assert {name: row[name] for name in expected} == expected
    assert row["Optim/skipped_steps"] == 1
    assert all(math.isfinite(value) for value in row.values())
    assert found.skipped()[0] == 0
