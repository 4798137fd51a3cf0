"""`train.penalty_precision`: what R1, R2 and GP are computed in, and how often D runs for them."""

import contextlib
import functools
from collections.abc import Iterator

import pytest
import torch
from ranks_gradients import SMALL
from runs import write_config
from torch import Tensor, nn

from distgan.config.load import load
from distgan.distributed.process_group import World
from distgan.errors import ConfigError
from distgan.image_spec import square
from distgan.losses.gradient_penalty import squared_gradient
from distgan.models import MODELS
from distgan.training import gan_step
from distgan.training.compilation import compiled
from distgan.training.discriminator import AugmentedDiscriminator
from distgan.training.gan_step import GanStep
from distgan.training.objectives import DiscriminatorLoss
from distgan.training.step_inputs import MicroBatch, StepBatch, StepHyperparams, StepOptions

HP = StepHyperparams(r1=1.0, r2=3.0, gp=10.0)
NAMES = ("Loss/r1", "Loss/r2", "Loss/gp")


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Real images, fakes and labels."""
    draw = torch.Generator().manual_seed(0)
    real, fake = torch.randn(2, 4, 3, 16, 16, generator=draw)
    return real, fake, torch.arange(4) % 3


def network(family: str) -> nn.Module:
    torch.manual_seed(0)
    D = MODELS[family].discriminator(square(16), 3, **SMALL[family][1])
    for name, weight in D.named_parameters():
        if "project" in name:  # R3GAN's, which are zero at the start
            nn.init.normal_(weight, std=0.2)
    return D


def penalties(D: nn.Module, bf16: bool, precision: str, compile: str = "off") -> dict[str, Tensor]:
    """The penalties' terms of the loss, and its gradients by the names of weights."""
    real, fake, labels = inputs()
    options = StepOptions("rpgan", bf16=bf16, penalty_precision=precision)

    on_cpu = functools.partial(compiled, device=torch.device("cpu"), backend="aot_eager")
    behind = AugmentedDiscriminator(D, bf16=bf16, bf16_penalties=precision == "bf16", compile=compile, compiled=on_cpu)
    batch = MicroBatch(torch.zeros(4, 1), labels, torch.arange(4), real)
    result = DiscriminatorLoss(behind, options)(batch, fake, HP)
    D.zero_grad()
    result.loss.backward()
    return {name: result.terms[name] for name in NAMES} | {n: p.grad for n, p in D.named_parameters()}


def close(found: dict[str, Tensor], expected: dict[str, Tensor], at_most: float) -> bool:
    norms = {name: expected[name].norm() for name in expected}
    return all((found[name] - expected[name]).norm() <= at_most * norm for name, norm in norms.items())


@pytest.mark.parametrize("family", ["dcgan", "r3gan", "resnet"])
def test_penalties_in_bf16_are_near_those_in_fp32(family: str) -> None:
    """bfloat16 has 8 bits: not equal, and a few percent apart."""
    D = network(family)
    full, usual, coarse = penalties(D, False, "fp32"), penalties(D, True, "fp32"), penalties(D, True, "bf16")
    for name in NAMES:
        value = full[name].item()
        assert usual[name].item() == pytest.approx(value, rel=1e-5), name  # the networks' precision has no part in it
        assert coarse[name].item() == pytest.approx(value, rel=0.1), name
        assert coarse[name].item() != value, name
    assert close(coarse, full, 0.3)


def test_in_bf16_they_are_of_d_s_own_evaluation() -> None:
    """D sees each batch once, where it sees them once more for penalties in fp32, and the points of GP once anyway."""
    D, sizes = network("r3gan"), []
    D.register_forward_hook(lambda *_: sizes.append(1))
    penalties(D, True, "bf16")
    assert len(sizes) == 3
    penalties(D, True, "fp32")
    assert len(sizes) == 3 + 5
    penalties(D, False, "tf32")
    assert len(sizes) == 3 + 5 + 3

    real, _, labels = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        logits = D(real.requires_grad_(), labels)
    assert penalties(D, True, "bf16")["Loss/r1"] == 0.5 * squared_gradient(logits, real)


@pytest.mark.slow
def test_compiled_penalties_in_bf16_are_the_eager_ones() -> None:
    D = network("r3gan")
    eager, traced = penalties(D, True, "bf16"), penalties(D, True, "bf16", compile="all")
    assert close(traced, eager, 0.1)


def test_tf32_is_allowed_in_steps_with_a_penalty(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = []

    @contextlib.contextmanager
    def allow(device: torch.device, now: bool) -> Iterator[None]:
        allowed.append(now)
        yield

    monkeypatch.setattr(gan_step, "allow_tf32", allow)
    family, (own_G, own_D) = MODELS["r3gan"], SMALL["r3gan"]
    G, D = family.generator(square(16), 4, 0, **own_G), family.discriminator(square(16), 0, **own_D)
    z = torch.zeros(4, 4)
    batch = StepBatch(torch.zeros(4, 16, 16, 3, dtype=torch.uint8), None, z, z, torch.arange(4))
    for precision in ("fp32", "tf32"):
        step = GanStep(World(), G, D, StepOptions("rpgan", penalty_precision=precision))
        for hp in (StepHyperparams(), StepHyperparams(r2=1.0), StepHyperparams(gp=1.0)):
            step.d_step(batch, torch.optim.SGD(D.parameters(), 0.0), hp)
    assert allowed == [False] * 4 + [True] * 2


def test_penalties_in_bf16_of_networks_in_fp32_are_refused(tmp_path) -> None:
    config = str(write_config(tmp_path / "tiny.yaml", tmp_path))
    says = r"train.precision is fp32: set train.precision=bf16, or train.penalty_precision to one of fp32, tf32"
    with pytest.raises(ConfigError, match=says):
        load(config, ["train.penalty_precision=bf16"])
    for precision, allowed in (("fp32", ("fp32", "tf32")), ("bf16", ("fp32", "tf32", "bf16"))):
        for penalty in allowed:
            load(config, [f"train.precision={precision}", f"train.penalty_precision={penalty}"])
