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
from distgan.inference.condition_examples import ConditionExamples
from distgan.rng import device_rng
from distgan.tracking.tracker import Tracker
from distgan.transforms import degrade_spec
from distgan.transforms.augment import AUGMENTATIONS, augment
from distgan.transforms.image_values import display_pixels, to_display, to_networks


class SampleGrids:
    """Logs grids of images in one layout, so that a run's grids can be compared side by side.

    Args:
        examples: Conditions of real images, of which each row of a grid has one; None without conditions.
    """

    def __init__(
        self, config: Config, dataset: Dataset, tracker: Tracker, examples: ConditionExamples | None = None
    ) -> None:
        self._config, self._dataset, self._tracker = config, dataset, tracker
        seen = [label for label, count in enumerate(dataset.class_counts) if count]
        rows, self._columns = image_grid.grid_shape(config.sample.rows, config.sample.columns, len(seen))
        self._num = rows * self._columns
        self._labels = image_grid.grid_labels(rows, self._columns, seen)
        self._given: sampling.Labels = self._labels
        self._legend = ""
        if examples is not None:
            values = examples.drawn(config.train.seed, range(rows))
            self._given = examples.conditions.encode(values).repeat(self._columns, axis=0)
            self._legend = "".join(
                f"row {row}: {examples.conditions.text(of_row)}\n" for row, of_row in enumerate(values, 1)
            )
        self._image = image_spec(config.data)
        self._reals: np.ndarray | None = None
        self._held_out = None
        if restores(config):
            steps = degrade_spec.parse(config.restore.degrade, image_spec(config.data))
            self._held_out = RestorationEval(
                dataset, steps, decode_options(config.data), config.model.z_dim, config.eval.bands
            )
            self._triples = max(1, self._columns // 3)  # to a row

    def log_reals(self) -> None:
        """Log real images as the networks see them."""
        seen = display_pixels(self._stored_reals(), self._image, self._config.eval.bands)
        self._show("Samples/reals", "reals.png", list(seen))
        if self._legend:
            self._tracker.write_legend("fakes.txt", self._legend)

    def log_fakes(self, G_ema: nn.Module, images: int) -> None:
        """Log images of the average generator at that image count."""
        name = f"fakes-{self._kimg(images)}.png"
        if self._held_out is not None:
            triples = self._held_out.triples(G_ema, self._num // self._columns * self._triples)
            self._tracker.log_images("Samples/degraded_restored_clean", name, triples, self._triples)
        else:
            self._show("Samples/fakes_ema", name, self._generated(G_ema))

    def measure(self, G_ema: nn.Module, world: World) -> dict[str, float]:
        """Return metrics of restored images by log key, {} of a network that restores none; called by all ranks."""
        return self._held_out.measure(G_ema, world) if self._held_out is not None else {}

    def log_diagnostics(self, G: nn.Module, p: float, images: int) -> None:
        """Log images of the generator itself, and real images augmented as D sees them, at probability `p`."""
        config = self._config
        if config.ema.half_life and self._held_out is None:
            self._show("Samples/fakes_raw", "raw.png", self._generated(G))
        if config.augment.pipe != "none":
            reals = to_networks(torch.from_numpy(self._stored_reals()), self._image)
            draws = device_rng.uniform(
                torch.arange(self._num) + images, "augment gallery", AUGMENTATIONS[config.augment.pipe].num_draws
            )
            augmented = augment(reals, draws, config.augment.pipe, p, config.augment.color, self._image.alpha)
            self._show("Samples/reals_augmented", "reals-augmented.png", self._seen(augmented))

    def log_worst_reals(
        self, G: nn.Module, D: nn.Module, reals: Tensor, real_scores: Tensor, fake_scores: Tensor
    ) -> None:
        """Log the real images of one pass with D's lowest scores, the lowest first; and histograms where enabled.

        Check images that are there again and again: they may be corrupt, or not of the data set's kind.
        """
        worst = real_scores.argsort()[: self._num]
        self._show("Samples/worst_reals", "worst-reals.png", self._seen(reals[worst]))
        if self._config.wandb.histograms:
            values = {"logits_real": real_scores, "logits_fake": fake_scores}
            for name, net in (("G", G), ("D", D)):
                values[f"norms_{name}"] = torch.stack(torch._foreach_norm(list(net.parameters())))
            for name, numbers in values.items():
                self._tracker.log_histogram(f"Hist/{name}", numbers.detach().float().cpu().numpy())

    def _stored_reals(self) -> np.ndarray:
        """Return some real images, always the same, as they are stored; [num, H, W, C]."""
        if self._reals is None:
            options = decode_options(self._config.data)
            numbers = self._dataset.fixed_samples(self._num, self._config.train.seed, self._labels)
            self._reals = np.stack([self._dataset.read(n, options) for n in numbers])
        return self._reals

    def _generated(self, G: nn.Module) -> list[np.ndarray]:
        """Return what people see of a generator's images, uint8 [H, W, 3] each."""
        sampler = sampling.Sampler(G, self._config.model.z_dim, self._config.train.seed, self._image)
        seen = sampler.display(range(self._num), self._given, bands=self._config.eval.bands)
        return [pixels for part in seen for pixels in part.permute(0, 2, 3, 1).cpu().numpy()]

    def _seen(self, images: Tensor) -> list[np.ndarray]:
        """Return what people see of images [B, C, H, W] in -1..1, uint8 [H, W, 3] each."""
        return list(to_display(images, self._image, self._config.eval.bands).permute(0, 2, 3, 1).cpu().numpy())

    def _show(self, key: str, name: str, images: list[np.ndarray]) -> None:
        self._tracker.log_images(key, name, images, self._columns)

    def _kimg(self, images: int) -> str:
        """Return thousands of images, in file names; with more digits only where grids come closer than that."""
        return f"{images // 1000:06d}" if self._config.sample.every >= 1000 else f"{images / 1000:010.3f}"
