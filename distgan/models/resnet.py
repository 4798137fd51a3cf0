"""Residual networks: SNGAN's (Miyato et al. 2018), with the parts of BigGAN (Brock et al. 2019) that fit small budgets.

For images of any channels and of k x 2^n pixels, with or without classes. Up to three doublings of the start grid (up
to 32 x 32 pixels, where it is 4 x 4) these are SNGAN's CIFAR networks, where all blocks are equally wide: G doubles the
sides up to those of images; D has four blocks, of which the first two halve the sides. Above, G's channels halve and
D's double from block to block, up to 16 times as many as at the widest sides, as in SNGAN's and BigGAN's networks for
64 and 128 pixels; the default widths are SNGAN's at all resolutions.
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
from distgan.models.label_embedding import label_embedding, label_moment
from distgan.models.spectral_norm import add_spectral_norm
from distgan.models.weight_init import init_fan_in, init_normal

Affine = tuple[Tensor, Tensor] | tuple[()]  # gain and bias that a norm gets from outside, [B, C, 1, 1] each

MOST_PIXELS = 64  # of the map that D adds up before its head, as in SNGAN at 32 pixels; the sum of more is scaled to it
LARGEST_UNIFORM = 3  # doublings up to which all blocks are equally wide: up to 32 x 32 pixels

# Gains of the initial weights, which let G do without norm: with `RELU` after each ReLU and `HALF` on either path of a
# block, every block passes on the second moment of its input, and the last tanh gets a second moment of about one.
# SNGAN's own Glorot weights have other scales; batch and spectral norm remove most of the difference, but not that of
# G's dense layer, which starts four times larger here at SNGAN's channels and which the first shortcut sees unchanged.
RELU = math.sqrt(2)  # restores the half of the second moment that ReLU removes (He et al. 2015)
HALF = math.sqrt(1 / 2)  # the two paths of a block start with half of the second moment each, so their sum keeps it


class Generator(nn.Module):
    """Map z [B, z_dim] (and labels [B]) to images [B, C, H, W] in -1..1.

    Args:
        image: Channels and size of the images.
        num_classes: 0 for an unconditional generator.
        base_channels: Channels. Above three doublings, those at a quarter of the resolution: at H / s there are
            min(s, 16) / 4 times as many, e.g. 1024 at sides 4 and 8, then 512, 256, 128 and 64 for H = W = 128 and
            256 base channels.
        norm: "batch"; "conditional", with gain and bias made from the class (needs classes); or "none", which treats
            each image by itself, so that the update does not depend on how a batch is spread over ranks.
        attention: Height of the block that self-attention follows, from two start grids to H; 0 for none.
        embed_dim: Length of the vector that a class label is mapped to. It is appended to z; with `norm="conditional"`,
            all norms share it instead.

    Raises:
        ValueError: `norm="conditional"` without classes, or no block with the height `attention`.
    """

    def __init__(
        self,
        image: ImageSpec,
        z_dim: int,
        num_classes: int | VectorInput,
        base_channels: int = 256,
        norm: str = "batch",
        attention: int = 0,
        embed_dim: int = 128,
    ) -> None:
        super().__init__()
        check_size("resnet", image)
        if norm == "conditional" and not num_classes:
            raise ValueError("norm=conditional makes batch norm's gain and bias from the class, and there are none")
        heights = [image.start_grid[0] << i for i in range(image.doublings + 1)]  # 4, 8 ... H
        _check_attention(attention, heights[1:])
        channels = [_generator_channels(image.doublings, i, base_channels) for i in range(image.doublings + 1)]
        self.start_grid = image.start_grid
        self.embed = label_embedding(num_classes, embed_dim)
        self.appends = bool(num_classes) and norm != "conditional"
        z_dim += embed_dim if self.appends else 0
        self.dense = init_fan_in(nn.Linear(z_dim, channels[0] * math.prod(image.start_grid)))
        self.blocks = nn.ModuleList(
            GeneratorBlock(before, after, norm, embed_dim, with_attention=height == attention)
            for (before, after), height in zip(itertools.pairwise(channels), heights[1:])
        )
        self.norm = Norm(channels[-1], norm, embed_dim)
        self.out = init_fan_in(nn.Conv2d(channels[-1], image.channels, 3, padding=1), RELU)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        code = None
        if self.embed is not None:
            code = self.embed(labels)
            if self.appends:
                z = torch.cat([z, code], dim=1)
        norms = [module for module in self.modules() if isinstance(module, Norm)]
        *of_blocks, of_last = gains_and_biases(norms, code)
        x = self.dense(z).unflatten(1, (-1, *self.start_grid))
        for block, first, second in zip(self.blocks, of_blocks[::2], of_blocks[1::2]):
            x = block(x, first, second)
        return self.out(F.relu(self.norm(x, of_last))).tanh()


class Discriminator(nn.Module):
    """Map images [B, C, H, W] (and labels [B]) to logits [B]; with `features`, also return the output of each block.

    With classes, the logit has a second term: the dot product of the image's features with an embedding of its label
    (projection, Miyato and Koyama 2018).

    Args:
        image: Channels and size of the images.
        num_classes: 0 for an unconditional discriminator.
        base_channels: Channels. Above three doublings, twice those of the first block: block i, counted from 0, has
            min(2^i, 16) / 2 times as many, e.g. 64, 128, 256, 512 and 1024 for H = W = 64 and 128 base channels. All of
            these halve the sides but the last, which stays at the start grid.
        spectral_norm: Whether every weight is divided by its largest singular value.
        attention: Height of the block that self-attention follows, the first of several with that height; its sides
            must be even. 0 for none.
        epilogue: Makes the epilogue before the head.

    Raises:
        ValueError: There is no block with the height `attention`.
    """

    def __init__(
        self,
        image: ImageSpec,
        num_classes: int | VectorInput,
        base_channels: int = 128,
        spectral_norm: bool = True,
        attention: int = 0,
        epilogue: MakeEpilogue = Epilogue,
    ) -> None:
        super().__init__()
        check_size("resnet", image)
        uniform = image.doublings <= LARGEST_UNIFORM
        is_halved_twice = image.height % 4 == image.width % 4 == 0
        num, num_down = (4, 1 + is_halved_twice) if uniform else (image.doublings + 1, image.doublings)
        channels = [image.channels] + [
            base_channels if uniform else base_channels * min(2**i, 16) // 2 for i in range(num)
        ]
        grids = [(image.height >> min(i + 1, num_down), image.width >> min(i + 1, num_down)) for i in range(num)]
        heights = [height for height, _ in grids]
        _check_attention(attention, [height for height, width in grids if height % 2 == width % 2 == 0])
        at = heights.index(attention) if attention else -1
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(before, after, is_first=i == 0, halves=i < num_down, with_attention=i == at)
            for i, (before, after) in enumerate(itertools.pairwise(channels))
        )
        self.epilogue = epilogue(channels[-1], grids[-1])
        into_head = channels[-1] + self.epilogue.extra
        # No pixel is negative after ReLU, so their sum grows as their number. Spectral norm sets the scale by itself.
        num_pixels = math.prod(grids[-1])
        self.scale = min(1.0, MOST_PIXELS / num_pixels)
        gain = 1.0 if spectral_norm else RELU / min(num_pixels, MOST_PIXELS)
        self.head = init_fan_in(nn.Linear(into_head, 1), gain)
        self.embed = label_embedding(num_classes, channels[-1])
        if self.embed is not None:
            init_normal(self.embed, gain / math.sqrt(channels[-1] * label_moment(num_classes)))
        if spectral_norm:
            for part in (self.blocks, self.head, self.embed):
                add_spectral_norm(part)

    def forward(
        self, images: Tensor, labels: Tensor | None = None, features: bool = False
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        x, outputs = images, []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        x = F.relu(x)
        logits = self.head(self._sum(self.epilogue(x))).flatten()
        if self.embed is not None:
            logits = logits + (self._sum(x) * self.embed(labels)).sum(1)
        return (logits, outputs) if features else logits

    def _sum(self, x: Tensor) -> Tensor:
        """Add up pixels, [B, C, H, W] -> [B, C], scaled to the sum of MOST_PIXELS where there are more."""
        total = x.sum((2, 3))
        return total if self.scale == 1 else total * self.scale


class GeneratorBlock(nn.Module):
    """A residual block of G: [B, before, H, W] and what is made of the class for its norms -> [B, after, 2 H, 2 W]."""

    def __init__(self, before: int, after: int, norm: str, embed_dim: int, with_attention: bool = False) -> None:
        super().__init__()
        bias = norm == "none"  # it is the same for all pixels of a channel, and batch norm subtracts it again
        self.norms = nn.ModuleList(Norm(channels, norm, embed_dim) for channels in (before, after))
        self.first = init_fan_in(nn.Conv2d(before, after, 3, padding=1, bias=bias), RELU)
        self.second = init_fan_in(nn.Conv2d(after, after, 3, padding=1, bias=bias), RELU * HALF)
        self.shortcut = init_fan_in(nn.Conv2d(before, after, 1, bias=bias), HALF)
        self.attention = SelfAttention(after) if with_attention else nn.Identity()

    def forward(self, x: Tensor, first: Affine, second: Affine) -> Tensor:
        inner = self.first(_doubled(F.relu(self.norms[0](x, first))))
        inner = self.second(F.relu(self.norms[1](inner, second)))
        # The 1 x 1 convolution and the doubling commute: it runs where there are fewer pixels.
        return self.attention(_doubled(self.shortcut(x)) + inner)


class DiscriminatorBlock(nn.Module):
    """A residual block of D: [B, before, H, W] -> [B, after, H / 2, W / 2], or with the same sides.

    Args:
        is_first: Whether the block gets images, which are not rectified first.
        halves: Whether the sides are halved.
    """

    def __init__(self, before: int, after: int, is_first: bool, halves: bool, with_attention: bool = False) -> None:
        super().__init__()
        self.is_first, self.halves = is_first, halves
        self.first = init_fan_in(nn.Conv2d(before, after, 3, padding=1), 1.0 if is_first else RELU)
        self.second = init_fan_in(nn.Conv2d(after, after, 3, padding=1), RELU * HALF)
        is_same = before == after and not halves
        self.shortcut = nn.Identity() if is_same else init_fan_in(nn.Conv2d(before, after, 1), HALF)
        self.attention = SelfAttention(after) if with_attention else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.second(F.relu(self.first(x if self.is_first else F.relu(x))))
        if self.halves:
            x, inner = F.avg_pool2d(x, 2), F.avg_pool2d(inner, 2)
        return self.attention(self.shortcut(x) + inner)


class Norm(nn.Module):
    """Batch norm of [B, C, H, W], plain or conditional on a class, or no norm.

    The conditional form is BigGAN's: gain 1 + A code and bias B code, where all norms of a network share the codes of
    classes, [B, embed_dim]. The network computes these for all of its norms (`Generator`).

    Args:
        norm: "batch", "conditional" or "none".
    """

    def __init__(self, channels: int, norm: str, embed_dim: int) -> None:
        super().__init__()
        # A plain module of torch, so that its conversion to batch norm across ranks finds it.
        self.norm = nn.Identity() if norm == "none" else nn.BatchNorm2d(channels, affine=norm == "batch")
        is_conditional = norm == "conditional"
        # Classes start a tenth apart: near the plain norm, but with a gradient for the codes.
        self.gain = init_fan_in(nn.Linear(embed_dim, channels, bias=False), 0.1) if is_conditional else None
        self.bias = init_fan_in(nn.Linear(embed_dim, channels, bias=False), 0.1) if is_conditional else None

    def forward(self, x: Tensor, affine: Affine) -> Tensor:
        x = self.norm(x)
        return x * affine[0] + affine[1] if affine else x


def gains_and_biases(norms: Sequence[Norm], code: Tensor | None) -> list[Affine]:
    """Return what each norm gets from the class's code [B, embed_dim], all by one product; () where it gets nothing."""
    gains, biases = [norm.gain for norm in norms if norm.gain], [norm.bias for norm in norms if norm.bias]
    if code is None or not gains:
        return [()] * len(norms)
    values = F.linear(code, torch.cat([layer.weight for layer in gains + biases]))[:, :, None, None]
    gain, bias = values.chunk(2, 1)
    channels = [layer.out_features for layer in gains]
    return list(zip((1 + gain).split(channels, 1), bias.split(channels, 1)))


class SelfAttention(nn.Module):
    """Self-attention of [B, C, H, W], H and W even: x + gain * attention, where the gain starts at zero (SAGAN).

    Zhang et al. 2019. Queries come from every pixel, keys and values from the maxima of squares of 2 x 2 pixels as in
    BigGAN, which is a quarter of the work.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        few, half = max(1, channels // 8), max(1, channels // 2)
        self.query = init_fan_in(nn.Conv2d(channels, few, 1, bias=False))
        self.key = init_fan_in(nn.Conv2d(channels, few, 1, bias=False))
        self.value = init_fan_in(nn.Conv2d(channels, half, 1, bias=False))
        self.out = init_fan_in(nn.Conv2d(half, channels, 1, bias=False))
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        # Written out: torch's fused attention has no second derivative, which R1 needs.
        query, key, value = self.query(x).flatten(2), _maxima(self.key(x)), _maxima(self.value(x))
        weights = (query.transpose(1, 2) @ key).softmax(2)  # [B, H W, H W / 4]
        mixed = value @ weights.transpose(1, 2)  # [B, C / 2, H W]
        return x + self.gain * self.out(mixed.unflatten(2, x.shape[2:]))


def _generator_channels(doublings: int, number: int, base_channels: int) -> int:
    """Return G's channels after a number of all doublings."""
    return base_channels if doublings <= LARGEST_UNIFORM else base_channels * min(2 ** (doublings - number), 16) // 4


def _check_attention(attention: int, heights: list[int]) -> None:
    if attention and attention not in heights:
        allowed = f" or one of {', '.join(map(str, dict.fromkeys(heights)))}" if heights else ""
        raise ValueError(f"attention={attention}: no block has this height and even sides; choose 0 (none){allowed}")


def _doubled(x: Tensor) -> Tensor:
    """Repeat each pixel four times: [B, C, H, W] -> [B, C, 2 H, 2 W]."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


def _maxima(x: Tensor) -> Tensor:
    """Take the maximum of each square of 2 x 2 pixels: [B, C, H, W] -> [B, C, H W / 4]."""
    return x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).amax((3, 5)).flatten(2)
