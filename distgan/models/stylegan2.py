"""StyleGAN2 (Karras et al. 2020, arXiv 1912.04958) for images of any channels and of k x 2^n pixels, in plain torch.

A mapping network turns z and the label into w; each layer of the synthesis network is a convolution whose inputs are
scaled by a function of w and whose outputs are scaled back to unit variance (modulation and demodulation, section 2.2).
Both scalings are products with the activations here, so the convolution has one weight for the whole batch.

While it is trained, G mixes the styles of two latents and adds noise to its layers, both drawn for each image from its
seed (`seeds`), so that neither ranks nor passes change them. In evaluation, and without seeds, nothing is mixed and the
noise is one fixed map for each layer: an image is a function of z and the label.

Weights have a learning rate that is equal in all layers: they start from N(0, 1) and are scaled when they are used
(Karras et al. 2018, section 4.1).
"""

import contextlib
import itertools
import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distgan.condition_spec import VectorInput
from distgan.image_spec import ImageSpec, check_size
from distgan.models.epilogue import Epilogue, MakeEpilogue
from distgan.models.label_embedding import label_embedding
from distgan.models.resample import Blur, Downsample, Upsample
from distgan.rng import device_rng

Architecture = Literal["orig", "skip", "resnet"]  # section 4.1, figure 7
EPSILON = 1e-8
MAPPING_RATE = 0.01  # of the learning rate, in mapping networks
ROOT_HALF = math.sqrt(0.5)


class Generator(nn.Module):
    """Map z [B, z_dim] (and labels [B]) to images [B, C, H, W], trained towards -1..1 but not bounded by it.

    Args:
        image: Channels and size of the images.
        num_classes: 0 for an unconditional generator; else what labels are, see `label_embedding`.
        channel_base: Channels of a stage are this divided by its side (4 at the start grid, 8, 16 ...).
        max_channels: Upper bound on the channels.
        w_dim: Length of w, and of the label's embedding.
        mapping_layers: Layers of the mapping network.
        architecture: How stages make the image: "orig", the last one alone; "skip", all of them; "resnet", the last
            one, of stages that are residual.
        noise: Whether layers add noise.
        mixing: Probability that an image in training has the styles of a second latent from some layer on.

    Attributes:
        num_ws: Number of styles that the synthesis takes.
        seeds, tag: See `image_seeds`; set by the caller of the network.
    """

    seeds: Tensor | None

    def __init__(
        self,
        image: ImageSpec,
        z_dim: int,
        num_classes: int | VectorInput,
        channel_base: int = 16384,
        max_channels: int = 512,
        w_dim: int = 512,
        mapping_layers: int = 8,
        architecture: Architecture = "skip",
        noise: bool = True,
        mixing: float = 0.9,
    ) -> None:
        super().__init__()
        check_size("stylegan2", image)
        channels = _channels(image, channel_base, max_channels)
        self.z_dim, self.mixing, self.seeds, self.tag = z_dim, mixing, None, ""
        self.num_ws = 2 * len(channels)
        self.mapping = Mapping(z_dim, num_classes, w_dim, mapping_layers)
        self.start = nn.Parameter(torch.randn(channels[0], *image.start_grid))
        blocks: list[SynthesisBlock] = []
        for number, (before, after) in enumerate(zip([0, *channels], channels)):
            grid = tuple(side << number for side in image.start_grid)
            is_last = number == len(channels) - 1
            shown = image.channels if is_last or architecture == "skip" else 0
            blocks.append(SynthesisBlock(before, after, grid, w_dim, shown, architecture, noise))
        self.blocks = nn.ModuleList(blocks)
        grids = [grid for block in blocks for grid in block.grids]
        self.noise_sizes = [math.prod(grid) for grid in grids] if noise else []

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.synthesize(self.styles(z, labels))

    def styles(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the style of each layer, [B, num_ws, w_dim]; in training with seeds, two latents are mixed."""
        seeds = self._training_seeds
        if seeds is None or not self.mixing:
            return self.mapping(z, labels)[:, None].expand(-1, self.num_ws, -1)
        other = device_rng.normal(seeds, f"mixed z {self.tag}", self.z_dim).to(z.dtype)
        both = self.mapping(torch.cat([z, other]), None if labels is None else torch.cat([labels, labels]))
        first, second = both.chunk(2)
        draws = device_rng.uniform(seeds, f"mixing {self.tag}", 2)
        # The first layer of the second latent: one of 1 .. num_ws - 1 with the probability `mixing`, else none.
        layer = torch.where(draws[:, 0] < self.mixing, 1 + (draws[:, 1] * (self.num_ws - 1)).floor(), self.num_ws)
        is_first = torch.arange(self.num_ws, device=z.device) < layer[:, None]
        return torch.where(is_first[:, :, None], first[:, None], second[:, None])

    def synthesize(self, styles: Tensor) -> Tensor:
        """Return the images of styles [B, num_ws, w_dim]."""
        x = self.start.expand(styles.shape[0], -1, -1, -1)
        noises: list[Tensor | None] = [None] * self.num_ws
        seeds = self._training_seeds
        if seeds is not None and self.noise_sizes:
            drawn = device_rng.normal(seeds, f"noise {self.tag}", sum(self.noise_sizes))
            noises[: len(self.noise_sizes)] = drawn.split(self.noise_sizes, 1)
        images: Tensor | None = None
        for number, block in enumerate(self.blocks):
            used = max(0, 2 * number - 1)  # layers before
            x, images = block(x, images, styles[:, used:], noises[used:])
        assert images is not None  # the last block makes one
        return images

    @property
    def _training_seeds(self) -> Tensor | None:
        return self.seeds if self.training else None


class Mapping(nn.Module):
    """Map z [B, z_dim] and labels to w [B, w_dim]; both are scaled to a second moment of one first.

    Args:
        z_dim: 0 for a network of labels alone, as D has one.
    """

    def __init__(self, z_dim: int, num_classes: int | VectorInput, w_dim: int, layers: int) -> None:
        super().__init__()
        self.z_dim = z_dim
        self.embed = label_embedding(num_classes, w_dim)
        if self.embed is not None:
            length = num_classes.length if isinstance(num_classes, VectorInput) else num_classes
            nn.init.normal_(self.embed.weight)
            self.embed_scale = length**-0.5
            self.embed_bias = nn.Parameter(torch.zeros(w_dim))
        inputs = z_dim + (w_dim if self.embed is not None else 0)
        widths = [inputs, *[w_dim] * layers]
        self.layers = nn.Sequential(*(Dense(a, b, MAPPING_RATE) for a, b in itertools.pairwise(widths)))

    def forward(self, z: Tensor | None, labels: Tensor | None) -> Tensor:
        with _in_float32(next(self.parameters())):
            parts = [] if z is None else [_normalized(z)]
            if self.embed is not None:
                parts.append(_normalized(self.embed(labels) * self.embed_scale + self.embed_bias))
            x = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
            for layer in self.layers:
                x = activated(layer(x))
        return x


class Dense(nn.Module):
    """A linear layer with an equalized learning rate, `rate` times that of other layers."""

    def __init__(self, inputs: int, outputs: int, rate: float = 1.0, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias))
        self.scale, self.rate = rate / math.sqrt(inputs), rate

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale, self.bias * self.rate if self.rate != 1 else self.bias)


class SynthesisBlock(nn.Module):
    """One stage of G: [B, inputs, H / 2, W / 2] -> [B, outputs, H, W], and the image so far.

    Args:
        inputs: 0 at the start grid, where the stage has one layer and doubles nothing.
        shown: Channels of the image that it makes; 0: none.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        grid: tuple[int, ...],
        w_dim: int,
        shown: int,
        architecture: Architecture,
        noise: bool,
    ) -> None:
        super().__init__()
        up = [StyledConv(inputs, outputs, grid, w_dim, up=True, noise=noise)] if inputs else []
        self.layers = nn.ModuleList([*up, StyledConv(outputs, outputs, grid, w_dim, up=False, noise=noise)])
        self.grids = [grid] * len(self.layers)
        self.shortcut = None
        if inputs and architecture == "resnet":
            self.shortcut = nn.Sequential(Conv(inputs, outputs, 1, bias=False), Upsample(outputs))
        self.to_image = ToImage(outputs, shown, w_dim) if shown else None
        self.up_image = Upsample(shown) if shown and inputs and architecture == "skip" else None

    def forward(
        self, x: Tensor, images: Tensor | None, styles: Tensor, noises: list[Tensor | None]
    ) -> tuple[Tensor, Tensor | None]:
        """Take the styles of this stage's layers, of its image, and perhaps of others, [B, L, w_dim]; noises alike."""
        before = x
        for number, layer in enumerate(self.layers):
            x = layer(x, styles[:, number], noises[number])
        if self.shortcut is not None:
            x = (x + self.shortcut(before)) * ROOT_HALF
        if self.to_image is not None:
            own = self.to_image(x, styles[:, len(self.layers)])
            images = own if images is None or self.up_image is None else self.up_image(images) + own
        return x, images


class StyledConv(nn.Module):
    """A modulated and demodulated 3 x 3 convolution, noise, bias and leaky ReLU; with `up`, the sides are doubled.

    Attributes:
        grid: H and W of the output.
    """

    def __init__(self, inputs: int, outputs: int, grid: tuple[int, ...], w_dim: int, *, up: bool, noise: bool) -> None:
        super().__init__()
        self.grid = grid
        self.affine = Dense(w_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.blur = Blur(outputs, 1, gain=4.0) if up else None
        self.noise_strength = nn.Parameter(torch.zeros(())) if noise else None
        if noise:
            self.register_buffer("noise", torch.randn(*grid))

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        """Return [B, outputs, H, W], of w [B, w_dim] and of noise [B, H W]; None for the fixed map."""
        with _in_float32(self.weight):
            style = self.affine(w)
            # The norm of each output's modulated weights, by which the output is divided (eq. 3).
            power = F.linear(style.square(), self.weight.square().sum((2, 3)))
            demodulation = (power + EPSILON).rsqrt()
        x = x * style[:, :, None, None].to(x.dtype)
        if self.blur is None:
            x = F.conv2d(x, self.weight, padding=1)
        else:
            x = self.blur(F.conv_transpose2d(x, self.weight.transpose(0, 1), stride=2))
        x = x * demodulation[:, :, None, None].to(x.dtype)
        if self.noise_strength is not None:
            drawn = self.get_buffer("noise") if noise is None else noise.unflatten(1, self.grid)[:, None]
            x = x + drawn.to(x.dtype) * self.noise_strength.to(x.dtype)
        return activated(x + self.bias[:, None, None].to(x.dtype))


class ToImage(nn.Module):
    """A modulated 1 x 1 convolution to the channels of images, without demodulation."""

    def __init__(self, inputs: int, outputs: int, w_dim: int) -> None:
        super().__init__()
        self.affine = Dense(w_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale = inputs**-0.5

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        with _in_float32(self.weight):
            style = self.affine(w) * self.scale
        return F.conv2d(x * style[:, :, None, None].to(x.dtype), self.weight, self.bias)


class Discriminator(nn.Module):
    """Map images [B, C, H, W] (and labels [B]) to logits [B]; with `features`, also return the output of each stage.

    With classes, the logit is the dot product of a vector made of the image with one made of the label by a mapping
    network, divided by the root of their length.

    Args:
        channel_base, max_channels, mapping_layers: As for `Generator`.
        architecture: "resnet": residual stages; "skip": each sees the image at its size, too; "orig": neither.
        epilogue: Makes the epilogue before the head; the paper's has `minibatch="stddev"`.
    """

    def __init__(
        self,
        image: ImageSpec,
        num_classes: int | VectorInput,
        channel_base: int = 16384,
        max_channels: int = 512,
        mapping_layers: int = 8,
        architecture: Architecture = "resnet",
        epilogue: MakeEpilogue = Epilogue,
    ) -> None:
        super().__init__()
        check_size("stylegan2", image)
        channels = _channels(image, channel_base, max_channels)[::-1]
        self.is_skip = architecture == "skip"
        sees = [image.channels if number == 0 or self.is_skip else 0 for number in range(len(channels))]
        self.from_image = nn.ModuleList(
            Conv(colors, width, 1) if colors else nn.Identity() for colors, width in zip(sees, channels)
        )
        self.stages = nn.ModuleList(
            DiscriminatorBlock(before, after, architecture) for before, after in itertools.pairwise(channels)
        )
        self.down_image = Downsample(image.channels) if self.is_skip else None
        width = channels[-1]
        self.epilogue = epilogue(width, image.start_grid)
        self.conv = Conv(width + self.epilogue.extra, width, 3)
        self.dense = Dense(width * math.prod(image.start_grid), width)
        self.mapping = Mapping(0, num_classes, width, mapping_layers) if num_classes else None
        self.head = Dense(width, width if num_classes else 1)

    def forward(
        self, images: Tensor, labels: Tensor | None = None, features: bool = False
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        x, outputs = self.from_image[0](images), []
        for stage, from_image in zip(self.stages, self.from_image[1:]):
            x = stage(x)
            if self.down_image is not None:
                images = self.down_image(images)
                x = x + from_image(images)
            outputs.append(x)
        x = self.conv(self.epilogue(x))
        outputs.append(x)
        vector = self.head(activated(self.dense(x.flatten(1))))
        if self.mapping is None:
            logits = vector.flatten()
        else:
            logits = (vector * self.mapping(None, labels)).sum(1) / math.sqrt(vector.shape[1])
        return (logits, outputs) if features else logits


class DiscriminatorBlock(nn.Module):
    """One stage of D: [B, inputs, H, W] -> [B, outputs, H / 2, W / 2]."""

    def __init__(self, inputs: int, outputs: int, architecture: Architecture) -> None:
        super().__init__()
        self.first, self.second = Conv(inputs, inputs, 3), Conv(inputs, outputs, 3, down=True)
        is_residual = architecture == "resnet"
        self.shortcut = nn.Sequential(Downsample(inputs), Conv(inputs, outputs, 1, bias=False)) if is_residual else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.second(self.first(x))
        return out if self.shortcut is None else (out + self.shortcut(x)) * ROOT_HALF


class Conv(nn.Module):
    """A convolution with an equalized learning rate; with a bias, leaky ReLU follows. `down` halves the sides."""

    def __init__(self, inputs: int, outputs: int, side: int, *, bias: bool = True, down: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, side, side))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.scale = 1 / math.sqrt(inputs * side * side)
        self.blur = Blur(inputs, 2) if down else None
        self.padding = side // 2

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * self.scale
        if self.blur is None:
            x = F.conv2d(x, weight, self.bias, padding=self.padding)
        else:
            x = F.conv2d(self.blur(x), weight, self.bias, stride=2)
        return x if self.bias is None else activated(x)


def activated(x: Tensor) -> Tensor:
    """Return leaky ReLU with the slope 0.2, times the root of 2."""
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


def _normalized(x: Tensor) -> Tensor:
    return x * (x.square().mean(1, keepdim=True) + EPSILON).rsqrt()


def _channels(image: ImageSpec, channel_base: int, max_channels: int) -> list[int]:
    """Return the channels of each stage, from the start grid to the size of images."""
    return [max(1, min(channel_base // (4 << number), max_channels)) for number in range(image.doublings + 1)]


def _in_float32(like: Tensor) -> contextlib.AbstractContextManager:
    """Return a context without autocast: styles are few numbers, and their errors would be in every pixel."""
    kind = like.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()
