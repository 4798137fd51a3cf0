"""The hourglass GAN of "GANs Architecture in Detail (Part 3)", a Keras article, with or without classes.

G projects z straight to an image of H x W x C, takes that down to an eighth of the sides by strided convolutions and up
again by transposed ones; D halves the sides five times. With `norm="batch"`, 128 pixels, three channels and the default
widths these are the article's networks: Keras' "same" padding, batch norm and initial weights (D's, which it does not
state, are as G's). They differ from it in that D gives a logit, where the article has a sigmoid, and in what is
optional: classes, other sizes, channels and widths, and `norm="none"`. That leaves batch norm out, with biases in its
place and weights scaled so that signals neither grow nor fade: it treats each image by itself, so the update does not
depend on how a batch is spread over ranks.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distgan.condition_spec import VectorInput
from distgan.image_spec import ImageSpec, nearest, size_setting
from distgan.models.epilogue import Epilogue, MakeEpilogue
from distgan.models.label_embedding import label_embedding
from distgan.models.weight_init import init_normal

Layer = TypeVar("Layer", bound=nn.Conv2d | nn.ConvTranspose2d | nn.Linear)

KERNEL = 4
SLOPE = 0.3  # of leaky ReLU, Keras' default
ACTIVATED = (1 + SLOPE**2) / 2  # the factor by which leaky ReLU changes the second moment of a symmetric signal


class _Row(NamedTuple):
    """A row of the article's tables: a convolution and the layers that follow it."""

    transposed: bool
    channels: int  # in units of `base_channels`
    stride: int
    norm: bool
    activation: bool


_GENERATOR = (  # between the dense layer and the last one
    _Row(False, 1, 1, False, False),
    _Row(False, 1, 2, True, True),  # H / 2
    _Row(False, 2, 1, False, False),
    _Row(False, 2, 2, True, True),  # H / 4
    _Row(True, 4, 1, False, False),
    _Row(False, 4, 2, False, True),  # H / 8
    _Row(True, 4, 1, False, False),
    _Row(True, 4, 2, True, True),  # H / 4
    _Row(True, 2, 1, False, False),
    _Row(True, 2, 2, True, False),  # H / 2
    _Row(True, 1, 2, False, False),  # H
    _Row(True, 1, 1, True, False),
)
_DISCRIMINATOR = (
    _Row(False, 1, 2, True, True),
    _Row(False, 1, 2, True, True),
    _Row(False, 2, 2, True, True),
    _Row(False, 2, 2, True, True),
    _Row(False, 4, 2, False, True),  # H / 32
)


class Conv(nn.Conv2d):
    """Keras' Conv2D with kernel 4 and padding "same": [B, before, H, W] -> [B, after, H / stride, W / stride].

    H and W are even where the stride is 2. One pixel is padded on each side then; with stride 1 it is one before and
    two after.
    """

    def __init__(self, before: int, after: int, stride: int, bias: bool = False) -> None:
        super().__init__(before, after, KERNEL, stride, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)) if self.stride == (1, 1) else x)


class TransposedConv(nn.ConvTranspose2d):
    """Keras' Conv2DTranspose, the adjoint of `Conv`: [B, before, H, W] -> [B, after, stride H, stride W].

    With stride 1, the two pixels that `Conv` pads after the last one are cut off: torch's padding cuts one of them.
    """

    def __init__(self, before: int, after: int, stride: int, bias: bool = False) -> None:
        super().__init__(before, after, KERNEL, stride, padding=1, bias=bias)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        x = super().forward(input, output_size)
        return x[:, :, :-1, :-1] if self.stride == (1, 1) else x


class Generator(nn.Module):
    """Map z [B, z_dim] (and labels [B]) to images [B, C, H, W] in -1..1.

    Args:
        image: Channels and size of the images; H and W are multiples of 8.
        num_classes: 0 for an unconditional generator; else an embedding of the label, which is a class number or a
            vector [V] of conditions, is appended to z.
        base_channels: Channels at the widest sides; twice and four times as many further in.
        embed_dim: Length of the vector that a class label is mapped to.
        norm: "none" or "batch".

    Raises:
        ValueError: H or W is not a multiple of 8.
    """

    def __init__(
        self,
        image: ImageSpec,
        z_dim: int,
        num_classes: int | VectorInput,
        base_channels: int = 128,
        embed_dim: int = 64,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        _check(image, 8, "generator")
        self.shape = image.shape
        self.embed = label_embedding(num_classes, embed_dim)
        z_dim += embed_dim if num_classes else 0
        dense = nn.Linear(z_dim, math.prod(image.shape), bias=False)
        self.dense = _init_weights(dense, z_dim, norm, nn.init.xavier_uniform_)
        taps = _taps(image.height, image.height) * _taps(image.width, image.width)
        out = TransposedConv(base_channels, image.channels, stride=1, bias=True)
        _init_weights(out, base_channels * taps, norm, nn.init.xavier_uniform_)
        stages = _stages(_GENERATOR, image, base_channels, norm)
        self.layers = nn.Sequential(*stages, nn.Sequential(out, nn.Tanh()))

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.embed is not None:
            z = torch.cat([z, self.embed(labels)], dim=1)
        x = self.dense(z).unflatten(1, self.shape)
        return self.layers(x.permute(0, 3, 1, 2).contiguous())


class Discriminator(nn.Module):
    """Map images [B, C, H, W] (and labels [B]) to logits [B]; with `features`, also return each stage's output.

    With classes, the logit has a second term: the dot product of the image's features with an embedding of its label
    (projection, Miyato and Koyama 2018).

    Args:
        image: Channels and size of the images; H and W are multiples of 32.
        num_classes: 0 for an unconditional discriminator.
        base_channels: Channels of the first two stages; the next two have twice, the last four times as many.
        norm: "none" or "batch".
        epilogue: Makes the epilogue before the dense layer.

    Raises:
        ValueError: H or W is not a multiple of 32.
    """

    def __init__(
        self,
        image: ImageSpec,
        num_classes: int | VectorInput,
        base_channels: int = 128,
        norm: str = "batch",
        epilogue: MakeEpilogue = Epilogue,
    ) -> None:
        super().__init__()
        _check(image, 32, "discriminator")
        channels, grid = _DISCRIMINATOR[-1].channels * base_channels, (image.height // 32, image.width // 32)
        self.stages = nn.ModuleList(_stages(_DISCRIMINATOR, image, base_channels, norm))
        self.epilogue = epilogue(channels, grid)
        num = (channels + self.epilogue.extra) * math.prod(grid)
        self.head = _init_weights(nn.Linear(num, 1), num * ACTIVATED, norm, nn.init.xavier_uniform_)
        self.embed = label_embedding(num_classes, channels)
        if num_classes:
            self.pool = nn.Parameter(torch.randn(channels, *grid) / math.sqrt(math.prod(grid)))  # weights of pixels

    def forward(
        self, images: Tensor, labels: Tensor | None = None, features: bool = False
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        x, outputs = images, []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        logits = self.head(
            self.epilogue(x).permute(0, 2, 3, 1).flatten(1)
        ).flatten()  # Keras flattens in the order H, W, C
        if self.embed is not None:
            pooled = (x * self.pool).sum((2, 3))
            logits = logits + (pooled * self.embed(labels)).sum(1) / math.sqrt(x.shape[1])
        return (logits, outputs) if features else logits


def _stages(rows: tuple[_Row, ...], image: ImageSpec, base_channels: int, norm: str) -> list[nn.Sequential]:
    """Return the convolutions of a table; the first gets what is like images, with second moment one."""
    stages, before, moment = [], image.channels, 1.0
    size = image.height, image.width
    for row in rows:
        kind = TransposedConv if row.transposed else Conv
        conv = kind(before, row.channels * base_channels, row.stride, bias=row.norm and norm == "none")
        height, width = (side * row.stride if row.transposed else side // row.stride for side in size)
        taps = _taps(size[0], height) * _taps(size[1], width)
        _init_weights(conv, before * taps * moment, norm, _he_normal)
        layers: list[nn.Module] = [conv]
        if row.norm and norm == "batch":
            # Keras' momentum 0.99. Its moving variance averages the biased variances of batches, torch's the unbiased.
            layers.append(nn.BatchNorm2d(conv.out_channels, eps=1e-3, momentum=0.01))
        if row.activation:
            layers.append(nn.LeakyReLU(SLOPE))
        stages.append(nn.Sequential(*layers))
        before, size, moment = conv.out_channels, (height, width), ACTIVATED if row.activation else 1.0
    return stages


def _init_weights(layer: Layer, inputs: float, norm: str, keras: Callable[[Tensor], Tensor]) -> Layer:
    """Draw the article's weights under batch norm; else N(0, 1/inputs), which keeps the signal's second moment.

    `inputs` counts the inputs of one output, fewer where they come out of a leaky ReLU (He et al. 2015).
    """
    if norm == "none":
        return init_normal(layer, math.sqrt(1 / inputs))
    keras(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _he_normal(weight: Tensor) -> Tensor:
    """Draw Keras' HeNormal: N(0, 2 / fan_in) cut at two deviations and widened to make up for the cut.

    Keras takes the last but one axis of a kernel for the inputs, which in Conv2DTranspose's (H, W, out, in) holds the
    outputs. In torch's (out, in, H, W) and, transposed, (in, out, H, W), that is the second axis of both.
    """
    std = math.sqrt(2 / weight[0].numel()) / 0.87962566103423978
    return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def _taps(before: int, after: int) -> float:
    """Return the mean number of inputs of one output where a convolution maps a row of `before` pixels to `after`.

    This is less than 4 (or than 2, transposed with stride 2): outputs at the borders have fewer inputs, and at small
    sides most outputs are at the borders.
    """
    small, large = sorted((before, after))
    stride = large // small
    pairs = sum(0 <= stride * i + tap - 1 < large for i in range(small) for tap in range(KERNEL))
    return pairs / after


def _check(image: ImageSpec, multiple: int, network: str) -> None:
    def fits(height: int, width: int) -> bool:
        return height % multiple == 0 == width % multiple

    if not fits(image.height, image.width):
        sizes = " or ".join(size_setting(*size) for size in nearest(image.height, image.width, fits))
        raise ValueError(
            f"data.resolution={image.setting}: the hourglass {network} needs multiples of {multiple} pixels on both "
            f"sides, such as {sizes}"
        )
