"""A grouped convolution whose gradients, and the gradients of these, are grouped convolutions.

PyTorch differentiates the gradients of its own convolution, as R1 and R2 do, with one convolution for each group: that
is hundreds of small kernels for a layer of R3GAN (torch 2.13). Here it is one. The idea of a convolution with gradients
of its own is from StyleGAN2's and StyleGAN3's code.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Gradients = tuple[Tensor | None, ...]


class Geometry(NamedTuple):
    """Stride, padding and dilation of a convolution in both directions, and its number of groups."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


class GroupedConv2d(nn.Conv2d):
    """`nn.Conv2d` with gradients that are cheap to differentiate, for more than one group.

    It has the same parameters and, up to the order of sums, the same numbers. Zeros are beyond the border.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        groups: int,
        padding: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=padding, groups=groups, bias=bias)
        self._geometry = Geometry(self.stride, (padding, padding), self.dilation, groups)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled() or torch.jit.is_tracing():  # a traced file has no use for gradients of ours
            return super().forward(x)
        return grouped_conv2d(x, self.weight, self.bias, self._geometry)


def grouped_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Convolve x [B, C, H, W] with the weight [O, C / groups, h, w] and add the bias [O], as `F.conv2d` does."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        # Autocast does not look into an autograd.Function, and gradients must have the type of what they are of.
        dtype = torch.get_autocast_dtype(kind)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    # Two nodes, since autograd asks a node for all of its gradients or for none. Where only the gradient of images is
    # wanted, as in a penalty, the first one is not run: x is hidden from it in a list, so that no path to x leads
    # through it.
    out = _GradientOfWeight.apply([x], weight, bias, geometry)
    return _GradientOfInput.apply(out, x, weight, geometry)


class _GradientOfWeight(torch.autograd.Function):
    """The convolution, with the gradients of its weight and its bias alone."""

    @staticmethod
    def forward(hidden: list[Tensor], weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        return F.conv2d(hidden[0], weight, bias, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[list[Tensor], Tensor, Tensor | None, Geometry], output: Tensor) -> None:
        (x,), weight, bias, ctx.geometry = inputs
        ctx.has_bias = bias is not None
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        x, weight = ctx.saved_tensors
        return None, *_WeightGradient.apply(gradient, x, weight, ctx.geometry, ctx.has_bias), None


class _GradientOfInput(torch.autograd.Function):
    """The identity of a convolution's output, with the gradient of the convolution's input."""

    @staticmethod
    def forward(out: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        return out.view_as(out)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Geometry], output: Tensor) -> None:
        _, x, weight, ctx.geometry = inputs
        ctx.shape = x.shape
        ctx.save_for_backward(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        (weight,) = ctx.saved_tensors
        return gradient, _input_gradient(gradient, weight, ctx.shape, ctx.geometry), None, None


class _WeightGradient(torch.autograd.Function):
    """The gradients of a convolution's weight and, where it has one, of its bias."""

    @staticmethod
    def forward(
        gradient: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, has_bias: bool
    ) -> tuple[Tensor, Tensor | None]:
        stride, padding, dilation, groups = geometry
        _, of_weight, of_bias = torch.ops.aten.convolution_backward(
            gradient,
            x,
            weight,
            [len(weight)],
            stride,
            padding,
            dilation,
            False,
            [0, 0],
            groups,
            [False, True, has_bias],
        )
        return of_weight, of_bias

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Geometry, bool], output: object) -> None:
        gradient, x, _, ctx.geometry, _ = inputs
        ctx.save_for_backward(gradient, x)

    @staticmethod
    def backward(ctx: Any, of_weight: Tensor, of_bias: Tensor | None) -> Gradients:
        gradient, x = ctx.saved_tensors
        of_gradient = F.conv2d(x, of_weight, of_bias, *ctx.geometry)
        return of_gradient, _input_gradient(gradient, of_weight, x.shape, ctx.geometry), None, None, None


def _input_gradient(gradient: Tensor, weight: Tensor, shape: torch.Size, geometry: Geometry) -> Tensor:
    """Return the gradient of a convolution's input of this shape: a transposed convolution."""
    stride, padding, dilation, groups = geometry
    sides = zip(shape[2:], gradient.shape[2:], weight.shape[2:], stride, padding, dilation)
    unseen = [side - ((out - 1) * s - 2 * p + d * (k - 1) + 1) for side, out, k, s, p, d in sides]  # at the far border
    return F.conv_transpose2d(gradient, weight, None, stride, padding, unseen, groups, dilation)
