"""`loss.penalty=finite`: differences are gradients on average, and nothing but the images differs in them."""

import functools
from pathlib import Path

import pytest
import torch
from runs import metrics, train, weights
from torch import Tensor, nn

from distgan.config.load import load
from distgan.errors import ConfigError
from distgan.image_spec import square
from distgan.models import MODELS
from distgan.models.epilogue import Epilogue
from distgan.training.discriminator import AugmentedDiscriminator
from distgan.training.objectives import DiscriminatorLoss
from distgan.training.step_inputs import MicroBatch, StepHyperparams, StepOptions

HP = StepHyperparams(r1=2.0, augment_p=0.7, instance_noise=0.1)
SIDE = 8


def images(num: int) -> Tensor:
    return torch.rand(num, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1


class Quadratic(nn.Module):
    """A D whose gradient is known: x^T A x / 2 + b x."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        num = 3 * SIDE * SIDE
        self.A = nn.Parameter(torch.randn(num, num, dtype=torch.float64) / num)
        self.b = nn.Parameter(torch.randn(num, dtype=torch.float64))

    def forward(self, x: Tensor, labels: Tensor | None = None, features: bool = False) -> Tensor:
        rows = x.flatten(1)
        return (rows @ self.A * rows).sum(1) / 2 + rows @ self.b


def term(D: nn.Module, sigma: float, batch: MicroBatch, hp: StepHyperparams, **how: object) -> tuple[Tensor, Tensor]:
    """R1's term of the loss, and its gradient by D's first weight."""
    behind = AugmentedDiscriminator(D, "diffaugment", finite_sigma=sigma, **how)
    options = StepOptions("hinge", square(SIDE), augment="diffaugment", finite_sigma=sigma)
    result = DiscriminatorLoss(behind, options)(batch, batch.real.clone(), hp)
    (gradient,) = torch.autograd.grad(result.loss, next(D.parameters()))
    return result.terms["Loss/r1"], gradient


def test_differences_are_the_gradient_on_average() -> None:
    """Augmented images too: the slope is that of D behind its augmentation."""
    D, few = Quadratic(), images(4)
    batch = MicroBatch(few[:, :1, 0, 0], None, torch.arange(4), few)
    exact, _ = term(D, 0.0, batch, HP)
    behind = AugmentedDiscriminator(D, "diffaugment", finite_sigma=1e-3)
    of_real, _ = behind.draw(few, batch, ("real", "fake"), HP)
    logits = behind.evaluate(few, batch, of_real, penalize=False).logits
    found = [behind._finite(few, batch, of_real._replace(tag=f"direction {i}"), logits).item() for i in range(1000)]
    mean, error = sum(found) / len(found), torch.tensor(found).std().item() / len(found) ** 0.5
    assert exact.item() / (HP.r1 / 2) == pytest.approx(mean, abs=5 * error)
    assert error < 0.05 * mean


def test_dropout_and_noise_do_not_enter_a_difference() -> None:
    """A D that is flat in its images has no penalty, whatever it drops."""
    torch.manual_seed(0)
    epilogue = functools.partial(Epilogue, dropout=0.5)
    D = (
        MODELS["dcgan"]
        .discriminator(square(SIDE), 0, base_channels=4, max_channels=8, norm="none", epilogue=epilogue)
        .double()
    )
    first = next(D.parameters())
    nn.init.zeros_(first)  # its features are then those of biases alone
    batch = MicroBatch(images(6)[:, :1, 0, 0], None, torch.arange(6), images(6))
    value, _ = term(D, 0.01, batch, HP)
    assert value == 0


def test_penalties_in_float32_of_networks_in_bfloat16() -> None:
    torch.manual_seed(0)
    D = MODELS["dcgan"].discriminator(square(SIDE), 0, base_channels=4, max_channels=8, norm="none")
    batch = MicroBatch(images(8)[:, :1, 0, 0].float(), None, torch.arange(8), images(8).float())
    plain, _ = term(D, 0.05, batch, HP)
    behind = AugmentedDiscriminator(D, "diffaugment", finite_sigma=0.05, bf16=True)
    options = StepOptions("hinge", square(SIDE), bf16=True, augment="diffaugment", finite_sigma=0.05)
    found = DiscriminatorLoss(behind, options)(batch, batch.real.clone(), HP).terms["Loss/r1"]
    assert found.item() == pytest.approx(plain.item(), rel=1e-4)


def test_a_run_trains_and_resumes_exactly(tmp_path: Path, config: Path) -> None:
    own = ["loss.penalty=finite", "augment={pipe: ada, p: 0.3}", "model.dropout=0.2", "sample.every=0"]
    assert train(config, tmp_path / "whole", *own, "train.images=48") == 0
    for num in ("24", "48"):
        assert train(config, tmp_path / "parts", *own, f"train.images={num}") == 0
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    assert metrics(tmp_path / "whole")[-1]["Loss/r1"] > 0


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["loss.gp=10", "loss.name=wasserstein"], "loss.penalty=finite is of r1 and r2, and loss.gp needs"),
        (["train.precision=bf16", "train.penalty_precision=bf16"], "differences that bf16 cannot tell apart"),
        (["loss.finite_sigma=0"], "loss.finite_sigma=0.0: must be from 0.0001 to 1"),
    ],
)
def test_what_does_not_go_with_differences(config: Path, settings: list[str], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(str(config), ["loss.penalty=finite", *settings])
    assert told in str(error.value)
