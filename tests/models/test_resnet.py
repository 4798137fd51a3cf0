"""SNGAN's and BigGAN's residual networks: layouts, spectral norm, attention, conditional norm, gradients."""

import contextlib
import copy
import functools
import math

import pytest
import torch
from finite_differences import check_r1
from torch import nn
from torch.nn.utils import parametrize

from distgan.image_spec import square
from distgan.losses.gradient_penalty import squared_gradient
from distgan.models import resnet
from distgan.models import spectral_norm as spectral
from distgan.models.epilogue import Epilogue


def small(
    resolution: int, num_classes: int, norm: str = "batch", spectral: bool = True, attention: int = 0
) -> tuple[resnet.Generator, resnet.Discriminator]:
    """G and D with few channels. No block of G has the side 4."""
    torch.manual_seed(0)
    of_g = max(attention, 8) if attention else 0
    G = resnet.Generator(square(resolution), 5, num_classes, base_channels=8, norm=norm, attention=of_g, embed_dim=3)
    return G, resnet.Discriminator(
        square(resolution), num_classes, base_channels=8, spectral_norm=spectral, attention=attention
    )


def num_weights(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def normalised(net: nn.Module) -> list[nn.Module]:
    """Layers with spectral norm."""
    return [layer for layer in net.modules() if parametrize.is_parametrized(layer)]


@pytest.mark.parametrize("resolution", [8, 16, 32, 64, 128])
@pytest.mark.parametrize(("num_classes", "norm"), [(0, "batch"), (3, "batch"), (3, "conditional"), (3, "none")])
def test_shapes_and_ranges(resolution: int, num_classes: int, norm: str) -> None:
    G, D = small(resolution, num_classes, norm, attention=resolution // 2)
    labels = torch.tensor([0, 2, 1, 0]) if num_classes else None
    images = G(torch.randn(4, 5), labels)
    assert images.shape == (4, 3, resolution, resolution)
    assert images.abs().max() <= 1
    assert images.std() > 0.1
    logits, features = D.eval()(images, labels, features=True)
    assert logits.shape == (4,)
    assert torch.equal(logits, D(images, labels))
    assert [len(f) for f in features] == [4] * max(4, resolution.bit_length() - 2)


def test_large_resolutions() -> None:
    with torch.device("meta"):
        G, D = small(1024, 3, "conditional", attention=32)
        z, labels = torch.randn(2, 5), torch.zeros(2, dtype=torch.long)
        images = G(z, labels)
        assert images.shape == (2, 3, 1024, 1024)
        assert D(images, labels).shape == (2,)


def test_the_cifar_networks_have_sngan_s_layout() -> None:
    """Miyato et al. 2018, table 3, with z of 128 numbers. Biases that batch norm takes away are left out of G."""
    with torch.device("meta"):
        G, D = resnet.Generator(square(32), 128, 0), resnet.Discriminator(square(32), 0)
        features = D(torch.randn(2, 3, 32, 32), features=True)[1]
    assert [f.shape[1:] for f in features] == [(128, 16, 16), (128, 8, 8), (128, 8, 8), (128, 8, 8)]
    block = 2 * 9 * 256 * 256 + 256 * 256 + 2 * 2 * 256
    assert num_weights(G) == (128 + 1) * 256 * 16 + 3 * block + 2 * 256 + (9 * 256 + 1) * 3
    conv = (9 * 128 + 1) * 128
    first, second = (9 * 3 + 1) * 128 + conv + (3 + 1) * 128, 2 * conv + (128 + 1) * 128
    assert num_weights(D) == first + second + 2 * 2 * conv + 128 + 1


@pytest.mark.parametrize(
    ("resolution", "of_g", "of_d"),
    [
        (64, [1024, 512, 256, 128, 64], [64, 128, 256, 512, 1024]),
        (128, [1024, 1024, 512, 256, 128, 64], [64, 128, 256, 512, 1024, 1024]),
    ],
)
def test_larger_networks_have_sngan_s_and_biggan_s_layout(resolution: int, of_g: list[int], of_d: list[int]) -> None:
    """From 4 x 4 to R in G, from R / 2 to 4 x 4 and once more 4 x 4 in D."""
    with torch.device("meta"):
        G, D = (
            resnet.Generator(square(resolution), 128, 0),
            resnet.Discriminator(square(resolution), 0),
        )
        features = D(torch.randn(2, 3, resolution, resolution), features=True)[1]
    assert [G.dense.out_features // 16] + [block.second.out_channels for block in G.blocks] == of_g
    sides = [resolution // 2**i for i in range(1, len(of_d))] + [4]
    assert [f.shape[1:] for f in features] == [(width, side, side) for width, side in zip(of_d, sides)]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="norm=conditional"):
        resnet.Generator(square(32), 5, 0, norm="conditional")
    with pytest.raises(ValueError, match=r"attention=4: .* one of 8, 16, 32"):
        resnet.Generator(square(32), 5, 0, base_channels=8, attention=4)
    with pytest.raises(ValueError, match=r"attention=32: .* one of 16, 8$"):
        resnet.Discriminator(square(32), 0, base_channels=8, attention=32)


@pytest.mark.parametrize(("num_classes", "norm"), [(0, "batch"), (3, "batch"), (3, "conditional"), (3, "none")])
@pytest.mark.parametrize("spectral", [True, False])
def test_gradients_reach_every_weight(num_classes: int, norm: str, spectral: bool) -> None:
    """At the start all but those behind attention's gain of zero."""
    G, D = (net.double() for net in small(16, num_classes, norm, spectral, attention=8))
    z, labels = torch.randn(4, 5).double(), torch.arange(4) % 3 if num_classes else None
    for gain in (0.0, 1.0):
        for net in (G, D):
            for layer in net.modules():
                if isinstance(layer, resnet.SelfAttention):
                    nn.init.constant_(layer.gain, gain)
            net.zero_grad()
        D(G(z, labels), labels).sum().backward()
        for net in (G, D):
            for name, p in net.named_parameters():
                asleep = ".attention." in name and not name.endswith(".gain") and gain == 0
                assert p.grad is not None
                assert (p.grad.abs().max() > 1e-9) != asleep, name


def test_each_image_is_seen_by_itself() -> None:
    G, D = (net.double().eval() for net in small(16, 3, "none", attention=8))
    for attention in (G.blocks[0].attention, D.blocks[0].attention):
        nn.init.ones_(attention.gain)
    z, labels = torch.randn(6, 5).double(), torch.arange(6) % 3
    alone = torch.cat([G(z[i : i + 1], labels[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(G(z, labels), alone, rtol=0, atol=1e-12)
    judged = torch.cat([D(alone[i : i + 1], labels[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(D(alone, labels), judged, rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", ["batch", "conditional", "none"])
def test_the_class_matters(norm: str) -> None:
    G, D = small(16, 3, norm)
    images = G.eval()(torch.randn(1, 5).expand(3, -1), torch.arange(3))
    assert (images[0] - images[1]).abs().max() > 0.01
    logits = D(images[:1].expand(3, -1, -1, -1), torch.arange(3))
    assert len(set(logits.tolist())) == 3


def test_the_logit_is_a_dense_layer_and_a_projection() -> None:
    _, D = small(16, 3)
    images, labels = torch.randn(4, 3, 16, 16), torch.tensor([2, 0, 1, 1])
    logits, features = D.eval()(images, labels, features=True)
    h = features[-1].clamp(min=0).sum((2, 3))
    expected = h @ D.head.weight[0] + D.head.bias + torch.einsum("bc,bc->b", h, D.embed.weight[labels])
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("resolution", [32, 256])
def test_signals_neither_grow_nor_fade_without_norm(resolution: int) -> None:
    torch.manual_seed(0)
    G, moments = resnet.Generator(square(resolution), 64, 0, base_channels=32, norm="none"), []
    for block in G.blocks:
        block.register_forward_hook(lambda _block, _inputs, out: moments.append(out.square().mean().item()))
    with torch.no_grad():
        images = G(torch.randn(4, 64))
    assert min(moments) > 0.3
    assert max(moments) < 3
    assert 0.2 < images.std() < 0.8
    D = resnet.Discriminator(square(resolution), 3, base_channels=32, spectral_norm=False)
    smooth = nn.functional.interpolate(torch.randn(8, 3, 4, 4), size=(resolution, resolution), mode="bilinear")
    with torch.no_grad():
        logits, features = D(smooth, torch.arange(8) % 3, features=True)
    moments = [f.square().mean().item() for f in features]
    assert max(moments) / min(moments) < 5
    assert 0.03 < logits.std() < 3


def test_spectral_norm_makes_the_largest_singular_value_one() -> None:
    _, D = small(16, 3, attention=8)
    layers = normalised(D)
    # three convolutions in the first two blocks, two in the others; four in attention; head and classes
    assert len(layers) == 2 * 3 + 2 * 2 + 4 + 2
    assert {kind for layer in layers for kind in (nn.Conv2d, nn.Linear, nn.Embedding) if isinstance(layer, kind)} == {
        nn.Conv2d,
        nn.Linear,
        nn.Embedding,
    }
    for _ in range(300):
        spectral.power_iteration_step(spectral.spectral_norm_layers(D))
    for layer in layers:
        largest = torch.linalg.svdvals(layer.weight.detach().flatten(1))[0].item()
        assert largest == pytest.approx(1, abs=1e-3)


def test_spectral_norm_differentiates_the_singular_value() -> None:
    """Equation 12 of the paper: the derivative of the norm by W is u v^T."""
    weight = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    norm = spectral.SpectralNorm(weight).eval()
    assert torch.autograd.gradcheck(norm, weight.clone().requires_grad_())
    assert torch.autograd.gradgradcheck(norm, weight.clone().requires_grad_())


@pytest.mark.parametrize("order", [1, 2])
def test_weights_normalized_once_have_the_gradients_of_those_normalized_in_each_forward(order: int) -> None:
    _, D = small(16, 3)
    D.double()
    images, labels = torch.randn(4, 3, 16, 16, dtype=torch.float64, requires_grad=True), torch.tensor([0, 2, 1, 0])

    def gradients(once: contextlib.AbstractContextManager) -> tuple[torch.Tensor, ...]:
        with once:
            loss = D(images, labels).square().mean() + D(2 * images, labels).mean()
        if order == 2:
            (of_images,) = torch.autograd.grad(loss, images, create_graph=True)
            loss = of_images.square().sum()
        return torch.autograd.grad(loss, list(D.parameters()), allow_unused=True)

    layers = spectral.spectral_norm_layers(D)
    for one, other in zip(gradients(spectral.normalized_once(layers)), gradients(contextlib.nullcontext())):
        assert (one is None) == (other is None)
        assert one is None or torch.allclose(one, other, rtol=1e-10, atol=1e-14)
    assert all(norm.normalized is None for norm, _ in layers)


def test_a_step_of_power_iteration_is_algorithm_1() -> None:
    _, D = small(16, 3)
    layers = spectral.spectral_norm_layers(D)
    with torch.no_grad():
        layers[0][1].zero_()
    expected = []
    for norm, weight in layers:
        rows = weight.detach().flatten(1)
        v = nn.functional.normalize(rows.T @ norm.u, dim=0)
        expected += [nn.functional.normalize(rows @ v, dim=0), v]
    spectral.power_iteration_step(layers)
    for found, vector in zip((vector for norm, _ in layers for vector in (norm.u, norm.v)), expected):
        torch.testing.assert_close(found, vector)


def test_only_advance_moves_the_power_iteration() -> None:
    """So the update does not depend on how often D looks at images in it; and the vectors are part of the state."""
    _, D = small(16, 3)
    images, labels = torch.randn(2, 3, 16, 16), torch.tensor([0, 2])
    vectors = dict(D.named_buffers())
    assert len(vectors) == 2 * len(normalised(D))
    assert all(name in D.state_dict() for name in vectors)
    before = {name: vector.clone() for name, vector in vectors.items()}
    D(images, labels)
    assert all(torch.equal(vectors[name], before[name]) for name in vectors)
    spectral.power_iteration_step(spectral.spectral_norm_layers(D))
    assert any(not torch.equal(vectors[name], before[name]) for name in vectors)
    other = resnet.Discriminator(square(16), 3, base_channels=8)
    other.load_state_dict(D.state_dict())
    assert torch.equal(D(images, labels), other(images, labels))


def test_a_step_of_the_iteration_between_forward_and_backward_does_not_matter() -> None:
    """The gradient is that of the vectors that the forward saw."""
    _, D = small(16, 3)
    twin, images, labels = copy.deepcopy(D), torch.randn(2, 3, 16, 16), torch.tensor([0, 2])
    logits = D(images, labels)
    spectral.power_iteration_step(spectral.spectral_norm_layers(D))
    logits.sum().backward()
    twin(images, labels).sum().backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(D.parameters(), twin.parameters()))


def test_spectral_norm_does_not_round_under_autocast() -> None:
    layer = nn.Linear(32, 16)
    parametrize.register_parametrization(layer, "weight", spectral.SpectralNorm(layer.weight))
    layer.eval()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = layer.weight
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, layer.weight)


def test_attention_is_the_paper_s_formula() -> None:
    torch.manual_seed(0)
    layer = resnet.SelfAttention(16).double()
    x = torch.randn(2, 16, 4, 6, dtype=torch.float64)
    assert layer.gain.item() == 0
    assert torch.equal(layer(x), x)
    nn.init.constant_(layer.gain, 0.7)
    found = layer(x).detach()
    matrices = [conv.weight.detach()[:, :, 0, 0] for conv in (layer.query, layer.key, layer.value, layer.out)]
    assert [tuple(m.shape) for m in matrices] == [(2, 16), (2, 16), (8, 16), (16, 8)]
    query, key, value, out = matrices
    for b in range(2):
        squares = [x[b, :, i : i + 2, j : j + 2].flatten(1) for i in (0, 2) for j in (0, 2, 4)]
        keys = [(key @ square).max(1).values for square in squares]
        values = [(value @ square).max(1).values for square in squares]
        for i in range(4):
            for j in range(6):
                scores = [math.exp((query @ x[b, :, i, j]) @ k) for k in keys]
                mixed = sum(score / sum(scores) * v for score, v in zip(scores, values))
                torch.testing.assert_close(found[b, :, i, j], x[b, :, i, j] + 0.7 * out @ mixed)


@pytest.mark.parametrize("halves", [True, False])
def test_the_shortcut_of_d_sees_what_the_block_was_given(halves: bool) -> None:
    """Not its rectified form, which ReLU in place would make of it."""
    torch.manual_seed(0)
    block = resnet.DiscriminatorBlock(4, 6, is_first=False, halves=halves).double()
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    given, conv = x.clone(), torch.nn.functional.conv2d
    inner = conv(x.clamp(min=0), block.first.weight, block.first.bias, padding=1)
    inner = conv(inner.clamp(min=0), block.second.weight, block.second.bias, padding=1)
    expected = conv(x, block.shortcut.weight, block.shortcut.bias) + inner
    if halves:
        expected = expected.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5))
    torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-13)
    assert torch.equal(x, given)


def test_conditional_norm_is_its_formula() -> None:
    torch.manual_seed(0)
    layer = resnet.Norm(6, "conditional", embed_dim=3).double()
    x, code = 2 + 3 * torch.randn(5, 6, 4, 4, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    other = resnet.Norm(4, "conditional", embed_dim=3).double()  # of the same network
    _, affine = resnet.gains_and_biases([other, layer], code)
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    for b, found in enumerate(layer(x, affine)):
        for c in range(6):
            plain = (x[b, c] - mean[c]) / (variance[c] + 1e-5).sqrt()
            gain, bias = 1 + layer.gain.weight[c] @ code[b], layer.bias.weight[c] @ code[b]
            torch.testing.assert_close(found[c], gain * plain + bias)
    before = layer.norm.running_mean.clone()
    layer.eval()(x, affine)
    assert torch.equal(layer.norm.running_mean, before)
    assert before.abs().max() > 0


def test_batch_norm_can_become_that_across_ranks() -> None:
    for norm in ("batch", "conditional"):
        G = nn.SyncBatchNorm.convert_sync_batchnorm(small(16, 3, norm)[0])
        assert sum(isinstance(m, nn.SyncBatchNorm) for m in G.modules()) == 2 * 2 + 1
        assert not any(isinstance(m, nn.BatchNorm2d) for m in G.modules())


@pytest.mark.parametrize("resolution", [32, 64])
def test_a_minibatch_layer_sits_before_the_head(resolution: int) -> None:
    torch.manual_seed(0)
    D = resnet.Discriminator(
        square(resolution), 3, base_channels=8, epilogue=functools.partial(Epilogue, minibatch="stddev")
    ).eval()
    images, labels = torch.randn(4, 3, resolution, resolution), torch.arange(4) % 3
    assert D.head.in_features == D.embed.embedding_dim + 1
    others = torch.cat([images[:1], 9 * images[1:]])
    assert D(images, labels)[0] != D(others, labels)[0]


@pytest.mark.parametrize("spectral", [True, False])
def test_r1_has_the_right_gradient(spectral: bool) -> None:
    """Double backward against finite differences, in every weight."""
    _, D = small(8, 3, spectral=spectral, attention=4)
    nn.init.ones_(D.blocks[0].attention.gain)
    check_r1(D.double(), num_classes=3, resolution=8)


def test_r1_in_training_mode_takes_part_of_the_same_pass() -> None:
    _, D = small(16, 3)
    images, labels = torch.randn(2, 3, 16, 16).requires_grad_(), torch.tensor([0, 2])
    real, fake = D(images, labels), D(torch.randn(2, 3, 16, 16), labels)
    (fake.mean() - real.mean() + squared_gradient(real, images)).backward()
    assert all(p.grad.isfinite().all() for p in D.parameters())
