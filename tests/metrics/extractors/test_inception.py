"""The Inception network of FID, without its weights: every layer's shape, its ways, and numbers under drawn weights.

The stored numbers are those of torch-fidelity's network with the same weights; where it is installed
(`pip install --no-deps torch-fidelity`), the two are compared directly.
"""

import hashlib
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from drawn_weights import drawn
from torch import Tensor, nn

from distgan.metrics.extractors import EXTRACTORS, Extractor, inception, open_extractor
from distgan.metrics.extractors.inception import Inception
from distgan.metrics.extractors.resize import tf1_bilinear
from distgan.metrics.weights import WEIGHTS

NORMS = 94
FEATURES = torch.tensor([[4.9128, 1.2705, 0.0, 0.8983, 1.7647, 0.9214], [3.8898, 1.0782, 0.0, 0.6189, 1.1113, 0.7866]])
LOGITS = torch.tensor([[-17.2130, 2.2984, -8.4749, 2.6315, 0.1753], [-13.2593, 1.6576, -6.9888, 1.3025, 0.9998]])


@pytest.fixture(scope="module")
def net() -> Inception:
    return drawn(Inception())


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Two pictures of smooth colours; uint8 [2, 3, 33, 47]."""
    rows, columns = torch.arange(33.0)[:, None], torch.arange(47.0)
    waves = [torch.sin(rows * a + columns * b + c) for a, b, c in ((0.3, 0.1, 0), (0, 0.4, 1), (0.2, -0.2, 2))]
    first = torch.stack(waves)
    return ((torch.stack([first, first.flip(0) * rows / 33]) + 1) * 127.5).to(torch.uint8)


def extract(net: Inception, images: Tensor) -> tuple[Tensor, Tensor]:
    extractor = Extractor("inception", EXTRACTORS["inception"], net, "drawn", "tf1_bilinear", torch.device("cpu"))
    extractor.part = 2
    return extractor(images)


@pytest.fixture(scope="module")
def shapes() -> dict[str, tuple[int, ...]]:
    """Of what each stage gave while `found` was made."""
    return {}


@pytest.fixture(scope="module")
def found(net: Inception, images: Tensor, shapes: dict[str, tuple[int, ...]]) -> tuple[Tensor, Tensor]:
    hooks = [
        layer.register_forward_hook(lambda _, __, out, name=name: shapes.update({name: tuple(out.shape[1:])}))
        for name, layer in net.named_children()
    ]
    result = extract(net, images)
    for hook in hooks:
        hook.remove()
    return result


def test_it_has_the_published_size() -> None:
    with torch.device("meta"):
        state = Inception().state_dict()
        num_weights = sum(p.numel() for p in Inception().parameters())
    assert num_weights == 23_850_960
    # The published file also counts the batches that each norm has seen, in 8 bytes.
    assert len(state) + NORMS == 566
    assert sum(4 * tensor.numel() for tensor in state.values()) + 8 * NORMS == 95_542_320


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("Conv2d_1a_3x3.conv.weight", (32, 3, 3, 3)),
        ("Conv2d_4a_3x3.bn.running_var", (192,)),
        ("Mixed_5b.branch_pool.conv.weight", (32, 192, 1, 1)),
        ("Mixed_5d.branch3x3dbl_3.conv.weight", (96, 96, 3, 3)),
        ("Mixed_6a.branch3x3.conv.weight", (384, 288, 3, 3)),
        ("Mixed_6b.branch7x7_2.conv.weight", (128, 128, 1, 7)),
        ("Mixed_6c.branch7x7dbl_2.conv.weight", (160, 160, 7, 1)),
        ("Mixed_6e.branch7x7dbl_5.conv.weight", (192, 192, 1, 7)),
        ("Mixed_7a.branch7x7x3_4.conv.weight", (192, 192, 3, 3)),
        ("Mixed_7b.branch3x3_2a.conv.weight", (384, 384, 1, 3)),
        ("Mixed_7c.branch3x3dbl_3b.conv.weight", (384, 384, 3, 1)),
        ("fc.weight", (1008, 2048)),
        ("fc.bias", (1008,)),
    ],
)
def test_weights_are_named_as_in_the_published_file(name: str, shape: tuple[int, ...]) -> None:
    with torch.device("meta"):
        assert Inception().state_dict()[name].shape == shape


def test_every_stage_has_the_graph_s_shape(found: tuple[Tensor, Tensor], shapes: dict[str, tuple[int, ...]]) -> None:
    before_mixing = [("1a", 32, 149), ("2a", 32, 147), ("2b", 64, 147), ("3b", 80, 73), ("4a", 192, 71)]
    mixing = [("5b", 256, 35), ("5c", 288, 35), ("5d", 288, 35), *((f"6{x}", 768, 17) for x in "abcde")]
    mixing += [("7a", 1280, 8), ("7b", 2048, 8), ("7c", 2048, 8)]
    stages = [(name.split("_")[1], *shape) for name, shape in shapes.items()]
    assert stages == [(name, channels, side, side) for name, channels, side in before_mixing + mixing]


def test_numbers_are_torch_fidelity_s(found: tuple[Tensor, Tensor]) -> None:
    features, logits = found
    torch.testing.assert_close(features[:, ::400], FEATURES, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits[:, ::250], LOGITS, rtol=1e-4, atol=1e-4)


def counted(x: Tensor) -> Tensor:
    """An average that takes the zeros around the picture for pixels."""
    return nn.functional.avg_pool2d(x, 3, 1, 1)


@pytest.mark.parametrize("where", ["Mixed_5b", "Mixed_6e", "Mixed_7b", "Mixed_7c"])
def test_the_graph_s_pools_make_a_difference(net: Inception, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """So the numbers above tell of each of them."""
    x = torch.rand(1, 3, 139, 139, generator=torch.Generator().manual_seed(0)) * 2 - 1
    block, usual = getattr(net, where), inception.average_pool
    features, _ = net(x)
    if where == "Mixed_7c":
        monkeypatch.setattr(block, "pool", usual)
    elif where == "Mixed_7b":
        monkeypatch.setattr(block, "pool", counted)
    else:
        forward = block.forward

        def patched(x: Tensor) -> Tensor:
            with monkeypatch.context() as patch:
                patch.setattr(inception, "average_pool", counted)
                return forward(x)

        monkeypatch.setattr(block, "forward", patched)
    assert (net(x)[0] - features).abs().max() > 0.01


def test_pools_by_hand() -> None:
    """The corner has four neighbours, itself included; the middle has nine."""
    x = torch.tensor([[-8.0, -4, 1], [-2, -6, 1], [1, 1, -1]])[None, None]
    assert inception.average_pool(x)[0, 0, 0, 0] == -5
    assert inception.average_pool(x)[0, 0, 1, 1] == pytest.approx(-17 / 9)
    assert inception.max_pool(x)[0, 0, 0, 0] == -2  # padding is no zero here either


def test_logits_lack_the_bias(net: Inception, found: tuple[Tensor, Tensor]) -> None:
    assert net.fc.bias.abs().max() > 0.1
    torch.testing.assert_close(found[1], net.fc(found[0]) - net.fc.bias, rtol=1e-4, atol=1e-4)


def test_the_published_form_of_the_file_is_loaded_and_gives_fid(
    net: Inception, found: tuple[Tensor, Tensor], images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state dict with the counts of batches, but with drawn weights and their hash."""
    state = net.state_dict()
    for name in [name for name in state if name.endswith("running_var")]:
        state[name.replace("running_var", "num_batches_tracked")] = torch.tensor(0)
    assert len(state) == 566
    path = tmp_path / "drawn.pth"
    torch.save(state, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(WEIGHTS, "inception", WEIGHTS["inception"]._replace(sha256=sha256))
    extractor = open_extractor("inception", weights=str(path))
    extractor.part = 2
    assert extractor.key_prefix == "fid"
    assert extractor.identity == f"inception:{sha256[:12]}:pool3:299:tf1_bilinear:v1"
    assert torch.equal(extractor(images)[0], found[0])
    assert open_extractor("inception", str(path), "clean_bicubic").key_prefix == "fd_inception_clean_bicubic"


@pytest.fixture
def torch_fidelity(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], types.ModuleType]:
    """Imports modules of torch-fidelity without the package's own `__init__`, which needs torchvision."""
    spec = importlib.util.find_spec("torch_fidelity")
    if spec is None:
        pytest.skip("torch-fidelity is not installed: pip install --no-deps torch-fidelity")
    bare = types.ModuleType("torch_fidelity")
    bare.__path__ = list(spec.submodule_search_locations)
    for name in [name for name in sys.modules if name.split(".")[0] == "torch_fidelity"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch_fidelity", bare)
    return lambda name: importlib.import_module(f"torch_fidelity.{name}")


def test_it_is_torch_fidelity_s_network(
    torch_fidelity: Callable, net: Inception, found: tuple[Tensor, Tensor], images: Tensor, tmp_path: Path
) -> None:
    module = torch_fidelity("feature_extractor_inceptionv3")
    path = tmp_path / "drawn.pth"
    torch.save(net.state_dict(), path)
    theirs = module.FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], str(path))
    assert set(net.state_dict()) == {n for n in theirs.state_dict() if not n.endswith("num_batches_tracked")}
    for ours, other in zip(found, theirs(images)):
        torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sides", [(32, 32), (33, 47), (300, 299), (512, 640)])
def test_resizing_is_torch_fidelity_s_to_the_bit(torch_fidelity: Callable, sides: tuple[int, int]) -> None:
    theirs = torch_fidelity("interpolate_compat_tensorflow").interpolate_bilinear_2d_like_tensorflow1x
    picture = torch.randint(0, 256, (1, 3, *sides), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(tf1_bilinear(picture, 299), theirs(picture, (299, 299), align_corners=False))
