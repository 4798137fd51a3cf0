"""Double backward through a network against finite differences. For the tests of networks."""

import pytest
import torch
from torch import Tensor, nn

from distgan.losses.gradient_penalty import squared_gradient


def check_r1(D: nn.Module, num_classes: int, resolution: int) -> None:
    """The gradient of R1 in every weight of a float64 network, along one random direction each."""
    labels = torch.tensor([0, num_classes - 1])
    images = torch.randn(2, 3, resolution, resolution, dtype=torch.float64)

    def penalty() -> Tensor:
        x = images.clone().requires_grad_()
        return squared_gradient(D(x, labels), x)

    penalty().backward()
    generator = torch.Generator().manual_seed(1)
    for name, p in D.named_parameters():
        direction = torch.randn(p.shape, dtype=torch.float64, generator=generator)
        values = []
        for step in (1e-6, -2e-6):
            with torch.no_grad():
                p += step * direction
            values.append(penalty().item())
        with torch.no_grad():
            p += 1e-6 * direction
        slope = (values[0] - values[1]) / 2e-6
        # A bias behind the last nonlinearity has no part in the gradient by the image.
        found = 0 if p.grad is None else (p.grad * direction).sum().item()
        assert found == pytest.approx(slope, rel=1e-4, abs=1e-6), name
