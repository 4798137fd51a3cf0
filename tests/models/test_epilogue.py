"""Layers before D's head: against slow references, and independent of how a batch is cut."""

import numpy as np
import pytest
import torch

from distgan.models.epilogue import Epilogue

X = torch.randn(8, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_standard_deviation_is_that_of_each_group() -> None:
    found = Epilogue(3, (4, 4), "stddev", group=4)(X)
    assert found.shape == (8, 4, 4, 4)
    assert torch.equal(found[:, :3], X)
    for start in (0, 4):
        expected = np.sqrt(X[start : start + 4].numpy().var(axis=0) + 1e-8).mean()
        np.testing.assert_allclose(found[start : start + 4, 3].numpy(), expected, rtol=1e-6)


def test_discrimination_is_the_paper_s_sum() -> None:
    epilogue = Epilogue(3, (4, 4), "discrimination", group=4).double()
    found, T = epilogue(X), epilogue.compare.T.detach().numpy()
    assert found.shape == (8, 3 + 32, 4, 4)
    rows = (X.flatten(1).numpy() @ T).reshape(8, 32, 8)
    for i in range(8):
        others = [j for j in range(i // 4 * 4, i // 4 * 4 + 4) if j != i]
        for b in range(32):
            expected = sum(np.exp(-np.abs(rows[i, b] - rows[j, b]).sum()) for j in others)
            assert found[i, 3 + b].detach().numpy() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("minibatch", ["stddev", "discrimination"])
def test_passes_of_whole_groups_see_the_same(minibatch: str) -> None:
    epilogue = Epilogue(3, (4, 4), minibatch, group=2).double()
    whole, parts = epilogue(X), torch.cat([epilogue(part) for part in X.split(4)])
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=0)
    same = X[:1].expand(2, -1, -1, -1)  # a generator that repeats itself stands out
    assert (epilogue(same)[:, 3:].mean() - epilogue(X[:2])[:, 3:].mean()).abs() > 1e-3


@pytest.mark.parametrize("minibatch", ["stddev", "discrimination"])
def test_gradients(minibatch: str) -> None:
    """Twice, since R1 runs through them."""
    epilogue = Epilogue(2, (2, 2), minibatch, group=3).double()
    x = torch.randn(3, 2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    assert torch.autograd.gradcheck(epilogue, x)
    assert torch.autograd.gradgradcheck(epilogue, x)


def test_dropout_is_a_function_of_each_image_s_seed() -> None:
    seeds, epilogue = torch.arange(8) * 12345, Epilogue(3, (4, 4), dropout=0.25)
    images = torch.ones(8, 3, 4, 4)
    assert torch.equal(epilogue(images), images)  # nobody said which images these are
    epilogue.seeds, epilogue.tag = seeds, "real"
    whole = epilogue(images)
    assert whole.unique().tolist() == pytest.approx([0, 4 / 3])
    epilogue.seeds = seeds[4:]
    assert torch.equal(epilogue(images[4:]), whole[4:])
    epilogue.seeds, epilogue.tag = seeds, "fake"
    assert not torch.equal(epilogue(images), whole)
    assert torch.equal(epilogue.eval()(images), images)
    many = torch.ones(2000, 3, 4, 4)
    epilogue.train().seeds = torch.arange(2000)
    assert (epilogue(many) == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
