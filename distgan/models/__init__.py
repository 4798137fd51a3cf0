"""Networks. A family is a generator and a discriminator for one device, which know nothing of ranks.

To add one, copy `dcgan.py`, keep the two signatures, add a line here and its arguments to `FAMILIES` of
`config/model_schema.py`.
"""

from typing import NamedTuple

from torch import nn

from distgan.models import dcgan, hourglass, image_to_image, r3gan, resnet


class Family(NamedTuple):
    # (resolution, z_dim, num_classes, ...): G(z, labels) -> images [B, 3, R, R] in -1..1; G(images, z, labels) restores
    generator: type[nn.Module]
    discriminator: type[nn.Module]  # (resolution, num_classes, ...): D(images, labels, features=False) -> logits [B]
    # Raised when the same weights come to mean another function; checkpoints and exports of before are then refused
    revision: int = 1
    revised: str = ""  # what the last revision changed


MODELS: dict[str, Family] = {
    "dcgan": Family(dcgan.Generator, dcgan.Discriminator),
    "r3gan": Family(r3gan.Generator, r3gan.Discriminator, 2, "the resampling filter is the authors' [1, 3, 3, 1]"),
    "resnet": Family(resnet.Generator, resnet.Discriminator),
    "hourglass": Family(hourglass.Generator, hourglass.Discriminator),
    "restore": Family(image_to_image.Generator, image_to_image.Discriminator),
}
