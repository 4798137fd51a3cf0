"""R3GAN: shapes, sizes of the published presets, its start as an identity, resampling, gradients of both orders."""

import copy
import functools

import pytest
import torch
from finite_differences import check_r1
from torch import nn

from distgan.distributed.process_group import World
from distgan.image_spec import square
from distgan.models import r3gan
from distgan.models.epilogue import Epilogue
from distgan.training.gan_step import GanStep
from distgan.training.step_inputs import StepOptions


def small(resolution: int, num_classes: int, **settings: object) -> tuple[r3gan.Generator, r3gan.Discriminator]:
    """G and D with few channels."""
    torch.manual_seed(0)
    own = {"widths": [8, 8, 4], "blocks": 1, "group_width": 2, **settings}
    G = r3gan.Generator(square(resolution), 5, num_classes, embed_dim=3, **own)
    return G, r3gan.Discriminator(square(resolution), num_classes, **own)


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
        G, D = r3gan.Generator(square(32), 64, 10), r3gan.Discriminator(square(32), 10)
    assert G.stages[0][0].mix.groups == 96
    block = 768 * 1536 + 1536 + 1536 * 16 * 9 + 1536 + 1536 * 768
    # embedding, dense, basis, blocks, RGB; in D: RGB, blocks, depthwise, dense, embedding
    assert num_weights(G) == 10 * 64 + (64 + 64) * 768 + 768 * 16 + 8 * block + 768 * 3 == 20_781_952
    assert num_weights(D) == 3 * 768 + 8 * block + 768 * 16 + 768 * 768 + 10 * 768 == 21_280_512


def test_other_presets_can_be_said() -> None:
    """Groups fall with the width, and a convolution changes it: FFHQ-256. Twice the width, as many groups: ImageNet."""
    with torch.device("meta"):
        D = r3gan.Discriminator(square(256), 0, widths=[768] * 4 + [384, 192, 96])
        G = r3gan.Generator(square(64), 64, 1000, widths=[1536], group_width=16)
    groups = [[m.mix.groups for m in stage if isinstance(m, r3gan.Block)] for stage in D.stages]
    assert groups == [[12] * 2, [24] * 2, [48] * 2, [96] * 2, [96] * 2, [96] * 2, [96] * 2]
    changes = [[m.out_channels for m in stage if isinstance(m, nn.Conv2d)] for stage in D.stages]
    assert changes == [[96], [192], [384], [768], [], [], []]
    assert len(G.stages) == 5
    assert {m.mix.groups for m in G.modules() if isinstance(m, r3gan.Block)} == {96}


@pytest.mark.parametrize("widths", [[8, 6], []])
def test_widths_that_do_not_divide_are_refused(widths: list[int]) -> None:
    with pytest.raises(ValueError, match="multiple of group_width, such as"):
        r3gan.Discriminator(square(16), 0, widths=widths, group_width=4)


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
    up, down = r3gan.Upsample(8), r3gan.Downsample(8)
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
    """Divided by the root of the number of classes, by which the embedding is smaller."""
    for num_classes in (0, 3):
        _, D = small(32, num_classes, widths=[64])
        labels = torch.arange(16) % 3 if num_classes else None
        smooth = nn.functional.interpolate(torch.randn(16, 3, 4, 4), scale_factor=8, mode="bilinear")
        assert 0.1 < D(smooth, labels).std() * max(1, num_classes) ** 0.5 < 3


KERNEL = torch.outer(*2 * [torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64)])[None, None]


@pytest.mark.parametrize("shape", [(4, 4), (8, 4), (2, 16)])
def test_resampling_is_the_filter_1_3_3_1_with_zeros_beyond_the_border(shape: tuple[int, int]) -> None:
    """Against torch's convolutions, whose padding is of zeros."""
    x = torch.randn(6, 1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    up = nn.functional.conv_transpose2d(x, 4 / 64 * KERNEL, stride=2, padding=1)
    down = nn.functional.conv2d(x, 1 / 64 * KERNEL, stride=2, padding=1)
    for layer, expected in ((r3gan.Upsample(3), up), (r3gan.Downsample(3), down)):
        found = layer.double()(x.view(2, 3, *shape)).view_as(expected)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)


def test_resampling_keeps_the_layout_and_the_state_of_before() -> None:
    """channels_last images stay so, in both directions; the filter is no weight and not in a checkpoint."""
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last).requires_grad_()
    for layer in (r3gan.Upsample(3), r3gan.Downsample(3)):
        out = layer(x)
        (gradient,) = torch.autograd.grad(out.square().sum(), x)
        for tensor in (out, gradient):
            assert tensor.is_contiguous(memory_format=torch.channels_last)
        assert not layer.state_dict()


def center(x: torch.Tensor) -> list[float]:
    """Row and column of the center of mass of [1, 1, H, W], as shares of the sides."""
    sides = [(torch.arange(n) + 0.5) / n for n in x.shape[2:]]
    return [float(x.sum(dims).flatten() @ side.to(x) / x.sum()) for dims, side in zip(((0, 1, 3), (0, 1, 2)), sides)]


def test_resampling_moves_nothing() -> None:
    x = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    x[..., 5, 8] = 1
    up, down = r3gan.Upsample(1).double(), r3gan.Downsample(1).double()
    for moved in (up(x), up(up(x)), down(up(x))):
        assert center(moved) == pytest.approx([5.5 / 16, 8.5 / 16], abs=1e-12)


def mirrored(net: nn.Module) -> nn.Module:
    """The network that sees the world in a mirror: every spatial kernel, and G's learned basis, is flipped."""
    net = copy.deepcopy(net)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.copy_(module.weight.flip(3))
        if isinstance(net, r3gan.Generator):
            net.basis.copy_(net.basis.flip(2))
    return net


def test_networks_know_no_left_and_right() -> None:
    G, D = (awake(net).double() for net in small(32, 3))
    z, labels = torch.randn(4, 5).double(), torch.arange(4) % 3
    images = G(z, labels)
    torch.testing.assert_close(mirrored(G)(z, labels), images.flip(3), rtol=0, atol=1e-12)
    torch.testing.assert_close(mirrored(D)(images.flip(3), labels), D(images, labels), rtol=0, atol=1e-12)


def test_label_embeddings_start_like_a_linear_layer_over_one_hot_labels() -> None:
    """Standard deviation 1 / sqrt(classes) in G; in D divided by sqrt(channels) too."""
    torch.manual_seed(0)
    own = {"widths": [64], "blocks": 1, "group_width": 8}
    G, D = (
        r3gan.Generator(square(8), 16, 100, embed_dim=64, **own),
        r3gan.Discriminator(square(8), 100, **own),
    )
    assert G.embed.weight.std().item() == pytest.approx(100**-0.5, rel=0.05)
    assert D.embed.weight.std().item() == pytest.approx(6400**-0.5, rel=0.05)


@pytest.mark.parametrize("num_classes", [0, 3])
def test_a_minibatch_layer_sits_before_the_head(num_classes: int) -> None:
    torch.manual_seed(0)
    D = r3gan.Discriminator(
        square(16), num_classes, [4], 1, 2, epilogue=functools.partial(Epilogue, minibatch="stddev")
    )
    images, labels = torch.randn(4, 3, 16, 16), torch.arange(4) % 3 if num_classes else None
    logits, features = D(images, labels, features=True)
    assert features[-1].shape == (4, 4, 4, 4)
    others = torch.cat([images[:1], images[1:] + 1])
    assert logits[0] != D(others, labels)[0]


def test_r1_has_the_right_gradient() -> None:
    """Double backward against finite differences, in every weight."""
    _, D = small(8, 3, widths=[4])
    check_r1(awake(D).double(), num_classes=3, resolution=8)


@pytest.mark.parametrize("layer", [r3gan.Upsample(4), r3gan.Downsample(4)], ids=["up", "down"])
def test_float32_images_can_be_resampled_under_autocast(layer: torch.nn.Module) -> None:
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    out.float().square().sum().backward()
    assert x.grad is not None and x.grad.dtype is torch.float32


def test_a_skipped_step_restores_what_training_changes_alone() -> None:
    G, D = (
        r3gan.Generator(square(16), 4, 0, [8], 1, 4),
        r3gan.Discriminator(square(16), 0, [8], 1, 4),
    )
    assert GanStep(World(), G, D, StepOptions("rpgan", restore_buffers=True))._restored_buffers == []
