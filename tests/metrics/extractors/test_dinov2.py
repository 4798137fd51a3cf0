"""DINOv2 without its weights: its size and names, its grid of positions, and numbers under drawn weights.

The stored numbers are those of the authors' network with the same weights; where it is installed
(`pip install --no-deps dinov2`), the two are compared directly.
"""

import functools
import math
import warnings

import pytest
import torch
from drawn_weights import drawn
from torch import Tensor

from distgan.metrics.extractors import EXTRACTORS, Extractor
from distgan.metrics.extractors.dinov2 import DinoV2


@pytest.fixture(scope="module")
def small() -> DinoV2:
    return drawn(DinoV2(dim=32, depth=2, heads=4, grid=5))


def test_it_has_the_published_size() -> None:
    with torch.device("meta"):
        net = DinoV2()
    num_weights = sum(p.numel() for p in net.parameters())
    assert num_weights == 304_368_640
    assert 0 < 1_217_586_395 - 4 * num_weights < 2**17  # the published file, and what it says beside the weights
    assert len(net.state_dict()) == 8 + 24 * 14 - 1
    assert net.pos_embed.shape == (1, 1 + 37 * 37, 1024)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("cls_token", (1, 1, 1024)),
        ("mask_token", (1, 1024)),
        ("patch_embed.proj.weight", (1024, 3, 14, 14)),
        ("blocks.0.attn.qkv.weight", (3072, 1024)),
        ("blocks.23.attn.proj.bias", (1024,)),
        ("blocks.7.ls1.gamma", (1024,)),
        ("blocks.7.mlp.fc1.weight", (4096, 1024)),
        ("blocks.7.mlp.fc2.weight", (1024, 4096)),
        ("norm.bias", (1024,)),
    ],
)
def test_weights_are_named_as_in_the_published_file(name: str, shape: tuple[int, ...]) -> None:
    with torch.device("meta"):
        assert DinoV2(depth=24).state_dict()[name].shape == shape


def cubic(t: float) -> float:
    """Keys' kernel with a = -3/4."""
    t = abs(t)
    if t < 1:
        return 1.25 * t**3 - 2.25 * t**2 + 1
    return -0.75 * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0


def along(stored: Tensor, num: int) -> Tensor:
    """`num` positions from those of the first dimension, one at a time, on the published network's odd scale."""
    side = len(stored)
    rows = []
    for i in range(num):
        place = (i + 0.5) * side / (num + 0.1) - 0.5
        near = math.floor(place)
        weights = {j: cubic(place - j) for j in range(near - 1, near + 3)}
        rows.append(sum(weight * stored[min(max(j, 0), side - 1)] for j, weight in weights.items()))
    return torch.stack(rows)


@pytest.mark.parametrize("num", [8, 3])
def test_positions_are_interpolated_on_the_published_scale(small: DinoV2, num: int) -> None:
    stored = small.pos_embed[0, 1:].unflatten(0, (5, 5)).double()
    expected = along(along(stored, num).transpose(0, 1), num).transpose(0, 1)
    found = small.positions(num, num)
    torch.testing.assert_close(found[0], expected.flatten(0, 1).float(), rtol=1e-4, atol=1e-5)


def test_positions_of_the_stored_grid_are_the_stored_ones(small: DinoV2) -> None:
    assert torch.equal(small.positions(5, 5), small.pos_embed[:, 1:])


def test_attention_by_the_book(small: DinoV2) -> None:
    """One head and one token at a time."""
    layer = small.blocks[0].attn
    x = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    q, k, v = (part.view(5, 4, 8) for part in layer.qkv(x)[0].split(32, dim=1))
    out = torch.empty(5, 4, 8)
    for head in range(4):
        for token in range(5):
            shares = torch.stack([q[token, head] @ k[other, head] / 8**0.5 for other in range(5)]).softmax(0)
            out[token, head] = sum(shares[other] * v[other, head] for other in range(5))
    torch.testing.assert_close(layer(x)[0], layer.proj(out.flatten(1)), rtol=1e-4, atol=1e-5)


def picture() -> Tensor:
    rows, columns = torch.arange(224.0)[:, None], torch.arange(224.0)
    return torch.stack([torch.sin(rows * a + columns * b) for a, b in ((0.03, 0.01), (0, 0.05), (0.02, -0.02))])[None]


def test_numbers_are_the_authors(small: DinoV2) -> None:
    features, logits = small(picture())
    assert logits is None
    expected = torch.tensor([-0.15364, 0.28850, -0.13643, 0.56739, -0.07390, 0.51559, -0.72705])
    torch.testing.assert_close(features[0, ::5], expected, rtol=1e-4, atol=1e-4)


def test_it_is_the_authors_network(small: DinoV2) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that attention could be faster
        theirs = pytest.importorskip("dinov2.models.vision_transformer", reason="pip install --no-deps dinov2")
        layers = pytest.importorskip("dinov2.layers")
    block = functools.partial(layers.NestedTensorBlock, attn_class=layers.MemEffAttention)
    net = theirs.DinoVisionTransformer(
        img_size=70, patch_size=14, embed_dim=32, depth=2, num_heads=4, block_fn=block, init_values=1.0, block_chunks=0
    )
    net.load_state_dict(small.state_dict())
    for x in (picture(), picture()[:, :, :70, :70], picture()[:, :, :42, :28]):
        torch.testing.assert_close(small(x)[0], net.eval()(x), rtol=1e-5, atol=1e-5)


def test_its_identity_and_preprocessing(monkeypatch: pytest.MonkeyPatch) -> None:
    """ImageNet's mean becomes zero; one deviation of red above it becomes one."""
    seen = []
    net = torch.nn.Identity()
    net.forward = lambda x: (seen.append(x), (x.flatten(1)[:, :1024], None))[1]
    kind = EXTRACTORS["dinov2_vitl14"]
    extractor = Extractor("dinov2_vitl14", kind, net, "d5383ea8f4877b24", kind.resizer, torch.device("cpu"))
    assert extractor.identity == "dinov2_vitl14:d5383ea8f487:cls:224:torch_bicubic_aa:v1"
    assert (extractor.key_prefix, extractor.dim, extractor.num_logits) == ("fd_dinov2_vitl14", 1024, 0)
    image = torch.tensor([124, 116, 104], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 30, 30)
    features, logits = extractor(image)
    assert features.shape == (1, 1024)
    assert logits is None
    expected = (torch.tensor([124, 116, 104]) / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
        [0.229, 0.224, 0.225]
    )
    assert seen[0].shape[1:] == (3, 224, 224)
    torch.testing.assert_close(seen[0][0].mean((1, 2)), expected, rtol=0, atol=1e-5)
