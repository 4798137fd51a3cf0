"""The settings of each family of networks: of its generator and of its discriminator."""

from dataclasses import asdict, dataclass
from typing import Literal

from distgan.config.fields import key
from distgan.storage.untrusted import parse


@dataclass
class DcganGenerator:
    base_channels: int = key(64, "channels at half the resolution; they double as the side halves", low=1, high=2**14)
    max_channels: int = key(512, "bound on the channels", low=1, high=2**14)
    norm: Literal["none", "batch"] = key("none", "batch norm, or none")
    embed_dim: int = key(64, "numbers that a class label becomes", low=1, high=2**14)


@dataclass
class DcganDiscriminator:
    base_channels: int = key(64, "channels at half the resolution; they double as the side halves", low=1, high=2**14)
    max_channels: int = key(512, "bound on the channels", low=1, high=2**14)
    norm: Literal["none", "batch"] = key("none", "batch norm, or none")


@dataclass
class HourglassGenerator:
    base_channels: int = key(128, "channels at the widest sides; 2 and 4 times as many further in", low=1, high=2**12)
    norm: Literal["none", "batch"] = key("batch", "batch norm as in the article, or none")
    embed_dim: int = key(64, "numbers that a class label becomes", low=1, high=2**14)


@dataclass
class HourglassDiscriminator:
    base_channels: int = key(
        128, "channels of the first two stages; 2, 2 and 4 times as many in the others", low=1, high=2**12
    )
    norm: Literal["none", "batch"] = key("batch", "batch norm as in the article, or none")


@dataclass
class R3ganGenerator:
    widths: list[int] = key(
        [768],
        "channels from the start grid (4 x 4 of 2^n pixels) on; the last number holds for all larger sizes",
        low=1,
        high=2**14,
    )
    blocks: int = key(2, "residual blocks at each side", low=1, high=64)
    group_width: int = key(8, "channels of a group of the grouped convolutions", low=1, high=2**14)
    embed_dim: int = key(64, "numbers that a class label becomes", low=1, high=2**14)


@dataclass
class R3ganDiscriminator:
    widths: list[int] = key(
        [768],
        "channels from the start grid (4 x 4 of 2^n pixels) on; the last number holds for all larger sizes",
        low=1,
        high=2**14,
    )
    blocks: int = key(2, "residual blocks at each side", low=1, high=64)
    group_width: int = key(8, "channels of a group of the grouped convolutions", low=1, high=2**14)


@dataclass
class ResnetGenerator:
    base_channels: int = key(
        256, "channels; above 3 doublings (32 pixels), those at a quarter of the resolution", low=4, high=2**13
    )
    norm: Literal["none", "batch", "conditional"] = key("batch", "batch norm, one with gain and bias by class, or none")
    attention: int = key(0, "height of the block that self-attention follows; 0: none", low=0, high=1024)
    embed_dim: int = key(128, "numbers that a class label becomes", low=1, high=2**14)


@dataclass
class ResnetDiscriminator:
    base_channels: int = key(
        128, "channels; above 3 doublings (32 pixels), twice those of the first block", low=2, high=2**13
    )
    spectral_norm: bool = key(True, "spectral norm on every weight")
    attention: int = key(0, "height of the block that self-attention follows; 0: none", low=0, high=1024)


@dataclass
class Stylegan2Generator:
    channel_base: int = key(16384, "channels of a stage are this divided by its side (4, 8, 16 ...)", low=4, high=2**20)
    max_channels: int = key(512, "bound on the channels", low=1, high=2**14)
    w_dim: int = key(512, "length of w, and numbers that a class label becomes", low=1, high=2**14)
    mapping_layers: int = key(8, "layers of the mapping network", low=1, high=64)
    architecture: Literal["orig", "skip", "resnet"] = key(
        "skip", "the image is made by the last stage, by all of them, or by the last of residual stages"
    )
    noise: bool = key(True, "add noise in each layer, in training drawn for each image")
    mixing: float = key(
        0.9, "probability that an image in training has the styles of a second latent from some layer on", low=0, high=1
    )


@dataclass
class Stylegan2Discriminator:
    channel_base: int = key(16384, "channels of a stage are this divided by its side (4, 8, 16 ...)", low=4, high=2**20)
    max_channels: int = key(512, "bound on the channels", low=1, high=2**14)
    mapping_layers: int = key(8, "layers of the network that maps labels", low=1, high=64)
    architecture: Literal["orig", "skip", "resnet"] = key(
        "resnet", "stages are residual, or each sees the image at its size too, or neither"
    )


@dataclass
class RestoreGenerator:
    base_channels: int = key(64, "channels at half the resolution; they double as the side halves", low=1, high=2**14)
    max_channels: int = key(512, "bound on the channels", low=1, high=2**14)
    norm: Literal["none", "batch"] = key("none", "batch norm, or none")
    skips: bool = key(False, "skip connections from the encoder to the decoder at each side")
    residual: bool = key(
        False, "add the decoder's output to the degraded image, instead of using it as the restored image"
    )
    noise: bool = key(False, "append z to the image's code, so that one image has many restorations")
    embed_dim: int = key(64, "numbers that a class label becomes", low=1, high=2**14)


@dataclass
class RestoreDiscriminator:
    base_channels: int = key(64, "channels at half the resolution; they double as the side halves", low=1, high=2**14)
    max_channels: int = key(512, "bound on the channels", low=1, high=2**14)
    norm: Literal["none", "batch"] = key("none", "batch norm, or none")
    paired: bool = key(False, "show D the degraded image too")
    patches: int = key(
        1,
        "logits along the height: 1 is one for the whole image, 8 are 8 x 8 for the parts of a square",
        low=1,
        high=512,
    )


FAMILIES: dict[str, tuple[type, type]] = {
    "dcgan": (DcganGenerator, DcganDiscriminator),
    "r3gan": (R3ganGenerator, R3ganDiscriminator),
    "resnet": (ResnetGenerator, ResnetDiscriminator),
    "hourglass": (HourglassGenerator, HourglassDiscriminator),
    "stylegan2": (Stylegan2Generator, Stylegan2Discriminator),
    "restore": (RestoreGenerator, RestoreDiscriminator),
}


def net_settings(family: str, net: str, values: dict, where: str) -> dict:
    """Return the settings of a family's network, with its defaults.

    Raises DataError where it has none of that kind or size.

    Args:
        net: "G" or "D".
    """
    if family not in FAMILIES:  # one of a program that adds its own to MODELS
        return values
    return asdict(parse(FAMILIES[family]["GD".index(net)], values, where))
