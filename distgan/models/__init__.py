"""The networks. A family is a generator and a discriminator for one device, which know nothing of ranks.

To add one, copy `dcgan.py`, keep the two signatures, add a line here and its arguments to `FAMILIES` of
`config/model_schema.py`.
"""

from typing import NamedTuple

from torch import nn

from distgan.models import dcgan, hourglass, image_to_image, r3gan, resnet, stylegan2


class Family(NamedTuple):
    """The two networks of a family.

    Attributes:
        generator: Class of G, made by (image, z_dim, num_classes, ...): G(z, labels) -> images [B, C, H, W] in
            -1..1. A G that restores images is called as G(images, z, labels). Labels are class numbers [B]; or vectors
            [B, V], where `num_classes` is a `VectorInput`.
        discriminator: Class of D, made by (image, num_classes, ...): D(images, labels, features=False) -> logits
            [B].
        revision: Number that is raised when the same weights come to mean another function; checkpoints and exports of
            an older revision are then refused.
        revised: What the last revision changed.
    """

    generator: type[nn.Module]
    discriminator: type[nn.Module]
    revision: int = 1
    revised: str = ""


MODELS: dict[str, Family] = {
    "dcgan": Family(dcgan.Generator, dcgan.Discriminator),
    "r3gan": Family(r3gan.Generator, r3gan.Discriminator, 2, "the resampling filter is the authors' [1, 3, 3, 1]"),
    "resnet": Family(resnet.Generator, resnet.Discriminator),
    "hourglass": Family(hourglass.Generator, hourglass.Discriminator),
    "stylegan2": Family(stylegan2.Generator, stylegan2.Discriminator),
    "restore": Family(image_to_image.Generator, image_to_image.Discriminator),
}
