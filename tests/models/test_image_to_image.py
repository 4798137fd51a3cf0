"""The image-to-image networks: the article's shape, what goes straight through, and verdicts on parts."""

import pytest
import torch
from torch import Tensor, nn

from distgan.image_spec import square
from distgan.models.image_to_image import Discriminator, Generator

PLAIN = {"skips": False, "residual": False, "noise": False, "norm": "none", "embed_dim": 3}


def generator(resolution: int = 32, classes: int = 0, **settings: object) -> Generator:
    torch.manual_seed(0)
    return Generator(square(resolution), 10, classes, **{"base_channels": 4, "max_channels": 16, **PLAIN, **settings})


def discriminator(resolution: int = 32, classes: int = 0, **settings: object) -> Discriminator:
    torch.manual_seed(0)
    own = {"base_channels": 4, "max_channels": 16, "norm": "none", "paired": False, "patches": 1}
    return Discriminator(square(resolution), classes, **own | settings)


def pictures(num: int = 4, size: int = 32) -> Tensor:
    return torch.rand(num, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_the_way_down_ends_at_1_x_1_x_z_and_every_convolution_is_followed_by_leaky_relu() -> None:
    G = generator(128)
    shapes: list[tuple[int, ...]] = []
    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.LeakyReLU)
    order = [module for module in G.modules() if isinstance(module, kinds)]
    for module in order:
        module.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[1:])))
    G(pictures(1, 128), torch.zeros(1, 10))
    convolutions = shapes[:-1:2]  # the last one is followed by tanh
    assert convolutions == shapes[1:-1:2]
    sides = [shape[1] for shape in convolutions]
    assert sides == [64, 32, 16, 8, 4, 1, 4, 8, 16, 32, 64]
    assert convolutions[5] == (10, 1, 1)
    assert shapes[-1] == (3, 128, 128)
    assert [isinstance(module, nn.LeakyReLU) for module in order] == [False, True] * 11 + [False]


def test_without_skips_all_goes_through_the_code() -> None:
    G = generator()
    with torch.no_grad():
        G.encode[0].weight.zero_()
    same = G(pictures(), torch.zeros(4, 10))
    assert torch.allclose(same, same[:1].expand_as(same))
    G = generator(skips=True)
    with torch.no_grad():
        G.encode[0].weight.zero_()
    assert not torch.allclose(*G(pictures(2), torch.zeros(2, 10)))


def test_a_residual_generator_begins_near_the_degraded_picture() -> None:
    G, x = generator(residual=True), pictures()
    correction = G(x, torch.zeros(4, 10)) - x
    assert 0 < correction.std() < 0.2
    with torch.no_grad():
        G.out.weight.zero_()
    assert torch.equal(G(x, torch.zeros(4, 10)), x)


def test_latents_matter_where_noise_is_asked_for() -> None:
    x, z = pictures(), torch.randn(4, 10)
    assert torch.equal(generator()(x, z), generator()(x, 0 * z))
    assert not torch.allclose(generator(noise=True)(x, z), generator(noise=True)(x, 0 * z))


@pytest.mark.parametrize(("patches", "shape"), [(1, (4,)), (4, (4, 16)), (8, (4, 64)), (16, (4, 256))])
@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("paired", [False, True])
def test_verdicts_have_their_number(patches: int, shape: tuple[int, ...], classes: int, paired: bool) -> None:
    D = discriminator(classes=classes, patches=patches, paired=paired)
    x = torch.cat([pictures(), pictures().flip(0)], 1) if paired else pictures()
    labels = torch.arange(4) % 3 if classes else None
    logits, features = D(x, labels, features=True)
    assert logits.shape == shape
    assert features[-1].shape[2] == max(4, patches)
    logits.sum().backward()
    assert all(p.grad is not None for p in D.parameters())


def test_a_part_s_verdict_is_on_its_part_of_the_picture() -> None:
    """8 x 8 verdicts on 32 pixels see 18 pixels a side, of which 11 lie inside for one in a corner."""
    D, x = discriminator(patches=8), pictures(1).requires_grad_()
    (gradient,) = torch.autograd.grad(D(x)[0, 0], x)
    rows = gradient.abs().sum((0, 1, 3)) > 0
    assert rows[:11].all()
    assert not rows[11:].any()


def test_the_degraded_picture_matters_to_a_paired_d() -> None:
    D, x = discriminator(paired=True), pictures()
    assert not torch.allclose(D(torch.cat([x, x], 1)), D(torch.cat([x, -x], 1)))


def test_signals_neither_grow_nor_fade_at_128_pixels() -> None:
    for skips in (False, True):
        G = generator(128, base_channels=8, max_channels=64, skips=skips)
        restored = G(pictures(4, 128), torch.zeros(4, 10))
        assert 0.2 < restored.std() < 0.95
    logits = discriminator(128, base_channels=8, max_channels=64)(torch.randn(16, 3, 128, 128))
    assert 0.1 < logits.std() < 3
