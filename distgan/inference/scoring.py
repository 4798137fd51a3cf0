"""Score how real images of a generator look; `generate --keep-best` keeps those with the best scores."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distgan.config.decode_options import decode_options
from distgan.config.schema import Config, image_spec
from distgan.data.dataset import Dataset, DatasetOptions
from distgan.data.shard_urls import find_shards
from distgan.errors import ConfigError, DataError
from distgan.inference.loading import load_config, load_discriminator
from distgan.metrics import precision_recall
from distgan.metrics.extractors import open_extractor
from distgan.rng import host_rng
from distgan.storage.byte_ranges import ByteRangeReader
from distgan.transforms.image_values import display_pixels, to_display

log = logging.getLogger("distgan")

# Images [B, C, H, W] in -1..1 and labels [B] to scores [B], all on G's device; more is better.
Score = Callable[[Tensor, Tensor | None], Tensor]
SCORES = ("discriminator", "nearest-real")
NUM_REALS = 4096  # real images that distances are measured to


def open_score(name: str, path: str | Path, chunk: int, device: torch.device) -> Score:
    """Return a score for images of a run's generator.

    Args:
        name: "discriminator" for D's logit; "nearest-real" for the negative distance to the nearest real image, in
            features of the run's `eval.extractor`.
        path: Run or checkpoint.
        chunk: Images of a call.

    Raises:
        ConfigError: There is no such score, or no real images for it.
    """
    if name not in SCORES:
        raise ConfigError(f"--filter-by {name}: there are {', '.join(SCORES)}")
    if name == "discriminator":
        D = load_discriminator(path, chunk, device)
        return lambda images, labels: D(images, labels).float()
    return NearestRealScore(load_config(path), chunk, device)


class NearestRealScore:
    """Score images by the negative distance to the nearest of NUM_REALS real images, always the same ones.

    Args:
        chunk: Images of a call. Real images are read as many at a time.
    """

    def __init__(self, config: Config, chunk: int, device: torch.device) -> None:
        data, settings = config.data, config.eval
        shards = settings.reference or data.shards
        if str(shards).endswith(".npz"):
            raise ConfigError("--filter-by nearest-real needs real images, and eval.reference is a file of statistics")
        self._extractor = open_extractor(
            settings.extractor, settings.weights, settings.resizer, device, settings.download
        )
        self._image, self._bands = image_spec(data), settings.bands
        self._extractor.part = min(self._extractor.part, chunk)  # else it would fill each chunk up
        source = ByteRangeReader(timeout_sec=data.timeout_sec, cache_bytes=data.cache_mb * 2**20)
        try:
            options = DatasetOptions(image=data.image_key, allow_corrupt=data.allow_corrupt)
            dataset = Dataset(find_shards(shards, allow_pipe=data.allow_pipe), source, options)
            numbers = host_rng.permutation(host_rng.key(0, "realism"), dataset.num_samples)[:NUM_REALS]
            log.info(f"reading {len(numbers):,} real images, with {settings.extractor}")
            features = []
            for part in np.split(np.sort(numbers), range(chunk, len(numbers), chunk)):
                pixels = np.stack([dataset.read(int(i), decode_options(data)) for i in part])
                seen = display_pixels(pixels, self._image, self._bands)
                features.append(self._extractor(torch.from_numpy(seen).permute(0, 3, 1, 2))[0])
        finally:
            source.close()
        self._features = torch.cat(features)
        if not self._features.isfinite().all():
            raise DataError(f"features of real images by {settings.extractor} are not finite")

    def __call__(self, images: Tensor, labels: Tensor | None) -> Tensor:
        seen = to_display(images, self._image, self._bands)
        return -precision_recall.nearest(self._extractor(seen)[0], self._features)[0]
