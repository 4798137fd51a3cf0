"""The same update on any number of ranks, with exactly one set of gradients sent for each step."""

from pathlib import Path

import pytest
import torch
from processes import WORKERS, output, run_ranks
from safetensors.torch import load_file

SCRIPT = str(WORKERS / "ranks_gradients.py")


def gradients(folder: Path, world: int, passes: int, pairs: str) -> list[dict[str, torch.Tensor]]:
    """What each rank found."""
    out, log = folder / f"gradients-{world}-{passes}", folder / f"log-{world}-{passes}"
    assert run_ranks(world, [SCRIPT, str(out), str(passes), pairs], log) == [0] * world, output(log, world)
    return [load_file(f"{out}.{rank}") for rank in range(world)]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """One rank, one pass over the whole batch."""
    return gradients(tmp_path_factory.mktemp("one"), 1, 1, "some")[0]


@pytest.fixture(scope="module")
def whole_reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Likewise, of all pairs of a loss and a penalty."""
    return gradients(tmp_path_factory.mktemp("one"), 1, 1, "all")[0]


@pytest.mark.multi
@pytest.mark.parametrize(
    ("world", "passes", "pairs"),
    [(2, 2, "some"), *(pytest.param(*size, "all", marks=pytest.mark.slow) for size in ((1, 2), (2, 1), (2, 2)))],
)
def test_gradients_equal_those_of_one_rank(
    tmp_path: Path, world: int, passes: int, pairs: str, request: pytest.FixtureRequest
) -> None:
    """Relative to the largest gradient of each tensor; for every loss and penalty (the script counts the traffic)."""
    reference = request.getfixturevalue("reference" if pairs == "some" else "whole_reference")
    found = gradients(tmp_path, world, passes, pairs)
    for name, expected in reference.items():
        scale = expected.abs().max().item() or 1.0
        for rank in found:
            if "diversity" in name and passes > 1:
                continue
            error = (rank[name] - expected).abs().max().item() / scale
            assert error <= (2e-6 if "report" in name else 1e-6 if "diversity" in name else 1e-12), (name, error)
    for rank in found[1:]:
        assert all(torch.equal(rank[name], found[0][name]) for name in rank)


@pytest.mark.multi
def test_the_check_can_fail(reference: dict[str, torch.Tensor]) -> None:
    """Penalties, losses and labels all leave their mark on the gradients that are compared."""
    for loss in ("hinge", "rpgan"):
        weights = {penalty: reference[f"{loss}/{penalty}/D.head.weight"] for penalty in ("none", "r1", "r2", "gp")}
        assert all(not torch.allclose(weights["none"], w) for name, w in weights.items() if name != "none")
    assert reference["hinge/none/D.embed.weight"].abs().sum() > 0
