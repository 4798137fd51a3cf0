"""The generator's moving average, with a half-life in images."""

import torch
from torch import nn


def decay(images: int, batch: int, half_life: float, ramp_up: float) -> float:
    """Return the share of the average that is kept after `batch` more images than the run's `images`.

    While the run is young the half-life is `ramp_up` of its length, so that the first weights are soon forgotten
    (Karras et al. 2019, StyleGAN2's training loop). A `ramp_up` of 0 switches that off.
    """
    if ramp_up > 0:
        half_life = min(half_life, images * ramp_up)
    return 0.5 ** (batch / half_life) if half_life > 0 else 0.0


@torch.no_grad()
def update(average: nn.Module, net: nn.Module, keep: float) -> None:
    """average <- keep * average + (1 - keep) * net, for the weights; every rank does the same, so none is sent."""
    torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1 - keep)


@torch.no_grad()
def copy_buffers(average: nn.Module, net: nn.Module) -> None:
    """Copy batch norm's running statistics, which are averages already."""
    for mean, buffer in zip(average.buffers(), net.buffers()):
        mean.copy_(buffer)


@torch.no_grad()
def distance(average: nn.Module, net: nn.Module) -> float:
    """Return the distance of the average's weights from the net's, as a share of the latter's norm."""
    ours: list[torch.Tensor] = list(average.parameters())
    theirs: list[torch.Tensor] = list(net.parameters())
    apart, size = (
        torch.stack(torch._foreach_norm(values)).norm() for values in (torch._foreach_sub(ours, theirs), theirs)
    )
    return float(apart / size.clamp_min(1e-30))
