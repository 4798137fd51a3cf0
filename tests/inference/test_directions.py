"""Directions of latents: closed forms, and the files of the command."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import untrained

from distgan import load_generator
from distgan.cli.main import main
from distgan.errors import ConfigError
from distgan.inference.directions import DirectionOptions, find, walk

STYLES = [
    "model.family=stylegan2",
    "model.G={channel_base: 64, w_dim: 16, mapping_layers: 2}",
    "model.D={channel_base: 64, mapping_layers: 2}",
]
FAMILIES = {
    "dcgan": ([], lambda net: net.layers[0][0].weight[:8].flatten(1).T),
    "r3gan": (["model.family=r3gan", "model.G={widths: [8]}", "model.D={widths: [8]}"], lambda net: net.dense.weight),
    "resnet": (
        ["model.family=resnet", "model.G={base_channels: 8}", "model.D={base_channels: 8}", "loss={r1: 0, r2: 0}"],
        lambda net: net.dense.weight,
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_directions_of_z_are_the_right_singular_vectors_of_the_first_layer(tmp_path: Path, family: str) -> None:
    settings, weight = FAMILIES[family]
    run = (
        untrained(tmp_path / "run", "model.G={}", "model.D={}", *settings) if settings else untrained(tmp_path / "run")
    )
    G = load_generator(run)
    found = find(G, 3)
    _, singular, vectors = torch.linalg.svd(weight(G.net)[:, :8].double(), full_matrices=False)
    torch.testing.assert_close(found.values, singular[:3].square().float(), rtol=1e-4, atol=1e-6)
    cosines = (found.vectors.double() * vectors[:3]).sum(1).abs()
    torch.testing.assert_close(cosines, torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-4)
    assert torch.equal(found.deviations, torch.ones(3))
    assert (found.vectors.gather(1, found.vectors.abs().argmax(1, keepdim=True)) > 0).all()


@pytest.mark.parametrize("classes", [0, 3])
def test_directions_of_w(tmp_path: Path, classes: int) -> None:
    """SeFa: no unit vector moves the scales of all layers more. PCA: along none does w vary more."""
    G = load_generator(untrained(tmp_path / "run", *STYLES, f"model.conditional={classes > 0}", classes=classes))
    sefa, pca = find(G, 16), find(G, 16, "pca")
    weights = torch.cat([module.affine.weight for module in G.net.modules() if hasattr(module, "affine")])
    moved = (weights @ sefa.vectors.T).square().sum(0)
    torch.testing.assert_close(moved, sefa.values, rtol=1e-4, atol=1e-5)
    assert (moved.diff() <= 1e-4).all()
    torch.testing.assert_close(sefa.vectors @ sefa.vectors.T, torch.eye(16), rtol=0, atol=1e-5)
    z = torch.randn(20_000, 8, generator=torch.Generator().manual_seed(5))
    labels = torch.arange(20_000) % classes if classes else None
    along = (G.net.mapping(z, labels) @ pca.vectors.T).std(0)
    torch.testing.assert_close(along[:4], pca.deviations[:4], rtol=0.05, atol=1e-3)
    assert (pca.deviations.diff() <= 1e-6).all()
    options = DirectionOptions(rows=2, columns=3)
    middle = list(walk(G, sefa, 0, options))[1]
    torch.testing.assert_close(middle, G(2), rtol=1e-4, atol=1e-5)  # the images themselves


def test_the_command_writes_vectors_and_walks(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run, out = untrained(tmp_path / "run", *STYLES), tmp_path / "out"
    command = ["directions", str(run), str(out), "--num", "2", "--rows", "3", "--columns", "5"]
    assert main(command) == 0
    assert np.load(out / "directions.npy").shape == (2, 16)
    assert json.loads((out / "directions.json").read_text())["space"] == "w"
    with Image.open(out / "direction-01.png") as image:
        assert image.size == (5 * 16, 3 * 16)
    assert main(command) == 2
    assert "is not an empty folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--num", "99"], "have 8 directions"),
        (["--method", "pca"], "of generators with styles, and dcgan has none"),
        (["--method", "ica"], "choose one of sefa, pca"),
        (["--strength", "0"], "above 0"),
        (["--rows", "0"], "--rows 0: at least 1"),
    ],
)
def test_what_there_is_not(tmp_path: Path, words: list[str], told: str, capsys: pytest.CaptureFixture) -> None:
    run = untrained(tmp_path / "run")
    assert main(["directions", str(run), str(tmp_path / "out"), *words]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError):
        DirectionOptions(num=0)
