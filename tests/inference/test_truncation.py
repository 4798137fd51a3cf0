"""Truncation: what it keeps, what it cuts off, and what it is asked of."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import untrained

from distgan import load_generator
from distgan.cli.main import main
from distgan.errors import ConfigError
from distgan.inference.truncation import TruncatedLatents, mean_styles, truncated

STYLES = [
    "model.family=stylegan2",
    "model.G={channel_base: 64, w_dim: 16, mapping_layers: 2}",
    "model.D={channel_base: 64, mapping_layers: 2}",
]


@pytest.mark.parametrize("classes", [0, 3])
def test_styles_move_toward_the_mean_of_their_class(tmp_path: Path, classes: int) -> None:
    run = untrained(tmp_path / "run", *STYLES, f"model.conditional={classes > 0}", classes=classes)
    path = run.with_name("tiny.yaml")
    path.write_text((run / "config.yaml").read_text())
    G = load_generator(run)
    labels = None if not classes else torch.arange(8) % classes
    assert torch.equal(truncated(G, 1.0)(8, labels), G(8, labels))
    still = truncated(G, 0.0)(8, labels)
    for i in range(8):
        assert torch.allclose(still[i], still[i % (classes or 1)], atol=1e-6)  # one image of each class
    if classes:
        assert not torch.allclose(still[0], still[1], atol=1e-3)
    z = torch.randn(4000, G.z_dim, generator=torch.Generator().manual_seed(1))
    for label in range(classes or 1):
        w = G.net.mapping(z, torch.full((4000,), label) if classes else None)
        error = (w.mean(0) - mean_styles(G)[label]).abs() / (w.std(0) + 1e-6)
        assert error.max() < 5 * math.sqrt(1 / 4000 + 1 / 1000)  # of independent latents
    spreads = [truncated(G, psi)(64, None if not classes else [0] * 64).var(0).mean().item() for psi in (0.3, 0.7, 1)]
    assert spreads == sorted(spreads)
    grid = tmp_path / "grid.png"
    assert main(["generate", str(run), "--num", "6", "--as", "grid", "--truncation", "0", "--out", str(grid)]) == 0
    columns = 6 // 3 if classes else 3
    pixels = np.asarray(Image.open(grid))
    assert np.abs(pixels[:16, :16].astype(int) - pixels[:16, 16 : 16 * min(2, columns)]).max() <= 1


def test_latents_of_others_are_those_of_a_cut_normal_distribution(tmp_path: Path) -> None:
    seen = []

    class Shows(torch.nn.Module):
        def forward(self, z: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
            seen.append(z)
            return z

    z = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0))
    TruncatedLatents(Shows(), 1.5)(z, None)
    (cut,) = seen
    assert cut.abs().max() <= 1.5
    assert (cut.flatten()[z.flatten().argsort()].diff() >= 0).all()
    density, inside = math.exp(-(1.5**2) / 2) / math.sqrt(2 * math.pi), math.erf(1.5 / math.sqrt(2))
    assert cut.var().item() == pytest.approx(1 - 2 * 1.5 * density / inside, rel=0.01)  # in closed form
    G = load_generator(untrained(tmp_path / "run", classes=0))
    assert torch.allclose(truncated(G, 0.0)(2)[0], truncated(G, 0.0)(2)[1])
    torch.testing.assert_close(truncated(G, 10.0)(4), G(4), rtol=1e-4, atol=1e-4)


def test_what_cannot_be_truncated(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    G = load_generator(untrained(tmp_path / "run", classes=0))
    for strength in (-0.1, 11.0, math.nan):
        with pytest.raises(ConfigError, match=r"0 to 10, such as 0\.7"):
            truncated(G, strength)
    command = ["generate", str(tmp_path / "run"), "--input", str(tmp_path), "--out", str(tmp_path / "x")]
    assert main([*command, "--truncation", "1"]) == 2
    assert "--truncation is of images made of noise" in capsys.readouterr().err
