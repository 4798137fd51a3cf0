"""The model behind docs/scale.md: the closed forms that it rests on, and that the page shows what it says."""

import json
import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
MODEL = runpy.run_path(str(DOCS / "scale.py"))
ASSUMED = MODEL["ASSUMED"]


def test_ring_and_tree_have_their_closed_forms() -> None:
    """A ring sends (N - 1) / N of the bytes twice, in 2 (N - 1) messages; a tree all of them, in 2 log2 N."""
    assert MODEL["ring_sec"](1e9, 4, 1.0, 0) == pytest.approx(1.5)
    assert MODEL["ring_sec"](0, 64, 1.0, 10) == pytest.approx(126 * 10e-6)
    assert MODEL["tree_sec"](1e9, 4, 1.0, 0) == pytest.approx(2)
    assert MODEL["tree_sec"](0, 64, 1.0, 10) == pytest.approx(12 * 10e-6)
    assert MODEL["ring_sec"](1e9, 1, 1.0, 10) == MODEL["tree_sec"](1e9, 1, 1.0, 10) == 0


@pytest.mark.parametrize("net", MODEL["NETS"])
def test_more_gpus_never_make_more_of_an_image_than_they_are(net: str) -> None:
    for weak in (0.0, 1.0):
        rows = [MODEL["step"](net, gpus, ASSUMED | {"weak": weak}) for gpus in (8, 16, 64)]
        rates = [row["rate"] / row["gpus"] for row in rows]
        assert rates == sorted(rates, reverse=True)
        assert all(row["total"] >= row["compute"] + row["seen"] for row in rows)


def test_the_page_shows_the_tables_of_the_script() -> None:
    page = (DOCS / "scale.md").read_text().splitlines()
    missing = [line for line in MODEL["main"]([]).splitlines() if line not in page]
    assert missing == []


def test_launches_are_those_that_were_counted() -> None:
    counted = json.loads((DOCS.parent / "tests" / "helpers" / "fakecuda_launches.json").read_text())
    assert {net: row[-1] for net, row in MODEL["NETS"].items()} == {net: sum(counted[net]) for net in MODEL["NETS"]}


def test_the_memory_of_networks_is_counted() -> None:
    """Weight, gradient and two moments of Adam in float32, and the average of G."""
    page = (DOCS / "scale.md").read_text()
    million = {net: 16 * (row[0] + row[1]) + 4 * row[0] for net, row in MODEL["NETS"].items()}
    assert f"{million['r3gan-256'] / 1000:.2f} GB with its average" in page
    for net in ("r3gan-ffhq64", "r3gan-cifar10", "dcgan64"):
        assert f"`{net}` has {million[net] / 1000:.2f} GB" in page or f"`{net}` {million[net] / 1000:.2f} GB" in page
