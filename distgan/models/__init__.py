"""Networks. A family is a generator and a discriminator for one device, which know nothing of ranks.

To add one, copy `dcgan.py`, keep the two signatures, add a line here and its arguments to `config.FAMILIES`.
"""

from typing import NamedTuple

from torch import nn

from distgan.models import dcgan, hourglass, r3gan, resnet, restore


class Family(NamedTuple):
    # (resolution, z_dim, num_classes, ...): G(z, labels) -> images [B, 3, R, R] in -1..1; G(images, z, labels) restores
    generator: type[nn.Module]
    discriminator: type[nn.Module]  # (resolution, num_classes, ...): D(images, labels, features=False) -> logits [B]


MODELS: dict[str, Family] = {
    "dcgan": Family(dcgan.Generator, dcgan.Discriminator),
    "r3gan": Family(r3gan.Generator, r3gan.Discriminator),
    "resnet": Family(resnet.Generator, resnet.Discriminator),
    "hourglass": Family(hourglass.Generator, hourglass.Discriminator),
    "restore": Family(restore.Generator, restore.Discriminator),
}
