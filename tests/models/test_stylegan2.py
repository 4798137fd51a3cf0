"""StyleGAN2: numbers of weights of the paper, layers against plain references, and what is drawn for each image."""

import ast
import functools
import importlib.util
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distgan.image_spec import square
from distgan.losses.path_length import path_lengths
from distgan.models import stylegan2
from distgan.models.epilogue import Epilogue
from distgan.models.image_seeds import drawing_modules, set_seeds
from distgan.models.resample import Blur

# Karras et al. 2020 (30.37M and 29.01M at 1024 px); others in closed form: see `weights`.
COUNTS = [  # side, channel base, mapping layers, classes; G; D as resnet and as orig
    (32, 32768, 8, 0, 21_523_475, 21_507_073, 20_720_641),
    (32, 32768, 2, 0, 19_947_539, 21_507_073, 20_720_641),
    (32, 32768, 2, 10, 20_215_315, 23_876_096, 23_089_664),
    (64, 32768, 8, 0, 27_032_600, 26_488_833, 25_440_257),
    (128, 32768, 8, 0, 29_328_669, 28_389_121, 27_209_473),
    (256, 16384, 8, 0, 24_767_458, 24_001_089, 23_042_625),
    (256, 32768, 8, 0, 30_034_338, 28_864_129, 27_651_713),
    (512, 32768, 8, 0, 30_276_583, 28_982_849, 27_762_241),
    (1024, 32768, 8, 0, 30_370_060, 29_012_513, 27_789_857),
]
PAPERS = functools.partial(Epilogue, minibatch="stddev", group=4)


def num_weights(net: nn.Module) -> int:
    return sum(weight.numel() for weight in net.parameters())


@pytest.mark.parametrize(("side", "base", "layers", "classes", "in_G", "in_D", "in_orig"), COUNTS)
def test_weights_are_as_many_as_in_the_paper(
    side: int, base: int, layers: int, classes: int, in_G: int, in_D: int, in_orig: int
) -> None:
    with torch.device("meta"):
        G = stylegan2.Generator(square(side, 3), 512, classes, base, mapping_layers=layers)
        nets = [
            stylegan2.Discriminator(square(side, 3), classes, base, architecture=kind, epilogue=PAPERS)
            for kind in ("resnet", "orig")
        ]
    assert (num_weights(G), *map(num_weights, nets)) == (in_G, in_D, in_orig)


def small(architecture: str = "skip", classes: int = 0, side: int = 16) -> stylegan2.Generator:
    torch.manual_seed(0)
    G = stylegan2.Generator(square(side), 6, classes, 64, w_dim=8, mapping_layers=2, architecture=architecture)
    for name, weight in G.named_parameters():
        if name.endswith(("noise_strength", "bias")):
            nn.init.normal_(weight, std=0.5)
    return G.double()


def filtered(x: Tensor, before: int, after: int, gain: float) -> Tensor:
    """Zeros around, then each channel with the outer product of [1, 3, 3, 1] / 8."""
    row = torch.tensor([1.0, 3, 3, 1], dtype=x.dtype) / 8
    kernel = gain * torch.outer(row, row).expand(x.shape[1], 1, 4, 4)
    return F.conv2d(F.pad(x, (before, after, before, after)), kernel, groups=x.shape[1])


def spread(x: Tensor) -> Tensor:
    """Zeros between pixels and after the last one."""
    out = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    out[:, :, ::2, ::2] = x
    return out


@pytest.mark.parametrize("up", [False, True])
def test_a_styled_convolution_is_one_with_modulated_weights_for_each_image(up: bool) -> None:
    """Eq. 1 and 3 of the paper, image by image; doubling is a transposed convolution, and then the filter."""
    torch.manual_seed(1)
    layer = stylegan2.StyledConv(3, 5, (8, 6), 4, up=up, noise=True).double()
    nn.init.normal_(layer.noise_strength)
    nn.init.normal_(layer.bias)
    x, w = torch.randn(2, 3, 4 if up else 8, 3 if up else 6).double(), torch.randn(2, 4).double()
    noise = torch.randn(2, 48).double()
    found = layer(x, w, noise)
    style = w @ layer.affine.weight.T / 2 + layer.affine.bias  # 2: the root of the length of w
    for i in range(2):
        weight = layer.weight * style[i][None, :, None, None]
        weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if up:
            out = filtered(F.conv_transpose2d(x[i : i + 1], weight.transpose(0, 1), stride=2), 1, 1, 4)
        else:
            out = F.conv2d(x[i : i + 1], weight, padding=1)
        out = out + layer.noise_strength * noise[i].view(8, 6) + layer.bias[:, None, None]
        torch.testing.assert_close(found[i : i + 1], math.sqrt(2) * F.leaky_relu(out, 0.2), rtol=1e-10, atol=1e-12)


def test_a_styled_convolution_is_that_of_another_implementation() -> None:
    """`Conv2DMod` of the package stylegan2-pytorch (MIT), whose styles are ours minus one; only that class is run."""
    package = importlib.util.find_spec("stylegan2_pytorch")
    if package is None or not package.submodule_search_locations:
        pytest.skip("pip install --no-deps stylegan2-pytorch")
    source = (Path(package.submodule_search_locations[0]) / "stylegan2_pytorch.py").read_text()
    (theirs,) = (node for node in ast.parse(source).body if getattr(node, "name", "") == "Conv2DMod")
    names: dict = {"nn": nn, "torch": torch, "F": F}
    exec(compile(ast.Module([theirs], []), "stylegan2_pytorch", "exec"), names)
    torch.manual_seed(0)
    ours, other = stylegan2.StyledConv(5, 7, (9, 9), 4, up=False, noise=False), names["Conv2DMod"](5, 7, 3)
    ours, other = ours.double(), other.double()
    other.weight.data.copy_(ours.weight)
    x, w = torch.randn(3, 5, 9, 9).double(), torch.randn(3, 4).double()
    expected = math.sqrt(2) * F.leaky_relu(other(x, ours.affine(w) - 1), 0.2)
    torch.testing.assert_close(ours(x, w, None), expected, rtol=1e-10, atol=1e-12)


def test_an_image_layer_scales_its_styles_and_does_not_demodulate() -> None:
    torch.manual_seed(1)
    layer = stylegan2.ToImage(6, 3, 4).double()
    x, w = torch.randn(2, 6, 5, 5).double(), torch.randn(2, 4).double()
    style = (w @ layer.affine.weight.T / 2 + 1) / math.sqrt(6)
    expected = torch.stack([F.conv2d(x[i], layer.weight * style[i][:, None, None]) for i in range(2)])
    torch.testing.assert_close(layer(x, w), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("architecture", ["orig", "skip", "resnet"])
def test_the_generator_is_its_layers_in_the_papers_order(architecture: str) -> None:
    """Figure 7: where the image comes from, and which style each layer has."""
    G = small(architecture).eval()
    styles = torch.randn(2, G.num_ws, 8).double()
    x, image, used = G.start.expand(2, -1, -1, -1), None, 0
    for number, block in enumerate(G.blocks):
        before = x
        for layer in block.layers:
            x = layer(x, styles[:, used], None)
            used += 1
        if architecture == "resnet" and number:
            shortcut = before
            weight = block.shortcut[0].weight / math.sqrt(before.shape[1])
            x = (filtered(spread(F.conv2d(shortcut, weight)), 2, 1, 4) + x) / math.sqrt(2)
        if architecture == "skip" or number == len(G.blocks) - 1:
            own = block.to_image(x, styles[:, used])
            image = own if image is None else filtered(spread(image), 2, 1, 4) + own
    assert used == G.num_ws - 1 == 2 * 3 - 1
    torch.testing.assert_close(G.synthesize(styles), image, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("architecture", ["orig", "skip", "resnet"])
@pytest.mark.parametrize("classes", [0, 3])
def test_the_discriminator_is_its_layers_in_the_papers_order(architecture: str, classes: int) -> None:
    torch.manual_seed(0)
    D = stylegan2.Discriminator(square(16), classes, 64, mapping_layers=2, architecture=architecture, epilogue=PAPERS)
    D.double()
    for weight in D.parameters():
        nn.init.normal_(weight)
    images, labels = torch.randn(4, 3, 16, 16).double(), torch.tensor([0, 2, 1, 0]) if classes else None

    def conv(layer: stylegan2.Conv, x: Tensor, **how: int) -> Tensor:
        out = F.conv2d(x, layer.weight / math.sqrt(layer.weight[0].numel()), layer.bias, **how)
        return out if layer.bias is None else math.sqrt(2) * F.leaky_relu(out, 0.2)

    def dense(layer: stylegan2.Dense, x: Tensor) -> Tensor:
        return x @ layer.weight.T / math.sqrt(x.shape[1]) + layer.bias

    x, small_images = conv(D.from_image[0], images), images
    for number, stage in enumerate(D.stages):
        out = conv(stage.second, filtered(conv(stage.first, x, padding=1), 2, 2, 1), stride=2)
        if architecture == "resnet":
            out = (out + conv(stage.shortcut[1], filtered(x, 1, 1, 1)[:, :, ::2, ::2])) / math.sqrt(2)
        x = out
        if architecture == "skip":
            small_images = filtered(small_images, 1, 1, 1)[:, :, ::2, ::2]
            x = x + conv(D.from_image[number + 1], small_images)
    deviation = (x.var(0, correction=0) + 1e-8).sqrt().mean()  # of the only group of four
    x = conv(D.conv, torch.cat([x, deviation.expand(4, 1, 4, 4)], 1), padding=1)
    vector = dense(D.head, math.sqrt(2) * F.leaky_relu(dense(D.dense, x.flatten(1)), 0.2))
    expected = vector.flatten()
    if classes:
        expected = (vector * D.mapping(None, labels)).sum(1) / math.sqrt(vector.shape[1])
    torch.testing.assert_close(D(images, labels), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("classes", [0, 3])
def test_the_mapping_normalizes_and_learns_at_a_hundredth_of_the_rate(classes: int) -> None:
    torch.manual_seed(0)
    mapping = stylegan2.Mapping(6, classes, 8, 2).double()
    for weight in mapping.parameters():
        nn.init.normal_(weight, std=100.0)
    z, labels = torch.randn(4, 6).double(), torch.tensor([0, 2, 1, 0]) if classes else None
    x = z / (z.square().mean(1, keepdim=True) + 1e-8).sqrt()
    if classes:
        y = F.one_hot(labels, 3).double() @ mapping.embed.weight / math.sqrt(3) + mapping.embed_bias
        x = torch.cat([x, y / (y.square().mean(1, keepdim=True) + 1e-8).sqrt()], 1)
    for layer in mapping.layers:
        x = math.sqrt(2) * F.leaky_relu(x @ layer.weight.T * 0.01 / math.sqrt(x.shape[1]) + 0.01 * layer.bias, 0.2)
    torch.testing.assert_close(mapping(z, labels), x, rtol=1e-10, atol=1e-10)


def test_what_is_drawn_is_a_function_of_each_image() -> None:
    """Styles that are mixed, and noise: alone as in a batch; nothing in evaluation; other passes draw others."""
    G = small(classes=3)
    z, labels, seeds = torch.randn(6, 6).double(), torch.arange(6) % 3, torch.arange(10, 16)
    (module,) = drawing_modules(G)
    set_seeds([module], seeds, "of D")
    together = G(z, labels)
    for i in range(6):
        set_seeds([module], seeds[i : i + 1], "of D")
        torch.testing.assert_close(G(z[i : i + 1], labels[i : i + 1])[0], together[i], rtol=1e-10, atol=1e-12)
    set_seeds([module], seeds, "of G")
    assert not torch.allclose(G(z, labels), together)
    G.eval()
    still = G(z, labels)
    assert torch.equal(still, G(z, labels))
    set_seeds([module], seeds + 1, "of G")
    assert torch.equal(still, G(z, labels))


def test_styles_are_mixed_as_often_and_from_the_layers_that_the_paper_says() -> None:
    G, num = small(), 4000
    set_seeds([G], torch.arange(num), "of G")
    z = torch.randn(num, 6, generator=torch.Generator().manual_seed(0)).double()
    styles, own = G.styles(z), G.mapping(z, None)
    is_own = (styles == own[:, None]).all(2)
    assert is_own[:, 0].all()
    assert is_own.all(1).double().mean().item() == pytest.approx(1 - G.mixing, abs=0.02)
    first_of_other = is_own.sum(1)[~is_own.all(1)]
    assert (is_own.long().diff(dim=1) <= 0).all()  # one cut
    shares = torch.bincount(first_of_other, minlength=G.num_ws)[1:].double() / len(first_of_other)
    torch.testing.assert_close(shares, torch.full_like(shares, 1 / (G.num_ws - 1)), rtol=0, atol=0.03)


def test_path_lengths_are_those_of_finite_differences() -> None:
    G = small().eval()
    styles = torch.randn(2, G.num_ws, 8).double().requires_grad_()
    noise = torch.randn(2, 3 * 16 * 16).double()
    lengths = path_lengths(G.synthesize(styles), styles, noise)
    direction = noise.view(2, 3, 16, 16) / 16
    gradient, step = torch.zeros_like(styles), 1e-6
    with torch.no_grad():
        for index in range(styles[0].numel()):
            moved = torch.zeros_like(styles).flatten(1)
            moved[:, index] = step
            change = G.synthesize(styles + moved.view_as(styles)) - G.synthesize(styles - moved.view_as(styles))
            gradient.view(2, -1)[:, index] = (change * direction).sum((1, 2, 3)) / (2 * step)
    expected = gradient.square().sum(2).mean(1).sqrt()
    torch.testing.assert_close(lengths.detach(), expected, rtol=1e-6, atol=1e-9)
    weight = G.blocks[1].layers[0].affine.weight  # the derivative of the penalty, too
    (analytic,) = torch.autograd.grad((lengths - 0.3).square().mean(), weight)

    def penalty() -> float:
        own = styles.detach().requires_grad_()
        return (path_lengths(G.synthesize(own), own, noise) - 0.3).square().mean().item()

    with torch.no_grad():
        values = []
        for sign in (1, -1):
            weight[1, 2] += sign * step
            with torch.enable_grad():
                values.append(penalty())
            weight[1, 2] -= sign * step
    assert analytic[1, 2].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5)


def test_signals_start_of_order_one_at_every_size() -> None:
    torch.manual_seed(0)
    for side in (16, 128):
        G = stylegan2.Generator(square(side), 64, 0, 1024, max_channels=64, w_dim=64).eval()
        D = stylegan2.Discriminator(square(side), 0, 1024, max_channels=64)
        images = G(torch.randn(16, 64))
        assert 0.2 < images.std() < 5
        assert 0.01 < D(images.clamp(-1, 1)).std() < 5


def test_a_blur_is_the_filter_of_each_channel() -> None:
    x = torch.randn(2, 3, 7, 6).double()
    for padding, gain in ((1, 4.0), (2, 1.0)):
        torch.testing.assert_close(Blur(3, padding, gain).double()(x), filtered(x, padding, padding, gain))
