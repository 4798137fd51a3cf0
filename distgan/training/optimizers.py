"""The optimizers: each in its fused form where there is one, which is several times faster, on the CPU too."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from distgan.config.schema import Optimizer
from distgan.training import parameter_groups

Groups = list[dict]  # of weights, as torch's optimizers take them


class OptimizerKind(NamedTuple):
    """An entry of `OPTIMIZERS`.

    Attributes:
        build: (groups of weights, the settings `optim.G` or `optim.D`) -> optimizer. Before each step, the `lr` of
            every group is set, and its `betas` if it has them. A checkpoint keeps the tensors of its state.
        options: Dataclass of its own settings, which `build` finds in `settings.options`; None without any.
    """

    build: Callable[[Groups, Optimizer], torch.optim.Optimizer]
    options: type | None = None


def _adam(groups: Groups, settings: Optimizer) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=settings.lr[0], betas=_betas(settings), eps=settings.eps, fused=True)


def _adamw(groups: Groups, settings: Optimizer) -> torch.optim.Optimizer:
    decay = settings.weight_decay
    return torch.optim.AdamW(
        groups, lr=settings.lr[0], betas=_betas(settings), eps=settings.eps, weight_decay=decay, fused=True
    )


def _sgd(groups: Groups, settings: Optimizer) -> torch.optim.Optimizer:
    momentum, _ = _betas(settings)
    optimizer = torch.optim.SGD(groups, lr=settings.lr[0], momentum=momentum, fused=True)
    if momentum:
        # The fused form makes these in its first step and fills them there, unless that step is skipped: then it would
        # continue from whatever was in memory. From zeros, the first step is the same.
        for weight in (weight for group in optimizer.param_groups for weight in group["params"]):
            if weight.requires_grad:
                optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    return optimizer


def _rmsprop(groups: Groups, settings: Optimizer) -> torch.optim.Optimizer:
    momentum, alpha = _betas(settings)
    return torch.optim.RMSprop(
        groups, lr=settings.lr[0], alpha=alpha, eps=settings.eps, momentum=momentum, foreach=True
    )


def _betas(settings: Optimizer) -> tuple[float, float]:
    beta1, beta2 = settings.betas
    return float(beta1), float(beta2)


OPTIMIZERS: dict[str, OptimizerKind] = {
    "adam": OptimizerKind(_adam),
    "adamw": OptimizerKind(_adamw),
    "sgd": OptimizerKind(_sgd),
    "rmsprop": OptimizerKind(_rmsprop),
}


def build_optimizer(settings: Optimizer, net: nn.Module, key: str = "optim") -> torch.optim.Optimizer:
    """Build the optimizer of a network.

    Args:
        key: The group of settings, for messages.
    """
    groups = parameter_groups.parameter_groups(settings, net, f"{key}.lr_factors")
    return OPTIMIZERS[settings.name].build(groups, settings)


def optimizer_slots(settings: Optimizer, net: nn.Module) -> set[str]:
    """Return the names of what such an optimizer keeps for the weights of a network, once it has made a step.

    A step with one small weight of each number of dimensions in the network tells.
    """
    weights = [nn.Parameter(torch.ones([2] * ndim)) for ndim in sorted({weight.ndim for weight in net.parameters()})]
    optimizer = OPTIMIZERS[settings.name].build([{"params": weights}], settings)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    return {slot for slots in optimizer.state_dict()["state"].values() for slot in slots}
