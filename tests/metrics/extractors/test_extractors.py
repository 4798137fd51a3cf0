"""Extractors: who they say they are, what they take, and features that nothing around them changes."""

import sys
import types

import pytest
import torch
from torch import Tensor, nn

from distgan.errors import ConfigError
from distgan.metrics import extractors
from distgan.metrics.extractors import EXTRACTORS, Extractor, Kind, open_extractor
from distgan.metrics.extractors.resize import RESIZERS
from distgan.metrics.weights import WEIGHTS


def pictures(num: int, side: int = 20, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (num, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


class Spy(nn.Module):
    """A network that notes how it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.seen: list[dict[str, object]] = []

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        self.seen.append(
            {
                "shape": tuple(x.shape),
                "training": self.training,
                "autocast": torch.is_autocast_enabled("cpu"),
                "precision": settings()[:2],
                "grad": torch.is_grad_enabled(),
            }
        )
        return (x * self.weight).flatten(1)[:, :4], None


def settings() -> tuple[object, ...]:
    cudnn = torch.backends.cudnn
    products = torch.backends.cuda.matmul.fp32_precision
    return cudnn.conv.fp32_precision, products, cudnn.benchmark, cudnn.deterministic


@pytest.fixture
def toy() -> Extractor:
    return open_extractor("toy")


@pytest.fixture
def spied() -> tuple[Extractor, Spy]:
    spy = Spy().train()
    kind = Kind(Spy, "none", 8, "bilinear", (0.0,) * 3, (1.0,) * 3, 4)
    return Extractor("spy", kind, spy, "none", "bilinear", torch.device("cpu")), spy


def test_features_of_the_toy_are_what_they_were(toy: Extractor) -> None:
    """Numbers of different machines and releases compare only while these stay."""
    image = torch.arange(768).mul(37).remainder(256).to(torch.uint8).view(1, 3, 16, 16)
    features, logits = toy(image)
    assert toy.identity == "toy:none:tanh:16:bilinear:v1"
    assert features.dtype == logits.dtype == torch.float32
    assert features.shape == (1, toy.dim) == (1, 32)
    assert logits.shape == (1, toy.num_logits) == (1, 10)
    torch.testing.assert_close(features[0, :4], torch.tensor([-0.9793, 0.9066, -0.6568, 0.6388]), rtol=0, atol=1e-4)
    torch.testing.assert_close(logits[0, :4], torch.tensor([-0.7211, -0.5530, 0.0379, -1.2665]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("sizes", [[1] * 37, [3] * 12 + [1], [20, 17], [16, 21]])
def test_features_do_not_depend_on_the_batch(toy: Extractor, sizes: list[int]) -> None:
    """But for rounding, where an image has another place in a part; at the same place they are the same bits."""
    features, logits = toy(images := pictures(37))
    parts = [toy(part) for part in images.split(sizes)]
    torch.testing.assert_close(torch.cat([f for f, _ in parts]), features, rtol=0, atol=2e-6)
    torch.testing.assert_close(torch.cat([logits for _, logits in parts]), logits, rtol=0, atol=2e-6)
    assert torch.equal(toy(images[16:])[0], features[16:])


def test_a_part_has_fewer_large_images_and_is_filled_up(
    spied: tuple[Extractor, Spy], monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor, spy = spied
    sizes: list[int] = []
    spy.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    monkeypatch.setattr(extractors, "PART_PIXELS", 6 * 16 * 16)
    for side in (8, 16, 32, 64):
        extractor(torch.zeros(20, 3, side, side, dtype=torch.uint8))
    assert sizes == [16] * 2 + [6] * 4 + [1] * 40


def test_no_images_have_no_features(toy: Extractor) -> None:
    features, logits = toy(pictures(0))
    assert features.shape == (0, 32)
    assert logits.shape == (0, 10)


def test_greyscale_is_three_equal_channels(toy: Extractor) -> None:
    grey = pictures(3)[:, :1]
    assert torch.equal(toy(grey)[0], toy(grey.expand(-1, 3, -1, -1))[0])


@pytest.mark.parametrize(
    "images",
    [pictures(2).float() / 127.5 - 1, pictures(2)[:, :2], pictures(2)[0], pictures(2).permute(0, 2, 3, 1)],
    ids=["floats", "two channels", "one image", "channels last"],
)
def test_other_images_are_refused(toy: Extractor, images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"needs uint8 \[B, 3, H, W\]"):
        toy(images)


def test_the_network_runs_in_evaluation_in_float32_without_gradients(spied: tuple[Extractor, Spy]) -> None:
    extractor, spy = spied
    before = settings()
    with torch.autocast("cpu", torch.bfloat16):
        features, logits = extractor(pictures(2))
    wanted = {"training": False, "autocast": False, "precision": ("ieee", "ieee"), "grad": False}
    assert spy.seen == [{"shape": (16, 3, 8, 8), **wanted}]
    assert settings() == before
    assert logits is None
    assert not features.requires_grad
    assert not spy.weight.requires_grad


def test_settings_are_as_before_even_after_an_error(spied: tuple[Extractor, Spy]) -> None:
    extractor, _ = spied
    matmul = torch.backends.cuda.matmul
    usual, matmul.fp32_precision = matmul.fp32_precision, "tf32"
    try:
        before = settings()
        extractor._net.forward = lambda x: x.no_such_thing
        with pytest.raises(AttributeError, match="no_such_thing"):
            extractor(pictures(1))
        assert settings() == before
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = usual


def test_training_s_randomness_is_left_alone(toy: Extractor) -> None:
    state = torch.get_rng_state()
    open_extractor("toy")(pictures(2))
    assert torch.equal(torch.get_rng_state(), state)


def test_features_can_be_learned_from(toy: Extractor) -> None:
    """They are no inference tensors: a probe may put them into a loss with gradients."""
    probe = nn.Linear(32, 2)
    probe(toy(pictures(4))[0]).sum().backward()
    assert probe.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("resizer", RESIZERS)
@pytest.mark.parametrize("name", EXTRACTORS)
def test_only_the_network_of_2015_with_tensorflow_s_resizing_gives_fid(name: str, resizer: str) -> None:
    digest = WEIGHTS[name].sha256 if name in WEIGHTS else "none"
    extractor = Extractor(name, EXTRACTORS[name], Spy(), digest, resizer, torch.device("cpu"))
    assert extractor.key_prefix.startswith("fid") == ((name, resizer) == ("inception", "tf1_bilinear"))
    assert extractor.identity.startswith(f"{name}:{digest[:12]}:")
    assert f":{resizer}:" in extractor.identity
    other = Extractor(name, EXTRACTORS[name], Spy(), "0" * 64, resizer, torch.device("cpu"))
    assert not other.key_prefix.startswith("fid")


def test_another_resizer_is_another_metric() -> None:
    own, other = open_extractor("toy"), open_extractor("toy", resizer="tf1_bilinear")
    assert own.key_prefix == "fd_toy"
    assert other.key_prefix == "fd_toy_tf1_bilinear"
    assert own.identity != other.identity
    images = pictures(2)
    assert not torch.allclose(own(images)[0], other(images)[0], atol=1e-3)


def test_names_that_do_not_exist_are_told_with_those_that_do() -> None:
    with pytest.raises(ConfigError, match=r"eval.extractor=vgg: there are .*toy"):
        open_extractor("vgg")
    with pytest.raises(ConfigError, match=r"eval.resizer=nearest: there are tf1_bilinear, bilinear"):
        open_extractor("toy", resizer="nearest")


def test_weights_for_an_extractor_that_has_none_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"eval\.weights=mine\.pth: the extractor toy has no file of weights"):
        open_extractor("toy", weights="mine.pth")


def test_an_extractor_of_a_plugin_is_told_apart_by_its_weights_and_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that statistics of real images, which are kept by its identity, are never those of another network."""

    def identity(scale: float, source: str) -> str:
        def build() -> torch.nn.Module:
            net = torch.nn.Linear(2, 2)
            torch.nn.init.constant_(net.weight, scale)
            torch.nn.init.zeros_(net.bias)
            return net

        build.__module__ = "a_plugin"
        monkeypatch.setitem(sys.modules, "a_plugin", types.SimpleNamespace(__sha256__=source))
        monkeypatch.setitem(EXTRACTORS, "mine", EXTRACTORS["toy"]._replace(build=build))
        return open_extractor("mine").identity

    assert identity(1.0, "a") == identity(1.0, "a")
    assert len({identity(1.0, "a"), identity(2.0, "a"), identity(1.0, "b")}) == 3
    assert ":none:" not in identity(1.0, "")
    assert open_extractor("toy").identity.startswith("toy:none:")
