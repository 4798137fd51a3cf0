"""The pictures of a run: real images, and what the average generator makes of latents that stay the same."""

import numpy as np
from torch import nn

from distgan import sample
from distgan.config import Config
from distgan.data.dataset import Dataset
from distgan.tracker import Tracker


class Gallery:
    """Grids of one layout, so that all of a run's can be laid beside each other."""

    def __init__(self, config: Config, dataset: Dataset, tracker: Tracker) -> None:
        self._config, self._dataset, self._tracker = config, dataset, tracker
        num_classes = dataset.num_classes
        rows, self._columns = sample.grid_shape(config.sample.rows, config.sample.columns, num_classes)
        self._num = rows * self._columns
        self._labels = sample.grid_labels(rows, self._columns, num_classes)

    def reals(self) -> None:
        """Real images as the networks see them."""
        data = self._config.data
        numbers = self._dataset.examples(self._num, self._config.train.seed, self._labels)
        pictures = [self._dataset.read(n, data.resolution, data.filter, data.crop) for n in numbers]
        self._show("Samples/reals", "reals.png", pictures)

    def fakes(self, G_ema: nn.Module, images: int) -> None:
        """Of the generator at that image count."""
        z_dim, seed = self._config.model.z_dim, self._config.train.seed
        pictures = list(sample.generate(G_ema, z_dim, seed, range(self._num), self._labels))
        self._show("Samples/ema_fixed", f"fakes-{self._kimg(images)}.png", pictures)

    def _show(self, key: str, name: str, pictures: list[np.ndarray]) -> None:
        self._tracker.grid(key, name, pictures, self._columns)

    def _kimg(self, images: int) -> str:
        """Thousands of images, in file names; with more digits only where grids come closer than that."""
        return f"{images // 1000:06d}" if self._config.sample.every >= 1000 else f"{images / 1000:010.3f}"
