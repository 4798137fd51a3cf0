"""The grouped convolution against PyTorch's own, in values, gradients and gradients of gradients, and what it runs."""

import itertools
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from distgan.models.grouped_conv import Geometry, GroupedConv2d, grouped_conv2d
from distgan.training.compilation import compiled

# Strides, paddings, dilations and groups; sides of 6 and 7 leave pixels that a stride does not reach.
GEOMETRIES = [
    Geometry((1, 1), (1, 1), (1, 1), 2),
    Geometry((2, 2), (1, 0), (1, 1), 3),
    Geometry((1, 2), (2, 1), (2, 1), 4),
    Geometry((2, 2), (0, 0), (1, 1), 2),
]


def drawn(geometry: Geometry, bias: bool) -> list[Tensor]:
    """Images, a weight and perhaps a bias, in float64."""
    draw = torch.Generator().manual_seed(0)
    shapes = [(2, 2 * geometry.groups, 6, 7), (3 * geometry.groups, 2, 3, 2), *[(3 * geometry.groups,)] * bias]
    return [torch.randn(s, dtype=torch.float64, generator=draw).requires_grad_() for s in shapes]


def ours(geometry: Geometry, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return grouped_conv2d(x, weight, bias, geometry)


def torchs(geometry: Geometry, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.conv2d(x, weight, bias, *geometry)


def orders(convolve, geometry: Geometry, inputs: list[Tensor]) -> list[Tensor]:
    """The output, gradients in all inputs, and gradients of a sum of powers of these."""
    out = convolve(geometry, *inputs)
    ramp = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    first = torch.autograd.grad((out * ramp).sum() + out.pow(3).sum() / 3, inputs, create_graph=True)
    second = torch.autograd.grad(sum(g.pow(3).sum() for g in first), inputs)
    return [out, *first, *second]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_gradients_of_both_orders_are_torchs(geometry: Geometry, bias: bool) -> None:
    inputs = drawn(geometry, bias)
    for found, expected in zip(orders(ours, geometry, inputs), orders(torchs, geometry, inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12 * expected.abs().max().item())


@pytest.mark.parametrize("geometry", GEOMETRIES[:3])
def test_gradients_of_both_orders_are_those_of_finite_differences(geometry: Geometry) -> None:
    inputs = drawn(geometry, True)
    assert torch.autograd.gradcheck(lambda *x: ours(geometry, *x), inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *x: ours(geometry, *x), inputs, fast_mode=True)


@pytest.mark.parametrize("is_compiled", [False, True])
def test_functional_gradients_are_torchs(is_compiled: bool) -> None:
    """torch.func.grad within a gradient, which is how a compiled penalty is made."""
    geometry = GEOMETRIES[0]
    x, weight, bias = (tensor.detach() for tensor in drawn(geometry, True))
    weight.requires_grad_()

    def penalty(x: Tensor, convolve) -> Tensor:
        return torch.func.grad(lambda x: convolve(geometry, x, weight, bias).pow(3).sum())(x).square().sum()

    expected = torch.autograd.grad(penalty(x, torchs), weight)[0]
    traced = compiled(penalty, torch.device("cpu"), backend="aot_eager") if is_compiled else penalty
    found = torch.autograd.grad(traced(x, ours), weight)[0]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12 * expected.abs().max().item())


class Convolutions(TorchDispatchMode):
    """Counts convolutions and their gradients, as kernels are started."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "convolution" in (name := func.overloadpacket.__name__):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


def test_an_r1_penalty_takes_as_many_convolutions_with_any_number_of_groups() -> None:
    num = set()
    for groups in (2, 16):
        conv = GroupedConv2d(32, 32, 3, groups, padding=1)
        x = torch.randn(2, 32, 4, 4, requires_grad=True)
        with Convolutions() as count:
            out = conv(x)
            (gradient,) = torch.autograd.grad(out.pow(2).sum(), x, create_graph=True)
            assert count.found == {"convolution": 2}  # itself, and the gradient of its input; none of its weight
            (out.sum() + gradient.pow(2).sum()).backward()
        num.add(count.found.total())
    assert len(num) == 1


@pytest.mark.parametrize("autocast, bias", list(itertools.product([False, True], repeat=2)))
def test_the_layer_is_torchs_layer(autocast: bool, bias: bool) -> None:
    """The same parameters, types and numbers, in bfloat16 under autocast."""
    torch.manual_seed(0)
    layer, usual = GroupedConv2d(8, 16, 3, 4, padding=1, bias=bias), torch.nn.Conv2d(8, 16, 3, 1, 1, 1, 4, bias)
    usual.load_state_dict(layer.state_dict())
    x, told = torch.randn(2, 8, 5, 5), []
    for net in (layer, usual):
        images = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = net(images)
        out.float().square().sum().backward()
        told.append([out, images.grad, *(p.grad for p in net.parameters())])
    for found, expected in zip(*told, strict=True):
        assert found.dtype == expected.dtype
        # A gradient in bfloat16 is rounded once, maybe to another side.
        torch.testing.assert_close(found, expected, rtol=2**-7 if autocast else 1e-5, atol=0.05 if autocast else 1e-5)
    with torch.no_grad():
        assert torch.equal(layer(x), usual(x))


def test_the_layout_of_images_is_kept() -> None:
    conv = GroupedConv2d(8, 8, 3, 4, padding=1).to(memory_format=torch.channels_last)
    x = torch.randn(2, 8, 6, 6).to(memory_format=torch.channels_last).requires_grad_()
    out = conv(x)
    (gradient,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    for tensor in (out, gradient):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
