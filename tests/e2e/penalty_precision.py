"""The error of R1's and R2's gradient in bfloat16 and float32, against float64; docs/performance.md has its table.

Usage: PYTHONPATH=. python tests/e2e/penalty_precision.py [widths ...]: one R3GAN D of 32 px for each width, at the
start and after steps of D against fixed fakes, which wake the blocks that are zero at the start. Each line has the
error of the gradient of R1 + R2 and of the adversarial loss in all weights, as a share of its norm; `another batch` is
the same share for the gradient of other images, which is how much a step differs by what it happens to see.
"""

import copy
import sys

import torch
from torch import Tensor, nn

from distgan.losses.adversarial import LOSSES
from distgan.losses.gradient_penalty import squared_gradient
from distgan.models.r3gan import Discriminator
from distgan.training.discriminator import autocast

BATCH, SIDE, STEPS, GAMMA = 8, 32, 20, 0.2


def images(seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Smooth patterns for real images, and coarser ones for fakes."""
    draw = torch.Generator().manual_seed(seed)
    made = (
        nn.functional.interpolate(torch.randn(BATCH, 3, side, side, generator=draw), (SIDE, SIDE), mode="bilinear")
        for side in (16, 8)
    )
    real, fake = (x.tanh().to(dtype) for x in made)
    return real, fake


def gradients(D: nn.Module, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Of the penalties, and of the adversarial loss, in all weights."""
    full = torch.float64 if dtype is torch.float64 else torch.float32
    D = copy.deepcopy(D).to(full)
    pair = [x.requires_grad_() for x in images(seed, full)]
    with autocast(pair[0], dtype is torch.bfloat16):
        real, fake = (D(x) for x in pair)
    penalty = sum(GAMMA / 2 * squared_gradient(logits, x) for logits, x in zip((real, fake), pair))
    loss = LOSSES["rpgan"].d(real.to(full), fake.to(full))
    return flat(penalty, D), flat(loss, D)


def flat(loss: Tensor, D: nn.Module) -> Tensor:
    parts = torch.autograd.grad(loss, list(D.parameters()), retain_graph=True, allow_unused=True)
    return torch.cat([p.new_zeros(p.numel()) if g is None else g.flatten() for p, g in zip(D.parameters(), parts)])


def train(D: nn.Module) -> None:
    optimizer = torch.optim.Adam(D.parameters(), 2e-4, (0.0, 0.9))
    for step in range(STEPS):
        pair = [x.requires_grad_() for x in images(1000 + step, torch.float32)]
        logits = [D(x) for x in pair]
        penalty = sum(GAMMA / 2 * squared_gradient(out, x) for out, x in zip(logits, pair))
        (LOSSES["rpgan"].d(*logits) + penalty).backward()
        optimizer.step()
        optimizer.zero_grad()


def main(widths: list[int]) -> None:
    for width in widths:
        torch.manual_seed(0)
        D = Discriminator(SIDE, 0, [width], 1)
        for when in ("start", f"{STEPS} steps"):
            exact, other = gradients(D, 0, torch.float64), gradients(D, 1, torch.float64)
            errors = []
            for dtype in (torch.float32, torch.bfloat16):
                found = gradients(D, 0, dtype)
                errors += [f"{(a - b).norm() / b.norm():.1e}" for a, b in zip(found, exact)]
            noise = [f"{(a - b).norm() / b.norm():.2f}" for a, b in zip(other, exact)]
            print(
                f"width {width}, {when}: fp32 penalties {errors[0]}, adversarial {errors[1]}; bf16 penalties "
                f"{errors[2]}, adversarial {errors[3]}; another batch: penalties {noise[0]}, adversarial {noise[1]}",
                flush=True,
            )
            if when == "start":
                train(D)


if __name__ == "__main__":
    main([int(width) for width in sys.argv[1:]] or [32, 128])
