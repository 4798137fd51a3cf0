"""DCGAN (Radford et al. 2016) for images of any channels and of k x 2^n pixels, with or without classes.

This is the family to copy. G projects z to the start grid, which is 4 x 4 where sides are powers of two, and doubles
the sides with transposed convolutions; D halves them with strided ones. The number of channels halves as they double.
With `norm="batch"` this is the paper's network, with `norm="none"` the same one without batch norm, with weights scaled
so that signals neither grow nor fade: it treats each image by itself, so the update does not depend on how a batch is
spread over ranks.
"""

import itertools
import math

import torch
from torch import Tensor, nn

from distgan.condition_spec import VectorInput
from distgan.image_spec import ImageSpec, check_size
from distgan.models.epilogue import Epilogue, MakeEpilogue
from distgan.models.label_embedding import label_embedding
from distgan.models.weight_init import init_normal


class Generator(nn.Module):
    """Map z [B, z_dim] (and labels [B]) to images [B, C, H, W] in -1..1.

    Args:
        image: Channels and size of the images.
        num_classes: 0 for an unconditional generator; else an embedding of the label, which is a class number or a
            vector [V] of conditions, is appended to z.
        base_channels: Channels of the last hidden stage, at half the resolution.
        max_channels: Upper bound on the channels of the other stages.
        norm: "none" or "batch".
        embed_dim: Length of the vector that a class label is mapped to.
    """

    def __init__(
        self,
        image: ImageSpec,
        z_dim: int,
        num_classes: int | VectorInput,
        base_channels: int,
        max_channels: int,
        norm: str,
        embed_dim: int,
    ) -> None:
        super().__init__()
        check_size("dcgan", image)
        self.embed = label_embedding(num_classes, embed_dim)
        channels = _channels(image, base_channels, max_channels)[::-1]
        z_dim += embed_dim if num_classes else 0
        grid = nn.ConvTranspose2d(z_dim, channels[0], image.start_grid, bias=norm == "none")
        layers = [_stage(grid, z_dim, norm, nn.ReLU())]
        for before, after in itertools.pairwise(channels):
            up = nn.ConvTranspose2d(before, after, 4, 2, 1, bias=norm == "none")
            layers.append(_stage(up, 4 * before / 2, norm, nn.ReLU()))
        out = nn.ConvTranspose2d(channels[-1], image.channels, 4, 2, 1)
        layers.append(nn.Sequential(init_normal(out, _std(4 * channels[-1], norm)), nn.Tanh()))
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.embed is not None:
            z = torch.cat([z, self.embed(labels)], dim=1)
        return self.layers(z[:, :, None, None])


class Discriminator(nn.Module):
    """Map images [B, C, H, W] (and labels [B]) to logits [B]; with `features`, also return the output of each stage.

    With classes, the logit has a second term: the dot product of the image's features with an embedding of its label
    (projection, Miyato and Koyama 2018). Args as for `Generator`; `epilogue` makes the epilogue before the head.
    """

    def __init__(
        self,
        image: ImageSpec,
        num_classes: int | VectorInput,
        base_channels: int,
        max_channels: int,
        norm: str,
        epilogue: MakeEpilogue = Epilogue,
    ) -> None:
        super().__init__()
        check_size("dcgan", image)
        channels = [image.channels, *_channels(image, base_channels, max_channels)]
        self.stages = nn.ModuleList()
        for i, (before, after) in enumerate(itertools.pairwise(channels)):
            bare = i == 0 or norm == "none"  # the paper leaves the first stage without batch norm
            down = nn.Conv2d(before, after, 4, 2, 1, bias=bare)
            self.stages.append(_stage(down, 16 * before / (1 if i == 0 else 2), norm, nn.LeakyReLU(0.2), bare))
        self.epilogue = epilogue(channels[-1], image.start_grid)
        num = math.prod(image.start_grid)
        into_head = channels[-1] + self.epilogue.extra
        self.head = init_normal(nn.Conv2d(into_head, 1, image.start_grid), _std(num * into_head, norm))
        self.embed = label_embedding(num_classes, channels[-1])
        if num_classes:
            self.pool = nn.Parameter(torch.randn(channels[-1], *image.start_grid) / math.sqrt(num))  # weights of pixels

    def forward(
        self, images: Tensor, labels: Tensor | None = None, features: bool = False
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        x, outputs = images, []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        logits = self.head(self.epilogue(x)).flatten()
        if self.embed is not None:
            pooled = (x * self.pool).sum((2, 3))
            logits = logits + (pooled * self.embed(labels)).sum(1) / math.sqrt(x.shape[1])
        return (logits, outputs) if features else logits


def _channels(image: ImageSpec, base_channels: int, max_channels: int) -> list[int]:
    """Return the channels of the stages from half the size of images down to the start grid."""
    return [min(max_channels, base_channels * 2**i) for i in range(image.doublings)]


def _stage(
    conv: nn.Conv2d | nn.ConvTranspose2d, fan: float, norm: str, activation: nn.Module, bare: bool = False
) -> nn.Sequential:
    """Return a convolution with initial weights, batch norm unless it is `bare` or `norm` is "none", and activation."""
    init_normal(conv, _std(fan, norm))
    if norm == "none" or bare:
        return nn.Sequential(conv, activation)
    scale = nn.BatchNorm2d(conv.out_channels)
    nn.init.normal_(scale.weight, 1.0, 0.02)
    return nn.Sequential(conv, scale, activation)


def _std(fan: float, norm: str) -> float:
    """Return the width of initial weights: the paper's 0.02 under batch norm, else what keeps the second moment.

    `fan` counts the inputs of one output pixel, halved where they come out of a (leaky) ReLU (He et al. 2015). A
    transposed convolution with stride 2 and kernel 4 meets 4 taps per channel, a plain one 16.
    """
    return 0.02 if norm == "batch" else math.sqrt(1 / fan)
