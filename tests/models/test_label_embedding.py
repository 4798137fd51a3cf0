"""Vectors of conditions in the networks: one-hot vectors are classes, to the gradient; outputs have second moment 1."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from distgan.condition_spec import VectorInput
from distgan.image_spec import square
from distgan.models import MODELS
from distgan.models.label_embedding import VectorEmbedding

CLASSES, Z_DIM = 3, 6
SETTINGS = {
    "dcgan": 2 * ({"base_channels": 4, "max_channels": 8, "norm": "none"},),
    "r3gan": 2 * ({"widths": [4], "blocks": 1, "group_width": 2},),
    "resnet": ({"base_channels": 4, "norm": "none"}, {"base_channels": 4}),
    "conditional norm": ({"base_channels": 4, "norm": "conditional"}, {"base_channels": 4, "spectral_norm": False}),
    "hourglass": 2 * ({"base_channels": 2, "norm": "none"},),
    "restore": (
        {"base_channels": 4, "max_channels": 8, "norm": "none", "skips": True, "residual": True, "noise": True},
        {"base_channels": 4, "max_channels": 8, "norm": "none", "paired": False, "patches": 1},
    ),
}


def gradients(G: nn.Module, D: nn.Module, labels: torch.Tensor, restores: bool) -> dict[str, torch.Tensor]:
    """Of all weights, by a loss of images and logits with a penalty on D's gradient in the images."""
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(5, Z_DIM, generator=generator, dtype=torch.float64)
    pictures = torch.randn(5, 3, 32, 32, generator=generator, dtype=torch.float64)
    images = G(pictures, z, labels) if restores else G(z, labels)
    logits = D(images, labels)
    (slope,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    (F.softplus(-logits).mean() + slope.square().sum() + images.square().mean()).backward()
    nets = {"G": G, "D": D}
    return {f"{name}.{key}": weight.grad for name, net in nets.items() for key, weight in net.named_parameters()}


@pytest.mark.parametrize("family", SETTINGS)
def test_one_hot_vectors_are_classes(family: str) -> None:
    """With weights of the class networks, gradients are equal in float64; the column of "unknown" gets none."""
    g, d = SETTINGS[family]
    of = MODELS["resnet" if family == "conditional norm" else family]
    labels = torch.tensor([0, 2, 1, 1, 0])

    def nets(labeled: int | VectorInput) -> tuple[nn.Module, nn.Module]:
        torch.manual_seed(0)
        made = of.generator(square(32), Z_DIM, labeled, **g, embed_dim=3), of.discriminator(square(32), labeled, **d)
        return made[0].double(), made[1].double()

    by_class, by_vector = nets(CLASSES), nets(VectorInput(CLASSES, 1.0))
    for one, other in zip(by_class, by_vector):
        other.load_state_dict(one.state_dict())
    one_hot = F.one_hot(labels, CLASSES).double()
    found = [gradients(*pair, given, family == "restore") for pair, given in ((by_class, labels), (by_vector, one_hot))]
    assert any("embed" in name for name in found[0])
    for name, expected in found[0].items():
        scale = expected.abs().max().item() or 1.0
        assert (found[1][name] - expected).abs().max().item() / scale < 1e-11, name


@pytest.mark.parametrize("family", ["dcgan", "r3gan", "resnet", "hourglass"])
def test_the_embedding_starts_with_second_moment_one(family: str) -> None:
    vectors = torch.randn(4000, 20) * 3 * (torch.rand(20) < 0.7)
    moment = vectors.square().sum(1).mean().item()
    settings = SETTINGS[family][0] | {"embed_dim": 400}
    torch.manual_seed(0)
    embed = MODELS[family].generator(square(32), Z_DIM, VectorInput(20, moment), **settings).embed
    assert isinstance(embed, VectorEmbedding)
    assert embed(vectors).square().mean().item() == pytest.approx(1.0, rel=0.1)


def test_an_unknown_field_has_a_vector_of_its_own_that_learns() -> None:
    torch.manual_seed(0)
    embed = VectorEmbedding(VectorInput(2, 1.0), 4)  # a flag: set, unknown
    embed(torch.tensor([[0.0, 1.0]])).sum().backward()
    assert embed.weight.grad is not None
    assert embed.weight.grad.tolist() == [[0.0] * 4, [1.0] * 4]
