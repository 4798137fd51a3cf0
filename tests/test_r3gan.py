"""R3GAN: shapes, sizes of the published presets, its start as an identity, resampling, gradients of both orders."""

import functools

import numpy as np
import pytest
import torch
from finite_differences import check_r1
from torch import nn

from distgan.models import r3gan
from distgan.models.tail import Tail


def small(resolution: int, num_classes: int, **settings: object) -> tuple[r3gan.Generator, r3gan.Discriminator]:
    """G and D with few channels."""
    torch.manual_seed(0)
    own = {"widths": [8, 8, 4], "blocks": 1, "group_width": 2, **settings}
    G = r3gan.Generator(resolution, 5, num_classes, embedding=3, **own)
    return G, r3gan.Discriminator(resolution, num_classes, **own)


def awake(net: nn.Module) -> nn.Module:
    """With the last convolution of each block as its siblings are at the start, where it was zero."""
    for block in net.modules():
        if isinstance(block, r3gan.Block):
            nn.init.normal_(block.project.weight, std=block.project.in_channels**-0.5)
    return net


def num_weights(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("resolution", [8, 16, 32, 64, 128])
@pytest.mark.parametrize("num_classes", [0, 3])
def test_shapes(resolution: int, num_classes: int) -> None:
    G, D = small(resolution, num_classes)
    labels = torch.tensor([0, 2, 1]) if num_classes else None
    images = G(torch.randn(3, 5), labels)
    assert images.shape == (3, 3, resolution, resolution)
    assert 0.1 < images.std() < 3
    logits, features = D(images, labels, features=True)
    assert logits.shape == (3,)
    assert torch.equal(logits, D(images, labels))
    widths = [8, 8, *[4] * 8]
    sides = [2**i for i in range(resolution.bit_length() - 1, 1, -1)]  # R ... 4
    assert [f.shape for f in features] == [(3, widths[s.bit_length() - 3], s, s) for s in sides]


@pytest.mark.parametrize("resolution", [512, 1024])
def test_large_resolutions(resolution: int) -> None:
    with torch.device("meta"):
        G, D = small(resolution, 3)
        z, labels = torch.randn(2, 5), torch.zeros(2, dtype=torch.long)
        images = G(z, labels)
        assert images.shape == (2, 3, resolution, resolution)
        assert D(images, labels).shape == (2,)


def test_the_cifar_preset_has_the_paper_s_size() -> None:
    """Huang et al. 2024: 20.78 M and 21.28 M weights. The defaults are this preset."""
    with torch.device("meta"):
        G, D = r3gan.Generator(32, 64, 10), r3gan.Discriminator(32, 10)
    assert G.stages[0][0].mix.groups == 96
    block = 768 * 1536 + 1536 + 1536 * 16 * 9 + 1536 + 1536 * 768
    # embedding, dense, basis, blocks, RGB; in D: RGB, blocks, depthwise, dense, embedding
    assert num_weights(G) == 10 * 64 + (64 + 64) * 768 + 768 * 16 + 8 * block + 768 * 3 == 20_781_952
    assert num_weights(D) == 3 * 768 + 8 * block + 768 * 16 + 768 * 768 + 10 * 768 == 21_280_512


def test_other_presets_can_be_said() -> None:
    """Groups fall with the width, and a convolution changes it: FFHQ-256. Twice the width, as many groups: ImageNet."""
    with torch.device("meta"):
        D = r3gan.Discriminator(256, 0, widths=[768] * 4 + [384, 192, 96])
        G = r3gan.Generator(64, 64, 1000, widths=[1536], group_width=16)
    groups = [[m.mix.groups for m in stage if isinstance(m, r3gan.Block)] for stage in D.stages]
    assert groups == [[12] * 2, [24] * 2, [48] * 2, [96] * 2, [96] * 2, [96] * 2, [96] * 2]
    changes = [[m.out_channels for m in stage if isinstance(m, nn.Conv2d)] for stage in D.stages]
    assert changes == [[96], [192], [384], [768], [], [], []]
    assert len(G.stages) == 5
    assert {m.mix.groups for m in G.modules() if isinstance(m, r3gan.Block)} == {96}


@pytest.mark.parametrize("widths", [[8, 6], []])
def test_widths_that_do_not_divide_are_refused(widths: list[int]) -> None:
    with pytest.raises(ValueError, match="multiple of group_width, such as"):
        r3gan.Discriminator(16, 0, widths=widths, group_width=4)


@pytest.mark.parametrize("num_classes", [0, 3])
def test_gradients_reach_every_weight(num_classes: int) -> None:
    """At the start those of the zero convolutions, and what lies beside them; after them, all."""
    labels = torch.arange(4) % 3 if num_classes else None
    for wake in (False, True):
        nets = small(16, num_classes, blocks=2)
        G, D = map(awake, nets) if wake else nets
        D(G(torch.randn(4, 5), labels), labels).sum().backward()
        for net in (G, D):
            for name, p in net.named_parameters():
                hidden = any(part in name for part in (".expand.", ".mix."))
                assert p.grad is not None
                assert (p.grad.abs().sum() > 0) == (wake or not hidden), name


def test_each_image_is_seen_by_itself() -> None:
    G, D = (awake(net).double() for net in small(16, 3))
    z, labels = torch.randn(6, 5).double(), torch.arange(6) % 3
    alone = torch.cat([G(z[i : i + 1], labels[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(G(z, labels), alone, rtol=0, atol=1e-12)
    judged = torch.cat([D(alone[i : i + 1], labels[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(D(alone, labels), judged, rtol=0, atol=1e-12)


def test_the_class_matters() -> None:
    G, D = small(16, 3)
    images = G(torch.randn(1, 5).expand(3, -1), torch.arange(3))
    assert (images[0] - images[1]).abs().max() > 0.01
    logits = D(images[:1].expand(3, -1, -1, -1), torch.arange(3))
    assert len(set(logits.tolist())) == 3


def test_the_logit_is_a_product_with_the_class() -> None:
    _, D = small(16, 3)
    images, labels = torch.randn(4, 3, 16, 16), torch.tensor([2, 0, 1, 1])
    logits, features = D(images, labels, features=True)
    pooled = torch.einsum("bchw,chw->bc", features[-1], D.head[0].weight[:, 0])
    expected = torch.einsum("bc,dc,bd->b", pooled, D.head[2].weight, D.embed.weight[labels])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_training_starts_at_the_identity() -> None:
    """Both trunks only resample."""
    G, D = small(32, 0, widths=[8])
    z, x = torch.randn(2, 5), torch.randn(2, 3, 32, 32)
    start = G.dense(z)[:, :, None, None] * G.basis
    up, down = r3gan.Upsample(), r3gan.Downsample()
    assert torch.equal(G(z), G.to_rgb(up(up(up(start)))))
    first = D.stages[0][0](x)
    assert torch.equal(D(x), D.head(down(down(down(first)))).flatten())


def test_signals_stay_bounded_through_depth() -> None:
    """Were the last convolutions not zero, L blocks would grow the second moment to (1 + 1 / L)^L < e, not to 2^L."""
    torch.manual_seed(0)
    L = 24
    stage = awake(nn.Sequential(*(r3gan.Block(32, 8, L) for _ in range(L))))
    x, moments = torch.randn(4, 32, 16, 16), []
    with torch.no_grad():
        for block in stage:
            x = block(x)
            moments.append(x.square().mean().item())
    assert min(moments) > 0.9
    assert max(moments) < 3
    assert moments[-1] > 1.5  # the blocks do take part


def test_logits_start_of_order_one() -> None:
    for num_classes in (0, 3):
        _, D = small(32, num_classes, widths=[64])
        labels = torch.arange(16) % 3 if num_classes else None
        smooth = nn.functional.interpolate(torch.randn(16, 3, 4, 4), scale_factor=8, mode="bilinear")
        assert 0.1 < D(smooth, labels).std() < 3


def resampled(x: np.ndarray, before: int, up: int, down: int, scale: float) -> np.ndarray:
    """Rows of one channel: `before` border values, zeros in between, [1, 2, 1] * scale, and every `down`-th."""
    rows = np.concatenate([x[:1]] * before + [x] + [x[-1:]])
    spread = np.zeros((len(rows) * up, *x.shape[1:]))
    spread[::up] = rows
    first = before * up
    at = range(first, first + len(x) * up, down)
    return np.stack([sum(w * scale * spread[p + k] for k, w in ((-1, 1), (0, 2), (1, 1))) for p in at])


@pytest.mark.parametrize("shape", [(4, 4), (8, 4)])
def test_resampling_is_the_filter_1_2_1(shape: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for layer, up, down, scale in ((r3gan.Upsample(), 2, 1, 1 / 2), (r3gan.Downsample(), 1, 2, 1 / 4)):
        found = layer(x)
        for b in range(2):
            for c in range(3):
                rows = resampled(x[b, c].numpy(), 1, up, down, scale)
                expected = resampled(rows.T, 1, up, down, scale).T
                np.testing.assert_allclose(found[b, c].numpy(), expected, rtol=0, atol=1e-15)


def test_resampling_inside_is_a_convolution_with_the_kernel() -> None:
    """Against torch's convolutions, which put zeros beyond the border: one pixel at one side differs."""
    x = torch.randn(1, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    row = torch.tensor([1.0, 2.0, 1.0]).double()
    kernel = torch.outer(row, row)[None, None]
    up = nn.functional.conv_transpose2d(x, kernel / 4, stride=2, padding=1, output_padding=1)
    torch.testing.assert_close(r3gan.Upsample()(x)[..., :-1, :-1], up[..., :-1, :-1])
    down = nn.functional.conv2d(x, kernel / 16, stride=2, padding=1)
    torch.testing.assert_close(r3gan.Downsample()(x)[..., 1:, 1:], down[..., 1:, 1:])


def test_constants_stay_constant_to_the_border() -> None:
    x = torch.full((1, 2, 4, 4), 0.7)
    assert torch.equal(r3gan.Upsample()(x), torch.full((1, 2, 8, 8), 0.7))
    assert torch.equal(r3gan.Downsample()(x), torch.full((1, 2, 2, 2), 0.7))


def test_up_and_down_lie_on_the_same_pixels() -> None:
    """A slope stays where it was, so stages of G and D do not shift the picture (but at the border)."""
    slope = torch.arange(8.0).expand(1, 1, 8, 8)
    back = r3gan.Downsample()(r3gan.Upsample()(slope))
    assert torch.equal(back[..., 1:-1], slope[..., 1:-1])


@pytest.mark.parametrize("num_classes", [0, 3])
def test_a_minibatch_layer_sits_before_the_head(num_classes: int) -> None:
    torch.manual_seed(0)
    D = r3gan.Discriminator(16, num_classes, [4], 1, 2, tail=functools.partial(Tail, minibatch="stddev"))
    images, labels = torch.randn(4, 3, 16, 16), torch.arange(4) % 3 if num_classes else None
    logits, features = D(images, labels, features=True)
    assert features[-1].shape == (4, 4, 4, 4)
    others = torch.cat([images[:1], images[1:] + 1])
    assert logits[0] != D(others, labels)[0]


def test_r1_has_the_right_gradient() -> None:
    """Double backward against finite differences, in every weight."""
    _, D = small(8, 3, widths=[4])
    check_r1(awake(D).double(), num_classes=3, resolution=8)
