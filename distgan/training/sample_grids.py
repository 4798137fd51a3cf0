"""Log sample grids: real images, and images of the average generator for latents that stay the same.

Of a generator that restores: degraded | restored | clean, of images that it was not trained on.
"""

import numpy as np
import torch
from torch import Tensor, nn

from distgan.config.decode_options import decode_options
from distgan.config.schema import Config, image_spec, restores
from distgan.data import image_grid
from distgan.data.dataset import Dataset
from distgan.distributed.process_group import World
from distgan.evaluation.restoration import RestorationEval
from distgan.inference import sampling
from distgan.rng import device_rng
from distgan.tracking.tracker import Tracker
from distgan.transforms import degrade_spec
from distgan.transforms.augment import NUM_DRAWS, augment


class SampleGrids:
    """Logs grids of images in one layout, so that a run's grids can be compared side by side."""

    def __init__(self, config: Config, dataset: Dataset, tracker: Tracker) -> None:
        self._config, self._dataset, self._tracker = config, dataset, tracker
        seen = [label for label, count in enumerate(dataset.class_counts) if count]
        rows, self._columns = image_grid.grid_shape(config.sample.rows, config.sample.columns, len(seen))
        self._num = rows * self._columns
        self._labels = image_grid.grid_labels(rows, self._columns, seen)
        self._chunk = sampling.chunk_size(config.data.resolution)
        self._reals: list[np.ndarray] = []
        self._held_out = None
        if restores(config):
            steps = degrade_spec.parse(config.restore.degrade, image_spec(config.data))
            self._held_out = RestorationEval(dataset, steps, decode_options(config.data), config.model.z_dim)
            self._triples = max(1, self._columns // 3)  # to a row

    def log_reals(self) -> None:
        """Log real images as the networks see them."""
        self._show("Samples/reals", "reals.png", self._real_images())

    def log_fakes(self, G_ema: nn.Module, images: int) -> None:
        """Log images of the average generator at that image count."""
        z_dim, seed = self._config.model.z_dim, self._config.train.seed
        name = f"fakes-{self._kimg(images)}.png"
        if self._held_out is not None:
            triples = self._held_out.triples(G_ema, self._num // self._columns * self._triples)
            self._tracker.log_images("Samples/degraded_restored_clean", name, triples, self._triples)
        else:
            sampler = sampling.Sampler(G_ema, z_dim, seed, self._chunk)
            self._show("Samples/fakes_ema", name, list(sampler.pixels(range(self._num), self._labels)))

    def measure(self, G_ema: nn.Module, world: World) -> dict[str, float]:
        """Return metrics of restored images by log key, {} of a network that restores none; called by all ranks."""
        return self._held_out.measure(G_ema, world) if self._held_out is not None else {}

    def log_diagnostics(self, G: nn.Module, p: float, images: int) -> None:
        """Log images of the generator itself, and real images augmented as D sees them, at probability `p`."""
        config = self._config
        if config.ema.half_life and self._held_out is None:
            sampler = sampling.Sampler(G, config.model.z_dim, config.train.seed, self._chunk)
            self._show("Samples/fakes_raw", "raw.png", list(sampler.pixels(range(self._num), self._labels)))
        if config.augment.pipe != "none":
            reals = torch.from_numpy(np.stack(self._real_images())).permute(0, 3, 1, 2) / 127.5 - 1
            draws = device_rng.uniform(
                torch.arange(self._num) + images, "augment gallery", NUM_DRAWS[config.augment.pipe]
            )
            augmented = list(image_grid.to_uint8(augment(reals, draws, config.augment.pipe, p, config.augment.color)))
            self._show("Samples/reals_augmented", "reals-augmented.png", augmented)

    def log_worst_reals(
        self, G: nn.Module, D: nn.Module, reals: Tensor, real_scores: Tensor, fake_scores: Tensor
    ) -> None:
        """Log the real images of one pass with D's lowest scores, the lowest first; and histograms where enabled.

        Check images that are there again and again: they may be corrupt, or not of the data set's kind.
        """
        worst = real_scores.argsort()[: self._num]
        self._show("Samples/worst_reals", "worst-reals.png", list(image_grid.to_uint8(reals[worst])))
        if self._config.wandb.histograms:
            values = {"logits_real": real_scores, "logits_fake": fake_scores}
            for name, net in (("G", G), ("D", D)):
                values[f"norms_{name}"] = torch.stack(torch._foreach_norm(list(net.parameters())))
            for name, numbers in values.items():
                self._tracker.log_histogram(f"Hist/{name}", numbers.detach().float().cpu().numpy())

    def _real_images(self) -> list[np.ndarray]:
        if not self._reals:
            options = decode_options(self._config.data)
            numbers = self._dataset.fixed_samples(self._num, self._config.train.seed, self._labels)
            self._reals = [self._dataset.read(n, options) for n in numbers]
        return self._reals

    def _show(self, key: str, name: str, images: list[np.ndarray]) -> None:
        self._tracker.log_images(key, name, images, self._columns)

    def _kimg(self, images: int) -> str:
        """Return thousands of images, in file names; with more digits only where grids come closer than that."""
        return f"{images // 1000:06d}" if self._config.sample.every >= 1000 else f"{images / 1000:010.3f}"
