"""Operators of torch that `train.deterministic=strict` refuses on a GPU, found on a CPU by the calls of what is run.

The list is that of the documentation of `torch.use_deterministic_algorithms` (2.13), by the names that ATen gives these
operators. `kthvalue` is not on that page, but its kernel refuses all the same.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

REFUSED = {
    "avg_pool3d_backward", "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward",
    "max_pool3d_with_indices_backward", "adaptive_max_pool2d_backward", "fractional_max_pool2d_backward",
    "fractional_max_pool3d_backward", "max_unpool2d", "max_unpool3d", "upsample_linear1d_backward",
    "upsample_bicubic2d_backward", "upsample_trilinear3d_backward", "_upsample_bicubic2d_aa_backward",
    "_upsample_bilinear2d_aa_backward", "reflection_pad1d_backward", "reflection_pad3d_backward",
    "replication_pad1d_backward", "replication_pad2d_backward", "replication_pad3d_backward", "nll_loss2d_forward",
    "_ctc_loss_backward", "put_", "histc", "kthvalue", "grid_sampler_2d_backward", "grid_sampler_3d_backward",
    "scatter_reduce",
}  # fmt: skip


def is_refused(func: torch._ops.OpOverload, args: tuple) -> bool:
    """Whether a call would end a run with `train.deterministic=strict`."""
    name, overload = func.overloadpacket.__name__, func._overloadname
    tensors = [x for x in tree_leaves(args) if isinstance(x, torch.Tensor)]
    return (
        name in REFUSED
        or (name == "median" and overload == "dim")  # which gives indices too
        or (name == "bincount" and len(tensors) > 1)  # with weights
        or (name == "cumsum" and tensors[0].is_floating_point())
    )


class Refused(TorchDispatchMode):
    """Collects the names of operators that would be refused."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if is_refused(func, args):
            self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))
