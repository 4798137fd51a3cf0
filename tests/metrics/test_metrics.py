"""Metrics as functions of features: closed forms, invariants, and values of the field's reference packages.

The stored numbers are those of torch-fidelity 0.4.0 and prdc 0.2 on the same features in float64.
"""

import time

import numpy as np
import pytest
import scipy
import torch
from torch import Tensor
from unordered import Refused

from distgan.metrics import frechet, inception_score, kid, precision_recall
from distgan.metrics.frechet import Gaussian, Moments
from distgan.metrics.names import EVAL_METRICS
from distgan.metrics.per_class import train_probe
from distgan.metrics.registry import METRICS, Features


def points(num: int, seed: int, shift: float = 0.0, dim: int = 24) -> Tensor:
    """Skewed, correlated features, as networks give them."""
    mix = np.random.RandomState(7).standard_normal((dim, dim)) / dim**0.5
    drawn = np.random.RandomState(seed).standard_normal((num, dim))
    return torch.from_numpy(np.abs(drawn @ mix + shift).astype(np.float32))


@pytest.fixture(scope="module")
def real() -> Tensor:
    return points(600, 2)


@pytest.fixture(scope="module")
def fake() -> Tensor:
    return points(500, 6, 0.1)


def distance(real: Tensor, fake: Tensor) -> float:
    known = Moments.of(real).gaussian()
    return frechet.distance(known, Moments.of(fake).gaussian(), frechet.root(known.cov))


def sqrtm_distance(real: Tensor, fake: Tensor) -> float:
    """The definition, by scipy."""
    x, y = real.double().numpy(), fake.double().numpy()
    s, t = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    cross = np.trace(scipy.linalg.sqrtm(s @ t)).real
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s) + np.trace(t) - 2 * cross)


def test_frechet_equals_references(real: Tensor, fake: Tensor) -> None:
    assert distance(real, fake) == pytest.approx(0.23204682595799042, rel=1e-10)
    assert distance(real, fake) == pytest.approx(sqrtm_distance(real, fake), rel=1e-10)
    assert distance(real, fake) == pytest.approx(distance(fake, real), rel=1e-10)


def test_frechet_of_diagonal_gaussians_is_the_closed_form() -> None:
    a, b = torch.rand(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    real, fake = Gaussian(9, torch.zeros_like(a), a.diag()), Gaussian(9, torch.ones_like(b), b.diag())
    expected = 50 + float((a.sqrt() - b.sqrt()).square().sum())
    assert frechet.distance(real, fake, frechet.root(real.cov)) == pytest.approx(expected, rel=1e-12)
    assert frechet.distance(real, real, frechet.root(real.cov)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("num", [12, 40, 63])
def test_frechet_of_fewer_images_than_features(num: int) -> None:
    """Against the nuclear norm of A B^T, where A^T A and B^T B are the covariances: no root of a singular matrix."""
    real, fake = points(50, 3, dim=64), points(num, 4, 0.2, dim=64)
    a, b = ((x.double() - x.double().mean(0)) / (len(x) - 1) ** 0.5 for x in (real, fake))
    trace = torch.linalg.matrix_norm(a @ b.T, "nuc")
    expected = (real.double().mean(0) - fake.double().mean(0)).square().sum() + a.square().sum() + b.square().sum()
    assert distance(real, fake) == pytest.approx(float(expected - 2 * trace), rel=1e-9)


@pytest.mark.slow
def test_frechet_is_quick_once_the_real_half_is_known() -> None:
    """Against scipy's root of the product, in the same process, at the size of Inception's features."""
    real, fake = points(3000, 1, dim=2048), points(3000, 2, dim=2048)
    known, own = Moments.of(real).gaussian(), Moments.of(fake).gaussian()
    root, seconds = frechet.root(known.cov), []
    for work in (
        lambda: frechet.distance(known, own, root),
        lambda: scipy.linalg.sqrtm(known.cov.numpy() @ own.cov.numpy()),
    ):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    assert seconds[0] < 0.4 * seconds[1]


def test_frechet_in_float32_is_refused(real: Tensor) -> None:
    known = Moments.of(real).gaussian()
    with pytest.raises(TypeError, match="float64"):
        frechet.root(known.cov.float())


def test_moments_add_up_in_any_split() -> None:
    whole = points(1000, 1) + 100  # a large mean, as sums of squares dislike it
    parts = [Moments.of(part) for part in whole.split([7, 600, 393])]
    merged = Moments(24)
    merged.sums.copy_(sum(part.sums for part in parts))
    found = merged.gaussian()
    assert found.num == 1000
    assert torch.allclose(found.mean, whole.double().mean(dim=0), rtol=1e-13)
    assert torch.allclose(found.cov, whole.double().T.cov(), rtol=1e-8)
    with pytest.raises(ValueError, match="2 images at least, not 1"):
        Moments.of(whole[:1]).gaussian()


def test_the_error_of_the_distance_is_that_of_independent_draws() -> None:
    real = points(4000, 11)
    known = Moments.of(real).gaussian()
    root = frechet.root(known.cov)
    draws = [points(400, 100 + i, 0.1) for i in range(30)]
    found = [frechet.distance(known, Moments.of(draw).gaussian(), root) for draw in draws]
    errors = [frechet.jackknife(known, draw, root) for draw in draws]
    assert 0.7 < np.mean(errors) / np.std(found, ddof=1) < 1.4


def test_kernel_distance_equals_the_reference_on_its_subsets(real: Tensor, fake: Tensor) -> None:
    """With the reference's first set being the fakes, as people run it."""
    mean, deviation, size = kid.subsets(real, fake, num=20, size=300)
    assert (mean, deviation) == pytest.approx((0.0026353519994035, 0.004902880147989555), rel=1e-9)
    assert size == 300
    assert kid.subsets(real, fake, num=2)[2] == 500  # as many as there are


def test_the_subsets_of_the_kernel_distance_are_drawn_for_the_fakes_first(real: Tensor, fake: Tensor) -> None:
    draw, found = np.random.RandomState(2020), []
    for _ in range(5):
        y, x = (points.double()[draw.choice(len(points), 50, replace=False)] for points in (fake, real))
        xx, yy, xy = ((a @ b.T / x.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
        within = (xx.sum() - xx.trace() + yy.sum() - yy.trace()) / (50 * 49)
        found.append(float(within - 2 * xy.mean()))
    expected = (np.mean(found), np.std(found), 50)
    assert kid.subsets(real, fake, num=5, size=50) == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_over_all_pairs_is_the_definition(
    real: Tensor, fake: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = real.double(), fake.double()
    n, m = len(x), len(y)
    own, other, across = ((a @ b.T / 24 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    expected = (own.sum() - own.trace()) / (n * (n - 1)) + (other.sum() - other.trace()) / (m * (m - 1))
    expected -= 2 * across.mean()
    assert kid.full(real, fake)[0] == pytest.approx(float(expected), rel=1e-9)
    monkeypatch.setattr(kid, "TILE", 37)
    assert kid.full(real, fake)[0] == pytest.approx(float(expected), rel=1e-9)


def test_kernel_distance_has_no_bias_and_an_honest_error() -> None:
    real = points(800, 20)
    pairs = [kid.full(real, points(60, 200 + i)) for i in range(60)]
    values, errors = np.array(pairs).T
    assert abs(values.mean()) < 4 * values.std(ddof=1) / 60**0.5
    assert 0.6 < errors.mean() / values.std(ddof=1) < 1.6


def test_inception_score_equals_the_reference() -> None:
    logits = torch.from_numpy((np.random.RandomState(9).standard_normal((997, 12)) * 2).astype(np.float32))
    assert inception_score.score(logits) == pytest.approx((2.7759111975078357, 0.11228055705891754), rel=1e-10)
    assert inception_score.score(logits, splits=1) == pytest.approx((2.810946872778922, 0), rel=1e-10)
    sure = 100 * torch.eye(10).repeat(50, 1)
    assert inception_score.score(sure, splits=1)[0] == pytest.approx(10)


def test_neighbourhoods_equal_the_references(real: Tensor, fake: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    for tile in (1024, 41):
        monkeypatch.setattr(precision_recall, "TILE", tile)
        precision, recall = precision_recall.precision_recall(real, fake)
        assert (precision[0], recall[0]) == pytest.approx((411 / 500, 494 / 600), abs=1e-12)
        density, coverage = precision_recall.density_coverage(real, fake)
        assert (density[0], coverage[0]) == pytest.approx((0.9448, 0.925), abs=1e-12)


def test_neighbourhoods_of_equal_distributions() -> None:
    """Coverage is 1 - 2^-k in theory, and density 1."""
    density, coverage = precision_recall.density_coverage(points(3000, 31, dim=6), points(3000, 32, dim=6))
    assert density[0] == pytest.approx(1, abs=0.03)
    assert coverage[0] == pytest.approx(1 - 2**-5, abs=0.01)
    assert 0.001 < coverage[1] < 0.01


def test_copies_are_at_no_distance(real: Tensor) -> None:
    far = real + 1000  # large features, whose rounding would show
    distance, which = precision_recall.nearest(far[[5, 9]], far)
    assert distance.tolist() == [0, 0]
    assert which.tolist() == [5, 9]
    copies = far[:1].repeat(50, 1)
    assert precision_recall.precision_recall(far, copies)[0][0] == 1
    assert precision_recall.precision_recall(far, copies)[1][0] == pytest.approx(1 / 600)
    assert not precision_recall.reach(copies, 3).any()
    with pytest.raises(ValueError, match="3 neighbors need 4 images at least, not 3"):
        precision_recall.reach(real[:3], 3)


def test_a_probe_separates_what_is_separable_and_no_more() -> None:
    labels = torch.arange(600) % 3
    centres = torch.randn(3, 24, generator=torch.Generator().manual_seed(1))
    marked = points(600, 41) + centres[labels]
    probe = train_probe(marked[:300], labels[:300], 3)
    assert probe.accuracy(marked[300:], labels[300:]) > 0.97
    assert probe.accuracy(marked[300:], (labels[300:] + 1) % 3) < 0.03
    plain = points(600, 42)
    assert 0.2 < train_probe(plain[:300], labels[:300], 3).accuracy(plain[300:], labels[300:]) < 0.47


def test_a_probe_with_fewer_images_than_features_still_generalises() -> None:
    labels = torch.arange(400) % 4
    centres = torch.randn(4, 128, generator=torch.Generator().manual_seed(2)) / 2
    marked = torch.randn(400, 128, generator=torch.Generator().manual_seed(3)) + centres[labels]
    assert train_probe(marked[:100], labels[:100], 4).accuracy(marked[100:], labels[100:]) > 0.85


@pytest.mark.parametrize("name", [name for name in METRICS if name != "is"])
def test_every_metric_finds_a_shift(name: str, real: Tensor) -> None:
    """Each value of a shifted set is worse than that of an unshifted one."""

    def values(shift: float) -> dict[str, tuple[float, float]]:
        fake = points(500, 6, shift)
        return METRICS[name].values(features(real), features(fake), True)

    good, bad = values(0), values(2)
    for key in good:
        assert all(np.isfinite(good[key][:1])), key
    main = next(iter(good))
    if EVAL_METRICS[name] == "lower":
        assert bad[main][0] > good[main][0]
    else:
        assert all(bad[key][0] < good[key][0] for key in good if key != "density_k5")


def features(points: Tensor) -> Features:
    gaussian = Moments.of(points).gaussian()
    return Features(gaussian, points, points[:, :5] * 2, None, frechet.root(gaussian.cov))


def test_the_config_knows_the_metrics() -> None:
    assert {name: metric.direction for name, metric in METRICS.items()} == EVAL_METRICS


def test_values_have_their_names(real: Tensor) -> None:
    for metric in METRICS.values():
        assert tuple(metric.values(features(real), features(real[:300]), False)) == metric.names


def test_no_metric_ends_a_deterministic_run() -> None:
    def features(seed: int) -> Features:
        made = points(60, seed)
        logits = torch.from_numpy(np.random.RandomState(seed).standard_normal((60, 10)))
        labels = torch.arange(60) % 3
        gaussian = Moments.of(made).gaussian()
        return Features(gaussian, made, logits, labels, frechet.root(gaussian.cov))

    real, fake = features(1), features(2)
    with Refused() as refused:
        for metric in METRICS.values():
            metric.values(real, fake, True)
    assert refused.names == set()
    with Refused() as refused:
        real.points.kthvalue(2, dim=1), real.points.median(dim=1), real.points.cumsum(0), torch.arange(3).cumsum(0)
    assert refused.names == {"kthvalue", "median", "cumsum"}
