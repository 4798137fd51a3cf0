"""Count what a loop sends to other ranks, for `distgan bench`."""

from collections.abc import Callable

from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def bytes_reduced(function: Callable[[], None]) -> int:
    """Return the bytes that this rank gives into all-reduces while the function runs.

    So it counts DDP's own, with or without a communication hook, whichever thread of autograd they come from, and
    everything else that the function does.
    """
    with _Counting() as counted:
        function()
    return counted.num_bytes


class _Counting(TorchDispatchMode):
    """Looks at each operation of this thread, and of the backwards that it starts."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(
        self, operation: OpOverload, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        if operation.namespace == "c10d" and operation.__name__.startswith("allreduce_"):
            self.num_bytes += sum(x.nbytes for x in tree_leaves(args) if isinstance(x, Tensor))
        return operation(*args, **kwargs or {})
