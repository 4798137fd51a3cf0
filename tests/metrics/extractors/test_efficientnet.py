"""EfficientNet-Lite0 against the network of the package that trained it, and with its published weights."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distgan.errors import ConfigError, DataError
from distgan.metrics.extractors import Extractor, open_extractor
from distgan.metrics.extractors.efficientnet import EfficientNetLite0, SameConv2d
from distgan.metrics.weights import find_weights


@pytest.fixture(scope="module")
def lite0() -> Extractor:
    try:
        return open_extractor("efficientnet_lite0")
    except ConfigError as error:
        pytest.skip(str(error))


def photograph(name: str) -> torch.Tensor:
    """One of scikit-learn's: 7/8 of its middle square, at 224 pixels; uint8 [3, 224, 224]."""
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn has the photographs")
    image = Image.fromarray(datasets.load_sample_image(name))
    side = min(image.size) * 7 // 8
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_it_has_the_published_size() -> None:
    """4.7 M parameters (TensorFlow's table of EfficientNet-Lite), of which 1000 x 1281 are the head's."""
    with torch.device("meta"):
        net = EfficientNetLite0()
    assert sum(p.numel() for p in net.parameters()) == 4_652_008
    assert len(net.state_dict()) == 296 - 49  # the file counts the batches of each norm too
    features, logits = net(torch.empty(2, 3, 224, 224, device="meta"))
    assert features.shape == (2, 1280)
    assert logits.shape == (2, 1000)


@pytest.mark.parametrize(("kernel", "stride", "side"), [(3, 2, 8), (3, 2, 7), (5, 2, 8), (5, 1, 6), (1, 1, 3)])
def test_same_padding_is_tensorflow_s(kernel: int, stride: int, side: int) -> None:
    """ceil(side / stride) outputs; where the number of zeros is odd, one more comes after than before."""
    conv = SameConv2d(1, 1, kernel, stride)
    torch.nn.init.ones_(conv.weight)
    rows = torch.arange(1.0, side + 1)
    found = conv(rows.view(1, 1, 1, side).expand(1, 1, side, side))[0, 0]
    num = -(-side // stride)
    first = -(max((num - 1) * stride + kernel - side, 0) // 2)
    windows = [range(first + i * stride, first + i * stride + kernel) for i in range(num)]
    ahead = [sum(rows[j].item() for j in window if 0 <= j < side) for window in windows]
    inside = [sum(0 <= j < side for j in window) for window in windows]
    assert found.tolist() == [[total * num_rows for total in ahead] for num_rows in inside]


def test_it_is_the_package_s_network(lite0: Extractor) -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch", reason="the reference network is not installed")
    theirs = package.EfficientNet.from_pretrained("efficientnet-lite0", str(find_weights("efficientnet_lite0"))).eval()
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features, logits = lite0._net(x)
        torch.testing.assert_close(features, theirs.extract_features(x).mean((2, 3)), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(logits, theirs(x), rtol=1e-5, atol=1e-5)


def test_it_knows_what_photographs_show(lite0: Extractor) -> None:
    """The shares show the preprocessing: with ImageNet's mean and deviation the daisy is a lampshade."""
    _, logits = lite0(torch.stack([photograph("china.jpg"), photograph("flower.jpg")]))
    shares, order = logits.softmax(1).topk(3)
    assert order[0].tolist() == [698, 442, 663]  # palace, bell cote, monastery
    assert shares[0].tolist() == pytest.approx([0.36, 0.14, 0.08], abs=0.005)
    assert order[1, 0] == 985  # daisy
    assert shares[1, 0] == pytest.approx(0.33, abs=0.005)


def test_its_identity_tells_what_made_the_numbers(lite0: Extractor) -> None:
    assert lite0.identity == "efficientnet_lite0:579344248a93:pool:224:clean_bicubic:v1"
    assert (lite0.key_prefix, lite0.dim, lite0.num_logits) == ("fd_efficientnet_lite0", 1280, 1000)


def test_its_features_depend_on_the_batch_by_rounding_alone(lite0: Extractor) -> None:
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    together, _ = lite0(images)
    torch.testing.assert_close(lite0(images[1:2])[0], together[1:2], rtol=1e-4, atol=1e-5)


def test_opening_it_draws_no_random_numbers(lite0: Extractor) -> None:
    state = torch.get_rng_state()
    open_extractor("efficientnet_lite0")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("damage", [lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: data[:1000]])
def test_altered_weights_are_refused(lite0: Extractor, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "lite0.pth"
    path.write_bytes(damage(find_weights("efficientnet_lite0").read_bytes()))
    with pytest.raises(DataError, match="must be 579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"):
        open_extractor("efficientnet_lite0", weights=str(path))
