"""Networks for any channels and size: equivalences that pin down each layer, and what is refused."""

import functools
from dataclasses import MISSING, Field

import pytest
import torch
from torch import Tensor, nn

from distgan.config.fields import leaves
from distgan.config.model_schema import FAMILIES
from distgan.errors import ConfigError
from distgan.image_spec import ImageSpec, square
from distgan.models import MODELS
from distgan.models.epilogue import Epilogue
from distgan.models.networks import build_nets

SPECS = [ImageSpec(64, 64, 1), ImageSpec(64, 96, 4), ImageSpec(48, 48, 5), ImageSpec(40, 96, 3)]
SMALL = {"base_channels": 4, "max_channels": 8, "widths": [4, 8], "group_width": 2, "blocks": 1, "embed_dim": 3}
SMALL |= {"channel_base": 64, "w_dim": 6, "mapping_layers": 2}
SMALL |= {"norm": "none", "spectral_norm": False, "noise": True, "skips": True}
PIXELS = {  # names of dense layers over pixels, and the axes of each pixel's numbers before and after the grid
    "dcgan": {},
    "r3gan": {},
    "resnet": {"dense.weight": "channels first", "dense.bias": "channels first"},
    "hourglass": {"dense.weight": "channels last", "head.weight": "inputs"},
    "restore": {},
    "stylegan2": {"dense.weight": "channels in front"},
}


def default(f: Field) -> object:
    return f.default if f.default is not MISSING else f.default_factory()


def build(
    family: str, image: ImageSpec, num_classes: int = 3, minibatch: str = "none", **settings: object
) -> tuple[nn.Module, nn.Module]:
    """G and D with few channels and without norms, in float64; settings that a network does not have are left out."""
    torch.manual_seed(0)
    known = SMALL | settings
    own = [{name: known.get(name, default(field)) for name, field in leaves(schema)} for schema in FAMILIES[family]]
    epilogue = functools.partial(Epilogue, minibatch=minibatch, group=2)
    G = MODELS[family].generator(image, 8, num_classes, **own[0])
    return G.double(), MODELS[family].discriminator(image, num_classes, **own[1], epilogue=epilogue).double()


def latents(num: int = 4) -> Tensor:
    return torch.randn(num, 8, generator=torch.Generator().manual_seed(1)).double()


def pictures(image: ImageSpec, num: int = 4) -> Tensor:
    shape = num, image.channels, image.height, image.width
    return torch.rand(shape, generator=torch.Generator().manual_seed(2)).double() * 2 - 1


def generate(family: str, G: nn.Module, given: Tensor, labels: Tensor | None) -> Tensor:
    return G(given, latents(len(given)), labels) if family == "restore" else G(latents(len(given)), labels)


def can(family: str, image: ImageSpec) -> bool:
    return family != "hourglass" or image.height % 32 == image.width % 32 == 0


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("image", SPECS, ids=lambda image: f"{image.size}x{image.channels}")
@pytest.mark.parametrize("num_classes", [0, 3])
def test_every_weight_takes_part(family: str, image: ImageSpec, num_classes: int) -> None:
    """The gradient of a penalty on D's gradient too."""
    if not can(family, image):
        pytest.skip("hourglass needs multiples of 32: its refusal is tested below")
    G, D = build(family, image, num_classes, minibatch="stddev")
    labels = torch.arange(4) % 3 if num_classes else None
    images = generate(family, G, pictures(image), labels)
    assert images.shape == (4, image.channels, image.height, image.width)
    logits, features = D(images, labels, features=True)
    assert logits.shape == (4,)
    assert all(len(f) == 4 for f in features)
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    (gradient.square().sum() + logits.sum()).backward()
    for net in (G, D):
        assert all(p.grad is not None for p in net.parameters())
        if family != "r3gan":  # whose blocks begin as the identity
            assert all(p.grad.abs().sum() > 0 for p in net.parameters())


def transposed(family: str, name: str, value: Tensor, grid: tuple[int, int]) -> Tensor:
    """A weight of the network whose images are transposed; `grid`: height and width of a layer over pixels."""
    if name.endswith("compare.T"):
        return value.unflatten(0, (-1, *grid)).transpose(1, 2).flatten(0, 2)
    kind = PIXELS[family].get(name, "")
    if kind == "channels first":
        return value.unflatten(0, (-1, *grid)).transpose(1, 2).flatten(0, 2)
    if kind == "channels last":
        return value.unflatten(0, (*grid, -1)).transpose(0, 1).flatten(0, 2)
    if kind == "channels in front":
        return value.unflatten(1, (-1, *grid)).transpose(2, 3).flatten(1)
    if kind == "inputs":
        return value.unflatten(1, (*grid, -1)).transpose(1, 2).flatten(1)
    return value.mT if value.ndim >= 3 else value  # kernels and grids


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("kind", ["plain", "other"])
def test_the_transposed_network_makes_the_transposed_images(family: str, kind: str) -> None:
    """And gives the same logits to them. The other form has attention, patches, pairs and comparisons."""
    tall, wide = ImageSpec(64, 96, 2), ImageSpec(96, 64, 2)
    options: list[dict] = [{}, {}]
    minibatch = "none"
    if kind == "other":
        # both name a height: 16 x 24 pixels of one are 24 x 16 of the other
        options = [{"attention": 16, "patches": 8}, {"attention": 24, "patches": 12}]
        minibatch = "discrimination"
    nets, others = (
        build(family, image, minibatch=minibatch, paired=kind == "other", **own)
        for image, own in zip((tall, wide), options)
    )
    grids = [tall.start_grid] * 2
    if family == "hourglass":
        grids = [(64, 96), (2, 3)]
    elif family == "restore" and kind == "other":
        grids = [tall.start_grid, (8, 12)]
    for net, other, grid in zip(nets, others, grids):
        for (name, value), target in zip(net.named_parameters(), other.parameters(), strict=True):
            equal_rate = family == "stylegan2"  # which scales its weights itself
            nn.init.normal_(value, std=1.0 if equal_rate else 0.1 if value.ndim > 1 else 0.3)
            target.data.copy_(transposed(family, name, value.detach(), grid))
        for (name, value), target in zip(net.named_buffers(), other.buffers(), strict=True):
            if name.endswith("noise"):
                target.copy_(value.mT)
    given, labels = pictures(tall), torch.arange(4) % 3
    images = generate(family, nets[0], given, labels)
    found = generate(family, others[0], given.mT.contiguous(), labels)
    assert images.std() > 1e-3
    torch.testing.assert_close(found, images.mT, rtol=1e-9, atol=1e-11)
    seen = torch.cat([images, given], 1) if family == "restore" and kind == "other" else images
    logits, turned = nets[1](seen, labels), others[1](seen.mT.contiguous(), labels)
    if logits.ndim == 2:
        logits = logits.unflatten(1, (8, 12)).mT.flatten(1)
    assert logits.std() > 1e-4
    torch.testing.assert_close(turned, logits, rtol=1e-9, atol=1e-11)


INPUTS = ("layers.0.0.weight", "down.0.0.weight")  # of G, where it is given an image or starts from one


@pytest.mark.parametrize("family", [name for name in MODELS if name != "stylegan2"])  # whose scale is of the channels
def test_gray_images_make_the_gradients_of_three_equal_channels(family: str) -> None:
    """G's last layer makes the channel three times; D's first layer is the sum of the three over channels."""
    ones, threes = (build(family, ImageSpec(64, 32, channels)) for channels in (1, 3))
    layers = []  # which differ: their gradients, the dimension of channels, and whether channels are inputs there
    for number, (net, net3) in enumerate(zip(ones, threes)):
        for (name, one), three in zip(net.named_parameters(), net3.parameters(), strict=True):
            nn.init.normal_(three, std=0.1)
            if one.shape == three.shape:
                one.data.copy_(three)
                layers.append((name, one, three, -1, False))
                continue
            dim = next(i for i, (a, b) in enumerate(zip(one.shape, three.shape)) if a != b)
            is_input = number == 1 or (family in ("hourglass", "restore") and name in INPUTS)
            if is_input:
                one.data.copy_(three.sum(dim, keepdim=True))
            else:
                nn.init.normal_(one, std=0.1)
                three.data.copy_(one.repeat_interleave(3, dim))
            layers.append((name, one, three, dim, is_input))
    given, labels = pictures(ImageSpec(64, 32, 1)), torch.arange(4) % 3
    logits = []
    for (G, D), condition in ((ones, given), (threes, given.expand(-1, 3, -1, -1))):
        logits.append(D(generate(family, G, condition, labels), labels))
        logits[-1].square().sum().backward()
    torch.testing.assert_close(*logits, rtol=1e-10, atol=0)
    assert sum(dim >= 0 for *_, dim, _ in layers) >= 2
    for name, one, three, dim, is_input in layers:
        found, expected = one.grad, three.grad
        assert found is not None and expected is not None
        if dim >= 0:
            per_channel = expected.unflatten(dim, (-1, 3)).movedim(dim + 1, 0)
            # an input is the same in all channels, and so is the gradient; outputs share theirs out
            expected = per_channel[0] if is_input else per_channel.sum(0)
            assert not is_input or torch.allclose(per_channel, per_channel[:1].expand_as(per_channel), rtol=1e-9)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12, msg=name)


@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize("spectral", [False, True])
def test_logits_of_resnet_do_not_grow_with_the_start_grid(num_classes: int, spectral: bool) -> None:
    """A map of 50 x 50 pixels is added up before the head; that of 32 pixels has 8 x 8."""
    spread = []
    for side in (32, 200):
        torch.manual_seed(0)
        D = MODELS["resnet"].discriminator(square(side), num_classes, base_channels=8, spectral_norm=spectral)
        logits = D(torch.rand(16, 3, side, side) * 2 - 1, torch.arange(16) % 3 if num_classes else None)
        spread.append(logits.square().mean().sqrt().item())
    assert spread[1] < 3 * spread[0]


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("size", [(33, 64), (50, 1024), (8, 8 * 33), (7, 7)])
def test_sizes_that_do_not_double_are_refused(family: str, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"data.resolution=.* such as "):
        build(family, ImageSpec(*size))


def test_a_refusal_of_a_family_is_an_error_of_the_config() -> None:
    with pytest.raises(ConfigError, match=r"model.family=r3gan: data.resolution=\[33,64\]: .* such as \[32,64\] or"):
        build_nets("r3gan", ImageSpec(33, 64), 8, 0, {}, {}, seed=0)


def test_what_a_size_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"attention=3: no block .*\(none\) or one of 6$"):
        MODELS["resnet"].discriminator(ImageSpec(12, 20), 0, base_channels=8, attention=3)  # 3 x 5
    with pytest.raises(ValueError, match=r"attention=24: .*\(none\) or one of 6, 12$"):
        MODELS["resnet"].generator(ImageSpec(12, 20), 8, 0, base_channels=8, attention=24)
    with pytest.raises(ValueError, match=r"patches=4: .* one of 1, 5, 10, 20$"):
        build("restore", ImageSpec(40, 96), patches=4)
