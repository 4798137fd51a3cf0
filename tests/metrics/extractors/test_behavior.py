"""Distances in EfficientNet-Lite0's features on real pictures: they grow with every kind of damage and its strength.

Needs CIFAR-10's test pictures as class folders in a `test.tar.xz`, and the extractor's weights.
"""

import io
import itertools
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from distgan.errors import ConfigError
from distgan.metrics import frechet
from distgan.metrics import kid as kernel
from distgan.metrics.extractors import EXTRACTORS, Extractor, open_extractor
from distgan.metrics.frechet import Gaussian, Moments

ARCHIVE = Path(os.environ.get("DISTGAN_CIFAR10", "cifar10")) / "test.tar.xz"
NUM = 300  # images on either side
SIDE = 96  # pixels that the network sees, for speed; its own 224 show the same order
Pixels = np.ndarray  # uint8 [H, W, 3]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not ARCHIVE.exists(), reason="DISTGAN_CIFAR10 names no folder with test.tar.xz"),
]


def blurred(sigma: float) -> Callable[[Pixels], Pixels]:
    return lambda pixels: np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(sigma)))


def noisy(sigma: float) -> Callable[[Pixels], Pixels]:
    """Gaussian noise of so many grey levels, the same for the same picture."""

    def add(pixels: Pixels) -> Pixels:
        noise = np.random.default_rng(int(pixels.sum())).normal(0, sigma, pixels.shape)
        return (pixels + noise).round().clip(0, 255).astype(np.uint8)

    return add


def jpeg(quality: int) -> Callable[[Pixels], Pixels]:
    def coded(pixels: Pixels) -> Pixels:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file))

    return coded


@pytest.fixture(scope="module")
def classes() -> list[list[Pixels]]:
    """Pictures of each class, in the order of the archive."""
    found: dict[str, list[Pixels]] = {}
    with tarfile.open(ARCHIVE) as archive:
        for member in archive:
            if member.isfile():
                data = archive.extractfile(member).read()
                found.setdefault(member.name.split("/")[-2], []).append(np.asarray(Image.open(io.BytesIO(data))))
    return list(found.values())


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    try:
        own = open_extractor("efficientnet_lite0")
    except ConfigError as error:
        pytest.skip(str(error))
    kind = EXTRACTORS["efficientnet_lite0"]._replace(size=SIDE)
    return Extractor(own.name, kind, own._net, "small", kind.resizer, torch.device("cpu"))


def features(extractor: Extractor, pictures: list[Pixels]) -> torch.Tensor:
    return extractor(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2))[0]


def some(classes: list[list[Pixels]], num_classes: int, first: int = 0) -> list[Pixels]:
    """`NUM` pictures, as many of each of so many classes, from the `first` of each on."""
    return [picture for pictures in classes[:num_classes] for picture in pictures[first : first + NUM // num_classes]]


@pytest.fixture(scope="module")
def real(extractor: Extractor, classes: list[list[Pixels]]) -> tuple[torch.Tensor, Gaussian, torch.Tensor]:
    """Features of one half of the real pictures, their Gaussian, and its root."""
    points = features(extractor, some(classes, 10))
    gaussian = Moments.of(points).gaussian()
    return points, gaussian, frechet.root(gaussian.cov)


def distances(extractor: Extractor, real: tuple, pictures: list[Pixels]) -> tuple[float, float, float]:
    """Fréchet distance and kernel distance to the real half, and the latter's standard error."""
    points = features(extractor, pictures)
    fd = frechet.distance(real[1], Moments.of(points).gaussian(), real[2])
    return fd, *kernel.full(real[0], points)


@pytest.fixture(scope="module")
def baseline(extractor: Extractor, real: tuple, classes: list[list[Pixels]]) -> tuple[float, float, float]:
    """The other real half."""
    return distances(extractor, real, some(classes, 10, NUM // 10))


def test_two_real_halves_have_no_kernel_distance(baseline: tuple[float, float, float]) -> None:
    """Zero within three standard errors, where the Fréchet distance shows its bias."""
    assert abs(baseline[1]) < 3 * baseline[2]
    assert baseline[0] > 10


def check_growth(found: list[tuple[float, float, float]]) -> None:
    """Both distances rise at every step, and at the last the kernel distance is ten standard errors from zero."""
    for (fd, kid, _), (next_fd, next_kid, _) in itertools.pairwise(found):
        assert next_fd > fd, found
        assert next_kid > kid, found
    assert found[-1][1] > 10 * found[-1][2], found


@pytest.mark.parametrize(
    "damages",
    [
        [blurred(1), blurred(2)],
        [noisy(4), noisy(16), noisy(32)],
        [jpeg(20), jpeg(5)],
    ],
    ids=["blur", "noise", "jpeg"],
)
def test_distances_grow_with_damage(
    extractor: Extractor,
    real: tuple,
    classes: list[list[Pixels]],
    baseline: tuple[float, float, float],
    damages: list[Callable[[Pixels], Pixels]],
) -> None:
    found = [baseline]
    for damage in damages:
        found.append(distances(extractor, real, [damage(picture) for picture in some(classes, 10, NUM // 10)]))
    check_growth(found)


def test_distances_grow_with_dropped_classes(
    extractor: Extractor, real: tuple, classes: list[list[Pixels]], baseline: tuple[float, float, float]
) -> None:
    """As many pictures each time, all of them real and none of the other half's."""
    found = [baseline, *(distances(extractor, real, some(classes, num, NUM // 10)) for num in (5, 1))]
    check_growth(found)
