"""R3GAN (Huang et al. 2024, "The GAN is dead; long live the GAN!") for images of any channels and of k x 2^n pixels.

Two plain residual networks without any normalization, meant for the relativistic paired loss with R1 and R2. The trunk
of each is the identity but for resampling when training starts: the last convolution of every residual block is zero.
"""

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distgan.condition_spec import VectorInput
from distgan.image_spec import ImageSpec, check_size
from distgan.models.epilogue import Epilogue, MakeEpilogue
from distgan.models.grouped_conv import GroupedConv2d
from distgan.models.label_embedding import label_embedding
from distgan.models.resample import Downsample, Upsample
from distgan.models.weight_init import init_fan_in

SLOPE = 0.2  # of leaky ReLU
GAIN = math.sqrt(2 / (1 + SLOPE**2))  # restores the second moment after a leaky ReLU (He et al. 2015)


class Generator(nn.Module):
    """Map z [B, z_dim] (and labels [B]) to images [B, C, H, W], trained towards -1..1 but not bounded by it.

    Args:
        image: Channels and size of the images.
        num_classes: 0 for an unconditional generator; else an embedding of the label, which is a class number or a
            vector [V] of conditions, is appended to z.
        widths: Channels of the stages from the start grid, which is 4 x 4 where sides are powers of two, upwards;
            further stages have as many as the last one.
        blocks: Residual blocks of each stage.
        group_width: Channels in a group of the 3 x 3 convolutions, counted before the block doubles them.
        embed_dim: Length of the vector that a class label is mapped to.

    Raises:
        ValueError: A width is not a multiple of `group_width`.
    """

    def __init__(
        self,
        image: ImageSpec,
        z_dim: int,
        num_classes: int | VectorInput,
        widths: Sequence[int] = (768,),
        blocks: int = 2,
        group_width: int = 8,
        embed_dim: int = 64,
    ) -> None:
        super().__init__()
        check_size("r3gan", image)
        widths = _widths(image, widths, group_width)
        num_blocks = blocks * len(widths)
        self.embed = label_embedding(num_classes, embed_dim)
        if self.embed is not None:  # the authors' linear layer over one-hot labels: fan-in is the number of classes
            nn.init.normal_(self.embed.weight, std=_embedding_std(num_classes))
        z_dim += embed_dim if num_classes else 0
        self.dense = init_fan_in(nn.Linear(z_dim, widths[0], bias=False))
        self.basis = nn.Parameter(torch.randn(widths[0], *image.start_grid))
        stages = [_blocks(widths[0], blocks, group_width, num_blocks)]
        for before, after in itertools.pairwise(widths):
            # The 1 x 1 convolution and the resampling commute: it runs where there are fewer pixels.
            up = [*_change(before, after), Upsample(after)]
            stages.append([*up, *_blocks(after, blocks, group_width, num_blocks)])
        self.stages = nn.Sequential(*(nn.Sequential(*stage) for stage in stages))
        self.to_rgb = init_fan_in(nn.Conv2d(widths[-1], image.channels, 1, bias=False))

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.embed is not None:
            z = torch.cat([z, self.embed(labels)], dim=1)
        return self.to_rgb(self.stages(self.basis * self.dense(z)[:, :, None, None]))


class Discriminator(nn.Module):
    """Map images [B, C, H, W] (and labels [B]) to logits [B]; with `features`, also return the output of each stage.

    With classes, the logit is the dot product of a vector made of the image and an embedding of its label. The length
    of both is the number of channels of the stage at the start grid.

    Args:
        epilogue: Makes the epilogue before the head.

    The others are as for `Generator`; `widths` counts from the start grid here too.
    """

    def __init__(
        self,
        image: ImageSpec,
        num_classes: int | VectorInput,
        widths: Sequence[int] = (768,),
        blocks: int = 2,
        group_width: int = 8,
        epilogue: MakeEpilogue = Epilogue,
    ) -> None:
        super().__init__()
        check_size("r3gan", image)
        widths = _widths(image, widths, group_width)[::-1]
        num_blocks, channels = blocks * len(widths), widths[-1]
        from_rgb = init_fan_in(nn.Conv2d(image.channels, widths[0], 1, bias=False))
        stages = [[from_rgb, *_blocks(widths[0], blocks, group_width, num_blocks)]]
        for before, after in itertools.pairwise(widths):
            down = [Downsample(before), *_change(before, after)]
            stages.append([*down, *_blocks(after, blocks, group_width, num_blocks)])
        self.stages = nn.ModuleList(nn.Sequential(*stage) for stage in stages)
        self.epilogue = epilogue(channels, image.start_grid)
        into_head = channels + self.epilogue.extra
        pool = init_fan_in(GroupedConv2d(into_head, into_head, image.start_grid, into_head, bias=False))
        dense = init_fan_in(nn.Linear(into_head, channels if num_classes else 1, bias=False))
        self.head = nn.Sequential(pool, nn.Flatten(), dense)
        self.embed = label_embedding(num_classes, channels)
        if self.embed is not None:
            # As in G, and divided by the root of the length of the dot product
            nn.init.normal_(self.embed.weight, std=_embedding_std(num_classes, channels))

    def forward(
        self, images: Tensor, labels: Tensor | None = None, features: bool = False
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        x, outputs = images, []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        vector = self.head(self.epilogue(x))
        logits = vector.flatten() if self.embed is None else (vector * self.embed(labels)).sum(1)
        return (logits, outputs) if features else logits


class Block(nn.Module):
    """A residual block of [B, C, H, W]: x + project(lrelu(mix(lrelu(expand(x))))), with 2 C channels in between.

    The paper has the biases in the activations; a convolution's own bias before a leaky ReLU is the same.
    """

    def __init__(self, channels: int, group_width: int, num_blocks: int) -> None:
        super().__init__()
        # Fixup (Zhang et al. 2019) for three convolutions, the last of them zero: the others are scaled by
        # L^(-1 / (2 * 3 - 2)), so that each of the L blocks would add at most 1 / L to the second moment.
        gain = GAIN * num_blocks**-0.25
        inner = 2 * channels
        self.expand = init_fan_in(nn.Conv2d(channels, inner, 1), gain)
        groups = channels // group_width
        mix = GroupedConv2d(inner, inner, 3, groups, padding=1) if groups > 1 else nn.Conv2d(inner, inner, 3, padding=1)
        self.mix = init_fan_in(mix, gain)
        self.project = init_fan_in(nn.Conv2d(inner, channels, 1, bias=False), gain=0.0)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.leaky_relu(self.expand(x), SLOPE)
        inner = F.leaky_relu(self.mix(inner), SLOPE)
        return x + self.project(inner)


def _embedding_std(labels: int | VectorInput, length: int = 1) -> float:
    """Return the width of an embedding's initial weights, for dot products with vectors of some length."""
    return ((labels.second_moment if isinstance(labels, VectorInput) else labels) * length) ** -0.5


def _widths(image: ImageSpec, widths: Sequence[int], group_width: int) -> list[int]:
    """Return a width for each stage, from the start grid to the size of images."""
    uneven = [width for width in widths if width % group_width]
    if uneven or not widths:
        raise ValueError(
            f"widths={list(widths)}, group_width={group_width}: needs one width or more, each of them a multiple of "
            f"group_width, such as [{96 * group_width}]"
        )
    num = image.doublings + 1
    return [*widths, *[widths[-1]] * num][:num]


def _blocks(channels: int, blocks: int, group_width: int, num_blocks: int) -> list[nn.Module]:
    """Return the residual blocks of one stage, in a network of `num_blocks`."""
    return [Block(channels, group_width, num_blocks) for _ in range(blocks)]


def _change(before: int, after: int) -> list[nn.Module]:
    """Return a convolution from one number of channels to another, or nothing if they are equal."""
    return [] if before == after else [init_fan_in(nn.Conv2d(before, after, 1, bias=False))]
