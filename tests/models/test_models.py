"""What every network family must satisfy: signatures, ranges, gradients, independence of the images of a batch."""

import math
from dataclasses import MISSING, Field

import pytest
import torch
from torch import Tensor, nn

from distgan.config.fields import leaves
from distgan.config.model_schema import FAMILIES
from distgan.image_spec import LEAST_SIDES, square
from distgan.models import MODELS

RESOLUTIONS = (16, 32, 64, 128, 256)
SMALL = {
    "dcgan": ({"base_channels": 4, "max_channels": 16}, {"base_channels": 4, "max_channels": 16}),
    "r3gan": ({"widths": [8], "blocks": 1, "group_width": 2}, {"widths": [8], "blocks": 1, "group_width": 2}),
    "resnet": ({"base_channels": 8, "norm": "none"}, {"base_channels": 8}),
    "hourglass": ({"base_channels": 4, "norm": "none"}, {"base_channels": 4, "norm": "none"}),
    "stylegan2": (
        {"channel_base": 64, "max_channels": 16, "w_dim": 8, "mapping_layers": 2},
        {"channel_base": 64, "max_channels": 16, "mapping_layers": 2},
    ),
    "restore": (
        {"base_channels": 4, "max_channels": 16, "skips": True, "noise": True},
        {"base_channels": 4, "max_channels": 16},
    ),
}


class OfLatents(nn.Module):
    """A generator that restores, of pictures that are functions of the latents."""

    def __init__(self, G: nn.Module, resolution: int) -> None:
        super().__init__()
        self.G = G
        self.register_buffer("waves", torch.randn(8, 3 * resolution**2))

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        side = math.isqrt(self.waves.shape[1] // 3)
        return self.G(torch.sin(z @ self.waves).view(-1, 3, side, side), z, labels)


def build(family: str, resolution: int, num_classes: int, **settings: object) -> tuple[nn.Module, nn.Module]:
    """G and D with few channels, and without norms that mix images."""
    torch.manual_seed(0)
    g, d = ({name: default(f) for name, f in leaves(schema)} for schema in FAMILIES[family])
    resolution = max(resolution, LEAST_SIDES.get(family, 8))
    G = MODELS[family].generator(square(resolution), 8, num_classes, **g | SMALL[family][0] | settings)
    G = OfLatents(G, resolution) if family == "restore" else G
    return G, MODELS[family].discriminator(square(resolution), num_classes, **d | SMALL[family][1] | settings)


def default(f: Field) -> object:
    return f.default if f.default is not MISSING else f.default_factory()


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("num_classes", [0, 3])
def test_signatures_and_ranges(family: str, resolution: int, num_classes: int) -> None:
    G, D = build(family, resolution, num_classes)
    labels = torch.tensor([0, 2, 1, 0]) if num_classes else None
    images = G(torch.randn(4, 8), labels)
    assert images.shape == (4, 3, *images.shape[2:])
    assert images.shape[2] == images.shape[3] >= resolution
    assert images.abs().max() <= (20 if family in ("r3gan", "stylegan2") else 1)  # whose last layers are linear
    assert images.std() > 0.1
    logits, features = D(images, labels, features=True)
    assert logits.shape == (4,)
    assert torch.equal(logits, D(images, labels))
    assert features
    assert all(len(f) == 4 for f in features)


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("num_classes", [0, 3])
def test_every_weight_takes_part(family: str, num_classes: int) -> None:
    """DDP waits for the gradient of each weight in each step."""
    G, D = build(family, 16, num_classes)
    labels = torch.arange(4) % 3 if num_classes else None
    D(G(torch.randn(4, 8), labels), labels).sum().backward()
    for net in (G, D):
        assert all(p.grad is not None for p in net.parameters())
        if family != "r3gan":  # whose blocks begin as the identity; its own test has them awake
            assert all(p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize("family", MODELS)
def test_the_norm_free_form_treats_each_image_by_itself(family: str) -> None:
    G, D = (net.double() for net in build(family, 16, 3))
    z, labels = torch.randn(6, 8).double(), torch.arange(6) % 3
    together, alone = G(z, labels), torch.cat([G(z[i : i + 1], labels[i : i + 1]) for i in range(6)])
    assert torch.allclose(together, alone, rtol=0, atol=1e-12)
    assert torch.allclose(D(alone, labels), torch.cat([D(alone[i : i + 1], labels[i : i + 1]) for i in range(6)]))


@pytest.mark.parametrize("family", MODELS)
def test_the_class_matters(family: str) -> None:
    G, D = build(family, 16, 3)
    z = torch.randn(1, 8).expand(3, 8)
    images = G(z, torch.arange(3))
    assert not torch.allclose(images[0], images[1])
    logits = D(images[:1].expand(3, -1, -1, -1), torch.arange(3))
    assert len(set(logits.tolist())) == 3


def test_signals_neither_grow_nor_fade_in_a_deep_norm_free_dcgan() -> None:
    """The second moment after each stage of D stays within a factor of two, and logits start of order one."""
    torch.manual_seed(0)
    D = MODELS["dcgan"].discriminator(square(256), 0, base_channels=32, max_channels=256, norm="none")
    logits, features = D(torch.randn(8, 3, 256, 256).clamp(-1, 1), features=True)
    moments = [f.square().mean().item() for f in features]
    assert max(moments) / min(moments) < 2
    assert 0.01 < logits.std() < 3


def test_dcgan_64_with_batch_norm_is_the_paper_s() -> None:
    """Radford et al. 2016: 100 -> 1024/512/256/128 -> 3 in the paper's figure; 64 base channels in its code."""
    G = MODELS["dcgan"].generator(square(64), 100, 0, base_channels=64, max_channels=512, norm="batch", embed_dim=1)
    D = MODELS["dcgan"].discriminator(square(64), 0, base_channels=64, max_channels=512, norm="batch")
    # transposed convolutions without bias, batch norm's two vectors each, and the last one with its bias
    assert (
        sum(p.numel() for p in G.parameters())
        == 16 * (100 * 512 + 512 * 256 + 256 * 128 + 128 * 64 + 64 * 3) + 2 * (512 + 256 + 128 + 64) + 3
    )
    assert (
        sum(p.numel() for p in D.parameters())
        == 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512) + 64 + 2 * (128 + 256 + 512) + 1
    )
