"""The hourglass against the article's tables, against Keras, and what its form without batch norm promises."""

import math
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from distgan.image_spec import square
from distgan.models.hourglass import Conv, Discriminator, Generator, TransposedConv


def size(net: nn.Module) -> tuple[int, int]:
    """Numbers that Keras counts as trainable and as non-trainable; it has no counter of batches in batch norm."""
    buffers = sum(b.numel() for b in net.buffers() if b.is_floating_point())
    return sum(p.numel() for p in net.parameters()), buffers


def small(num_classes: int = 0, norm: str = "batch") -> tuple[Generator, Discriminator]:
    torch.manual_seed(0)
    G = Generator(square(32), 8, num_classes, base_channels=4, embed_dim=3, norm=norm)
    return G.double(), Discriminator(square(32), num_classes, base_channels=4, norm=norm).double()


@pytest.mark.parametrize(("z_dim", "trainable"), [(100, 25_377_283), (128, 26_753_539), (512, 45_627_907)])
def test_the_generator_is_as_large_as_the_article_s(z_dim: int, trainable: int) -> None:
    with torch.device("meta"):
        assert size(Generator(square(128), z_dim, 0)) == (trainable, 2_560)


def test_the_discriminator_is_as_large_as_the_article_s() -> None:
    with torch.device("meta"):
        assert size(Discriminator(square(128), 0)) == (3_948_033, 1_536)


def test_each_layer_is_the_article_s() -> None:
    """Side, channels and trainable numbers of each row of the tables."""
    with torch.device("meta"):
        G, D = Generator(square(128), 100, 0), Discriminator(square(128), 0)
        rows = []
        x = torch.empty(2, 3, 128, 128)
        for layer in G.layers:
            x = layer(x)
            rows.append((x.shape[2], x.shape[1], size(layer)[0]))
        logits, features = D(G(torch.empty(2, 100)), features=True)
    assert G.dense.weight.numel() == 4_915_200
    assert rows == [
        (128, 128, 6_144),
        (64, 128, 262_144 + 256),
        (64, 256, 524_288),
        (32, 256, 1_048_576 + 512),
        (32, 512, 2_097_152),
        (16, 512, 4_194_304),
        (16, 512, 4_194_304),
        (32, 512, 4_194_304 + 1_024),
        (32, 256, 2_097_152),
        (64, 256, 1_048_576 + 512),
        (128, 128, 524_288),
        (128, 128, 262_144 + 256),
        (128, 3, 6_147),
    ]
    assert logits.shape == (2,)
    assert [tuple(f.shape[1:]) for f in features] == [
        (128, 64, 64),
        (128, 32, 32),
        (256, 16, 16),
        (256, 8, 8),
        (512, 4, 4),
    ]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [2, 6, 8])
def test_a_transposed_convolution_is_the_adjoint(stride: int, side: int) -> None:
    """<conv(x), y> = <x, transposed(y)> with the same weights."""
    torch.manual_seed(0)
    conv, transposed = Conv(3, 5, stride).double(), TransposedConv(5, 3, stride).double()
    transposed.weight = conv.weight
    x = torch.randn(2, 3, side, side).double()
    y = torch.randn(2, 5, side // stride, side // stride).double()
    assert torch.allclose((conv(x) * y).sum(), (x * transposed(y)).sum(), rtol=1e-12)


@pytest.mark.parametrize("stride", [1, 2])
def test_same_padding_puts_one_pixel_before(stride: int) -> None:
    """So the kernel's second tap meets the pixel at hand."""
    conv = Conv(1, 1, stride)
    nn.init.zeros_(conv.weight)
    conv.weight.data[0, 0, 1, 1] = 1
    x = torch.randn(1, 1, 6, 6)
    assert torch.allclose(conv(x), x[:, :, ::stride, ::stride], atol=1e-6)


def test_initial_weights_are_keras_he_normal() -> None:
    """Variance 2 / fan_in after the cut at two deviations; Keras' fan_in of a transposed kernel counts its outputs."""
    torch.manual_seed(0)
    G = Generator(square(8), 8, 0, base_channels=48)
    for (conv, *_), kind, fan in ((G.layers[2], Conv, 16 * 48), (G.layers[8], TransposedConv, 16 * 96)):
        assert isinstance(conv, kind)
        assert conv.in_channels != conv.out_channels
        expected = math.sqrt(2 / fan)
        assert conv.weight.std().item() == pytest.approx(expected, rel=0.02)
        bound = 2 * expected / 0.87962566103423978
        assert 0.99 * bound < conv.weight.abs().max() <= bound * (1 + 1e-6)


def test_glorot_uniform_where_the_table_says_so() -> None:
    G, _ = small()
    for weight, fans in ((G.dense.weight, 8 + 3 * 32 * 32), (G.layers[-1][0].weight, 16 * (4 + 3))):
        bound = math.sqrt(6 / fans)
        assert 0.95 * bound < weight.abs().max() <= bound


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("num_classes", [0, 3])
def test_every_weight_takes_part(norm: str, num_classes: int) -> None:
    G, D = small(num_classes, norm)
    labels = torch.arange(4) % 3 if num_classes else None
    D(G(torch.randn(4, 8).double(), labels), labels).sum().backward()
    for net in (G, D):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize("num_classes", [0, 3])
def test_the_norm_free_form_treats_each_image_by_itself(num_classes: int) -> None:
    """Then the gradient of a sum over images is the sum of theirs, in whichever parts the batch comes."""
    G, D = small(num_classes, "none")
    z = torch.randn(4, 8).double()
    labels = torch.arange(4) % 3 if num_classes else None
    parts = [(z[i : i + 1], labels[i : i + 1] if num_classes else None) for i in range(4)]

    D(G(z, labels), labels).sum().backward()
    together = [p.grad.clone() for net in (G, D) for p in net.parameters()]
    images, logits = G(z, labels), D(G(z, labels), labels)
    assert torch.allclose(images, torch.cat([G(*part) for part in parts]), rtol=0, atol=1e-12)
    assert torch.allclose(logits, torch.cat([D(G(*part), part[1]) for part in parts]), rtol=0, atol=1e-12)

    G.zero_grad()
    D.zero_grad()
    for part in parts:
        D(G(*part), part[1]).sum().backward()
    alone = [p.grad for net in (G, D) for p in net.parameters()]
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(together, alone))


@pytest.mark.parametrize("resolution", [8, 32, 64])
def test_signals_neither_grow_nor_fade_without_batch_norm(resolution: int) -> None:
    """At 8 pixels too, where the narrowest map is a single one and most of a kernel lies outside."""
    torch.manual_seed(0)
    G = Generator(square(resolution), 64, 0, base_channels=16, norm="none")
    x = G.dense(torch.randn(32, 64)).unflatten(1, (resolution, resolution, 3)).permute(0, 3, 1, 2)
    moments = [x.square().mean().item()]
    for layer in G.layers[:-1]:
        x = layer(x)
        moments.append(x.square().mean().item())
    assert all(0.25 < moment < 4 for moment in moments), moments
    assert 0.5 < G(torch.randn(32, 64)).std() < 0.8  # tanh of N(0, 1) has 0.63


@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize("resolution", [32, 64])
def test_logits_start_of_order_one_without_batch_norm(resolution: int, num_classes: int) -> None:
    torch.manual_seed(0)
    D = Discriminator(square(resolution), num_classes, base_channels=16, norm="none")
    labels = torch.arange(32) % 3 if num_classes else None
    logits, features = D(torch.randn(32, 3, resolution, resolution), labels, features=True)
    assert all(0.2 < f.square().mean() < 2 for f in features)
    assert 0.2 < logits.std() < 3


def test_the_class_matters() -> None:
    G, D = small(3)
    G.eval()
    D.eval()
    images = G(torch.randn(1, 8).double().expand(3, 8), torch.arange(3))
    assert not torch.allclose(images[0], images[1])
    assert len(set(D(images[:1].expand(3, -1, -1, -1), torch.arange(3)).tolist())) == 3


def test_resolutions_that_do_not_halve_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"data.resolution=36: the hourglass generator needs multiples of 8 .* such as 32 or 40"
    ):
        Generator(square(36), 8, 0)
    with pytest.raises(
        ValueError, match=r"data.resolution=40: the hourglass discriminator needs multiples of 32 .* such as 32 or 64"
    ):
        Discriminator(square(40), 0)
    assert Generator(square(40), 8, 0, base_channels=2)(torch.randn(2, 8)).shape == (2, 3, 40, 40)
    assert Discriminator(square(96), 0, base_channels=2)(torch.randn(2, 3, 96, 96)).shape == (2,)


@pytest.fixture(scope="module")
def keras(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """Keras on top of torch. It takes the backend from the environment when it is imported first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "torch")
        patch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))  # it writes its settings there
        module = pytest.importorskip("keras", reason="the reference needs Keras 3: pip install keras")
        if module.backend.backend() != "torch":
            pytest.skip(f"Keras was imported before, with the backend {module.backend.backend()}")
        yield module


def keras_generator(keras: ModuleType, resolution: int, z_dim: int, width: int) -> object:
    """The article's table, line by line."""
    layers, same = keras.layers, {"padding": "same", "use_bias": False, "kernel_initializer": "he_normal"}
    return keras.Sequential(
        [
            keras.Input((z_dim,)),
            layers.Dense(resolution * resolution * 3, use_bias=False),
            layers.Reshape((resolution, resolution, 3)),
            layers.Conv2D(width, 4, 1, **same),
            layers.Conv2D(width, 4, 2, **same),
            layers.BatchNormalization(),
            layers.LeakyReLU(),
            layers.Conv2D(2 * width, 4, 1, **same),
            layers.Conv2D(2 * width, 4, 2, **same),
            layers.BatchNormalization(),
            layers.LeakyReLU(),
            layers.Conv2DTranspose(4 * width, 4, 1, **same),
            layers.Conv2D(4 * width, 4, 2, **same),
            layers.LeakyReLU(),
            layers.Conv2DTranspose(4 * width, 4, 1, **same),
            layers.Conv2DTranspose(4 * width, 4, 2, **same),
            layers.BatchNormalization(),
            layers.LeakyReLU(),
            layers.Conv2DTranspose(2 * width, 4, 1, **same),
            layers.Conv2DTranspose(2 * width, 4, 2, **same),
            layers.BatchNormalization(),
            layers.Conv2DTranspose(width, 4, 2, **same),
            layers.Conv2DTranspose(width, 4, 1, **same),
            layers.BatchNormalization(),
            layers.Conv2DTranspose(3, 4, 1, padding="same", activation="tanh"),
        ]
    )


def keras_discriminator(keras: ModuleType, resolution: int, width: int) -> object:
    """The article's, without the sigmoid."""
    layers = keras.layers
    stack = [keras.Input((resolution, resolution, 3))]
    for channels in (width, width, 2 * width, 2 * width, 4 * width):
        stack.append(layers.Conv2D(channels, 4, 2, padding="same", use_bias=False, kernel_initializer="he_normal"))
        stack += [layers.BatchNormalization()] if channels < 4 * width else []
        stack.append(layers.LeakyReLU())
    return keras.Sequential([*stack, layers.Flatten(), layers.Dense(1)])


def give_weights(net: nn.Module, model: object) -> None:
    """Weights and statistics of a network for the Keras model with the same layers in the same order.

    Both kinds of convolution swap their axes alike: (out, in, H, W) -> (H, W, in, out), and transposed
    (in, out, H, W) -> (H, W, out, in).
    """
    weights = []
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            weights.append(layer.weight.permute(2, 3, 1, 0))
        elif isinstance(layer, nn.Linear):
            weights.append(layer.weight.T)
        elif isinstance(layer, nn.BatchNorm2d):
            weights += [layer.weight, layer.bias, layer.running_mean, layer.running_var]
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear) and layer.bias is not None:
            weights.append(layer.bias)
    model.set_weights([weight.detach().numpy() for weight in weights])


def unlike_at_first(net: nn.Module) -> None:
    """Biases, scales and statistics that a mistake would not hide behind."""
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
        if isinstance(getattr(layer, "bias", None), Tensor):
            nn.init.normal_(layer.bias)


def agree(net: nn.Module, model: object, x: Tensor, keras: ModuleType) -> None:
    """The same output in inference and in training, and the same statistics after it. `x` and outputs are NCHW."""

    def reference(training: bool) -> Tensor:
        y = model(x.movedim(1, -1).numpy(), training=training).detach().cpu()
        return y.movedim(-1, 1) if y.dim() == 4 else y.flatten()

    unlike_at_first(net)
    give_weights(net, model)
    parts = (model.trainable_weights, model.non_trainable_weights)
    assert size(net) == tuple(sum(math.prod(w.shape) for w in weights) for weights in parts)
    outputs = []
    for training in (False, True):
        net.train(training)
        outputs.append(net(x).detach())
        expected = reference(training)
        assert expected.std() > 0.03
        assert torch.allclose(outputs[-1], expected, rtol=0, atol=1e-5)
    assert not torch.allclose(*outputs, rtol=0, atol=1e-2)

    ours = [layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)]
    theirs = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert len(ours) == len(theirs) > 0
    for mine, its in zip(ours, theirs):
        mean = its.moving_mean.value.detach().cpu()
        assert torch.allclose(mine.running_mean, mean, rtol=0, atol=1e-5)


def test_the_generator_is_keras_s(keras: ModuleType) -> None:
    torch.manual_seed(0)
    agree(
        Generator(square(32), 8, 0, base_channels=4),
        keras_generator(keras, 32, 8, 4),
        torch.randn(5, 8),
        keras,
    )


@pytest.mark.parametrize("resolution", [32, 64])
def test_the_discriminator_is_keras_s(keras: ModuleType, resolution: int) -> None:
    """At 64 pixels the last map has several, so that the order in which they are flattened counts."""
    torch.manual_seed(0)
    D = Discriminator(square(resolution), 0, base_channels=4)
    agree(D, keras_discriminator(keras, resolution, 4), torch.randn(5, 3, resolution, resolution), keras)


def test_initial_weights_have_the_deviations_of_keras_s(keras: ModuleType) -> None:
    torch.manual_seed(0)
    keras.utils.set_random_seed(0)
    for net, model in (
        (Generator(square(8), 64, 0, base_channels=16), keras_generator(keras, 8, 64, 16)),
        (Discriminator(square(32), 0, base_channels=16), keras_discriminator(keras, 32, 16)),
    ):
        ours = [p for p in net.parameters() if p.dim() > 1]
        theirs = [w for w in model.trainable_weights if len(w.shape) > 1]
        assert len(ours) == len(theirs)
        for p, w in zip(ours, theirs):
            assert p.std().item() == pytest.approx(w.value.std().item(), rel=0.1)
