"""Modules that draw numbers for each image of a pass: in training, the caller gives them the images' seeds.

Such a module has `seeds`, int64 [B] or None where nothing is drawn, and `tag`, the name of the pass: other names draw
other numbers. What is drawn is a function of both, so that ranks, passes and a resume do not change it.
"""

from collections.abc import Sequence

from torch import Tensor, nn


def drawing_modules(net: nn.Module) -> list[nn.Module]:
    """Return the modules of a network that draw."""
    return [module for module in net.modules() if hasattr(module, "seeds")]


def set_seeds(modules: Sequence[nn.Module], seeds: Tensor, tag: str) -> None:
    """Tell modules which images they are about to see."""
    for module in modules:
        module.seeds, module.tag = seeds, tag  # type: ignore[assignment]  # as `drawing_modules` found them
