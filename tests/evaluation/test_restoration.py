"""Held-out images of an image-to-image run: which images its grids show."""

from pathlib import Path

import numpy as np
import pytest
import torch
from shards import write_shards

from distgan.data.dataset import Dataset
from distgan.data.decode import DecodeOptions
from distgan.data.sample_parts import DatasetOptions
from distgan.data.shard_urls import find_shards
from distgan.evaluation.restoration import BEST_DB, RestorationEval
from distgan.image_spec import ImageSpec, square
from distgan.models import MODELS
from distgan.storage.byte_ranges import ByteRangeReader
from distgan.transforms.degrade_spec import parse


@pytest.mark.parametrize("holdout", [0, 3, 30])
def test_grids_show_held_out_images_or_training_images_where_none_are(tmp_path: Path, holdout: int) -> None:
    write_shards(tmp_path / "set", [40])
    data = Dataset(find_shards(str(tmp_path / "set")), ByteRangeReader(), DatasetOptions(num_held_out=holdout))
    how = {
        "base_channels": 2,
        "max_channels": 4,
        "norm": "none",
        "embed_dim": 4,
        "skips": False,
        "residual": True,
        "noise": False,
    }
    torch.manual_seed(0)
    G, decode = MODELS["restore"].generator(square(16), 4, 0, **how), DecodeOptions(square(16))
    triples = RestorationEval(data, parse([{"noise": 25}], square(16)), decode, 4).triples(G, 6)
    assert [triple.shape for triple in triples] == [(16, 48, 3)] * 6
    shown = {triple[:, 32:].tobytes() for triple in triples}
    held_out = {data.read(i, decode).tobytes() for i in range(data.num_samples, data.num_samples + data.num_held_out)}
    trained = {data.read(i, decode).tobytes() for i in range(data.num_samples)}
    assert len(held_out) == holdout and len(shown) == min(6, holdout or 6)
    assert shown <= (held_out if holdout else trained)
    assert all(not np.array_equal(triple[:, :16], triple[:, 32:]) for triple in triples)


def test_values_beyond_the_range_are_clipped_on_both_sides_before_they_are_compared(tmp_path: Path) -> None:
    """What no generator can make is no error of it; held-out images as they are, restored ones clipped."""
    write_shards(tmp_path / "set", [8])
    data = Dataset(find_shards(str(tmp_path / "set")), ByteRangeReader(), DatasetOptions())
    image = ImageSpec(16, 16, 2, "float32", -1, 3)
    evaluation = RestorationEval(data, [], DecodeOptions(image), 4)
    clean = torch.from_numpy(np.random.default_rng(0).normal(0, 4, (3, 16, 16, 2)).astype(np.float32))
    assert not clean.clamp(-1, 3).equal(clean)
    psnr, ssim = evaluation._psnr_and_ssim(clean.clamp(-1, 3), clean).unbind(1)
    assert psnr.tolist() == [BEST_DB] * 3 and ssim == pytest.approx(1)
