"""The image-to-image networks of "A Basic GANs Model using TensorFlow", which restore degraded images.

The encoder of G takes an image of H x W x C down to a code of 1 x 1 x Z by strided convolutions, each followed by leaky
ReLU; the decoder goes up again by transposed ones. The article connects the two by the code alone; `skips` adds skip
connections at each side (Ronneberger et al. 2015), and with `residual` the decoder's output is added to the degraded
image. D gives one logit for the whole image or one for each patch (Isola et al. 2017), with or without the degraded
image beside it.
"""

import itertools
import math

import torch
from torch import Tensor, nn

from distgan.condition_spec import VectorInput
from distgan.image_spec import ImageSpec, check_size, patches_error
from distgan.models.epilogue import Epilogue, MakeEpilogue
from distgan.models.label_embedding import label_embedding
from distgan.models.weight_init import init_normal

SLOPE = 0.2


class Generator(nn.Module):
    """Map degraded images [B, C, H, W] and z [B, z_dim] (and labels [B]) to restored images [B, C, H, W].

    Both are in -1..1; with `residual`, restored values may be outside.

    Args:
        image: Channels and size of the images.
        z_dim: Z, the length of an image's code.
        num_classes: 0 for an unconditional generator; else an embedding of the label is appended to the code.
        base_channels: Channels at half the resolution; they double as the side halves.
        max_channels: Upper bound on the channels.
        norm: "none" or "batch".
        skips, residual: See the module.
        noise: Whether z is appended to the code; else z is ignored.
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
        skips: bool,
        residual: bool,
        noise: bool,
        embed_dim: int,
    ) -> None:
        super().__init__()
        check_size("restore", image)
        self.skips, self.residual, self.noise = skips, residual, noise
        self.embed = label_embedding(num_classes, embed_dim)
        channels = _channels(image.doublings, base_channels, max_channels)
        num = math.prod(image.start_grid)
        self.down = nn.ModuleList()
        for i, (before, after) in enumerate(itertools.pairwise([image.channels, *channels])):
            self.down.append(_stage(nn.Conv2d(before, after, 4, 2, 1), 16 * before, norm, bare=i == 0))
        # Not "code", a name that torch's graphs of modules keep for themselves: it could not be exported.
        self.encode = _stage(nn.Conv2d(channels[-1], z_dim, image.start_grid), num * channels[-1], "none")
        coded = z_dim * (2 if noise else 1) + (embed_dim if num_classes else 0)
        self.up = nn.ModuleList([_stage(nn.ConvTranspose2d(coded, channels[-1], image.start_grid), coded, norm)])
        times = 2 if skips else 1
        for before, after in itertools.pairwise(reversed(channels)):
            up = nn.ConvTranspose2d(times * before, after, 4, 2, 1)
            self.up.append(_stage(up, 4 * times * before, norm))
        out = nn.ConvTranspose2d(times * channels[0], image.channels, 4, 2, 1)
        self.out = init_normal(out, _std(4 * times * channels[0], "none", gain=0.1 if residual else 1.0))

    def forward(self, pictures: Tensor, z: Tensor, labels: Tensor | None = None) -> Tensor:
        x, maps = pictures, []  # of the encoder, by falling side
        for stage in self.down:
            x = stage(x)
            maps.append(x)
        code = [self.encode(x)]
        if self.noise:
            code.append(z[:, :, None, None].to(x.dtype))
        if self.embed is not None:
            code.append(self.embed(labels)[:, :, None, None].to(x.dtype))
        x = torch.cat(code, 1)
        for stage in self.up:
            x = stage(x)
            if self.skips:
                x = torch.cat([x, maps.pop()], 1)
        x = self.out(x)
        return pictures + x if self.residual else torch.tanh(x)


class Discriminator(nn.Module):
    """Map images [B, C, H, W] (and labels [B]) to logits [B], or [B, P] of P patches.

    With `features`, it also returns each stage's output.

    With classes, each logit has a second term: the dot product of its features with an embedding of the label
    (projection, Miyato and Koyama 2018).

    Args:
        image, num_classes, base_channels, max_channels, norm: As for `Generator`.
        paired: Whether D is shown the degraded image too; then images are [B, 2 C, H, W], the degraded one second.
        patches: Logits along the height: 1, or H / 2^i from the height of the start grid on (4, 8 ... H / 2 where H is
            a power of two); there are in proportion as many along the width.
        epilogue: Makes the epilogue before the head.

    Raises:
        ValueError: The networks cannot do this size, or D so many patches.
    """

    def __init__(
        self,
        image: ImageSpec,
        num_classes: int | VectorInput,
        base_channels: int,
        max_channels: int,
        norm: str,
        paired: bool,
        patches: int,
        epilogue: MakeEpilogue = Epilogue,
    ) -> None:
        super().__init__()
        check_size("restore", image)
        if error := patches_error(patches, image):
            raise ValueError(f"patches={patches}: {error}")
        self.paired = paired
        num_down = image.doublings if patches == 1 else (image.height // patches).bit_length() - 1
        grid = image.height >> num_down, image.width >> num_down
        channels = [image.channels * (2 if paired else 1), *_channels(num_down, base_channels, max_channels)]
        self.stages = nn.ModuleList()
        for i, (before, after) in enumerate(itertools.pairwise(channels)):
            self.stages.append(_stage(nn.Conv2d(before, after, 4, 2, 1), 16 * before, norm, bare=i == 0))
        self.epilogue = epilogue(channels[-1], grid)
        into_head = channels[-1] + self.epilogue.extra
        head = nn.Conv2d(into_head, 1, grid) if patches == 1 else nn.Conv2d(into_head, 1, 3, 1, 1)
        self.head = init_normal(head, _std(head.weight[0].numel(), "none"))
        self.embed = label_embedding(num_classes, channels[-1])
        if num_classes and patches == 1:
            self.pool = nn.Parameter(torch.randn(channels[-1], *grid) / math.sqrt(math.prod(grid)))  # weights of pixels

    def forward(
        self, images: Tensor, labels: Tensor | None = None, features: bool = False
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        x, outputs = images, []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        logits = self.head(self.epilogue(x))  # [B, 1, 1, 1], or a number for each place of the last map
        if self.embed is not None:
            pooled = (x * self.pool).sum((2, 3), keepdim=True) if logits.shape[2] == 1 else x
            projection = (pooled * self.embed(labels)[:, :, None, None]).sum(1, keepdim=True)
            logits = logits + projection / math.sqrt(x.shape[1])
        logits = logits.flatten() if logits.shape[2] == 1 else logits.flatten(1)
        return (logits, outputs) if features else logits


def _channels(num: int, base_channels: int, max_channels: int) -> list[int]:
    """Return the channels of stages whose sides are 1/2, 1/4 ... 1/2^num of the image's."""
    return [min(max_channels, base_channels * 2**i) for i in range(num)]


def _stage(conv: nn.Conv2d | nn.ConvTranspose2d, fan: float, norm: str, bare: bool = False) -> nn.Sequential:
    """Return a convolution with initial weights, batch norm unless it is `bare` or `norm` is "none", and leaky ReLU."""
    normed = norm == "batch" and not bare
    init_normal(conv, _std(fan, norm if normed else "none"))
    layers = [conv, nn.BatchNorm2d(conv.out_channels)] if normed else [conv]
    return nn.Sequential(*layers, nn.LeakyReLU(SLOPE))


def _std(fan: float, norm: str, gain: float = 1.0) -> float:
    """Return the width of initial weights: 0.02 under batch norm (Radford et al. 2016), else sqrt(gain^2 / inputs).

    The second one keeps the second moment. `fan` counts the inputs of one output pixel, which leaky ReLU has halved on
    average (He et al. 2015).
    """
    return 0.02 if norm == "batch" else gain * math.sqrt(2 / (1 + SLOPE**2) / fan)
