"""Probes of conditions: exact where features hold them, no better than the mean where they do not."""

import numpy as np
import pytest
import torch

from distgan.condition_spec import Conditions, Field
from distgan.metrics.condition_probe import probe_conditions

FIELDS = [
    Field("age", "number", mean=40.0, std=10.0),
    Field("smiling", "flag", mean=0.5),
    Field("kind", "class", classes=["cat", "dog", "eel"]),
    Field("code", "vector", length=2),
]
KNOWN = Conditions(FIELDS)


def values(rng: np.random.Generator, num: int) -> np.ndarray:
    age, code = rng.normal(40, 10, num), rng.normal(size=(2, num))
    return np.stack([age, rng.integers(0, 2, num), rng.integers(0, 3, num), *code], 1).astype(np.float32)


def features(given: np.ndarray, rng: np.random.Generator, noise: float = 0.0) -> torch.Tensor:
    """A linear map of the networks' vectors, with numbers that have nothing to do with them."""
    vectors = KNOWN.encode(given) @ np.random.default_rng(0).normal(size=(KNOWN.length, 12))
    others = rng.normal(size=(len(given), 3))
    return torch.from_numpy(np.concatenate([vectors, others], 1) + noise * rng.normal(size=(len(given), 15)))


def test_features_that_hold_the_conditions_show_them() -> None:
    rng = np.random.default_rng(1)
    real, fake = values(rng, 2000), values(rng, 500)
    real[::7, 0] = np.nan  # unknown of some, which do not count
    found = probe_conditions(KNOWN, (features(real, rng), real), (features(fake, rng), fake))
    assert list(found) == ["age", "smiling", "kind", "code"]
    assert found["age"]["error"] < 0.05
    assert found["age"]["r2"] == pytest.approx(1, abs=1e-3)
    assert found["code"]["r2"] == pytest.approx(1, abs=1e-3)
    assert found["smiling"]["accuracy"] == found["kind"]["accuracy"] == 1
    assert found["age"]["r2_real"] == pytest.approx(1, abs=1e-3)


def test_images_that_ignore_their_conditions_are_found_out() -> None:
    rng = np.random.default_rng(2)
    real, fake = values(rng, 2000), values(rng, 2000)
    found = probe_conditions(KNOWN, (features(real, rng), real), (features(values(rng, 2000), rng), fake))
    # Of two independent draws of one distribution: r2 = 1 - 2 var / var, and the accuracy of guessing.
    assert found["age"]["r2"] == pytest.approx(-1, abs=0.2)
    assert found["age"]["error"] == pytest.approx(20 / np.sqrt(np.pi), rel=0.1)
    assert found["smiling"]["accuracy"] == pytest.approx(1 / 2, abs=0.06)
    assert found["kind"]["accuracy"] == pytest.approx(1 / 3, abs=0.06)


def test_too_few_images_have_no_value() -> None:
    rng = np.random.default_rng(3)
    real, fake = values(rng, 100), values(rng, 100)
    fake[10:, 0] = np.nan
    assert "age" not in probe_conditions(KNOWN, (features(real, rng), real), (features(fake, rng), fake))
