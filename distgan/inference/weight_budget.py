"""A limit on the weights of a network that is built from an untrusted description."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from distgan.errors import DataError

FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.randn, torch.rand)


@contextlib.contextmanager
def weight_budget(folder: Path, *weights: dict[str, Tensor]) -> Iterator[None]:
    """Limit the tensors that are made inside to about twice the weights that were read to fill them.

    The description of a network may be of any size, while its weights are as large as their file.

    Args:
        folder: Where the description was read, for messages.
        weights: Named tensors of each network that is built.

    Raises:
        DataError: The network has more weights, or cannot be built.
    """
    limit = 10**6 + 2 * sum(tensor.numel() for named in weights for tensor in named.values())
    try:
        with _CountValues(limit):
            yield
    except _TooManyError:
        raise DataError(f"{folder}: it describes a network of more weights than there are in it") from None
    except (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError) as error:
        raise DataError(f"{folder}: the network cannot be built as it is described there: {error}") from None


class _CountValues(TorchFunctionMode):
    """Raise _TooManyError before torch makes tensors of more than `limit` values in total."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._left = limit

    def __torch_function__(
        self, function: Callable, types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> object:
        if function in FACTORIES:
            size = (kwargs or {}).get("size", args[0] if args and isinstance(args[0], (tuple, list)) else args)
            self._left -= math.prod(size)
            if self._left < 0:
                raise _TooManyError
        return function(*args, **(kwargs or {}))


class _TooManyError(Exception):
    pass
