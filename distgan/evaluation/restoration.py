"""Evaluate an image-to-image generator on held-out images: grids, PSNR and SSIM."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from distgan.data.dataset import Dataset
from distgan.data.decode import DecodeOptions
from distgan.distributed.device_copy import copy_to_device
from distgan.distributed.process_group import World
from distgan.inference import sampling
from distgan.metrics.psnr_ssim import psnr, ssim
from distgan.rng import host_rng
from distgan.transforms.degrade import degrade
from distgan.transforms.degrade_spec import Step
from distgan.transforms.image_values import to_display, to_networks, to_stored

BEST_DB = 100.0  # PSNR of an image without any error, for the mean


class RestorationEval:
    """The held-out images of a data set, each degraded in the same way at every seed.

    Args:
        recipe: Steps that degrade them; empty if the data set's samples are pairs.
        decode: How their images are decoded and resized.
        z_dim: Length of the generators' latents.
        bands: Channels to show, see `image_values.to_display`.
    """

    def __init__(
        self, dataset: Dataset, recipe: Sequence[Step], decode: DecodeOptions, z_dim: int, bands: Sequence[int] = ()
    ) -> None:
        self._dataset, self._recipe, self._decode, self._z_dim = dataset, recipe, decode, z_dim
        self._image, self._bands, self._chunk = decode.image, bands, sampling.chunk_size(decode.image)
        self._before: dict[str, float] = {}  # metrics of the degraded images, which stay the same

    def triples(self, G: nn.Module, num: int) -> list[np.ndarray]:
        """Return degraded, restored and clean images side by side, uint8 [H, 3 W, 3] each.

        They are training images if none are held out.
        """
        held_out = range(self._dataset.num_samples, self._dataset.num_samples + self._dataset.num_held_out)
        if held_out:
            numbers = [held_out[i * len(held_out) // num] for i in range(num)]
        else:
            numbers = self._dataset.fixed_samples(num, 0)
        device = next(G.parameters()).device
        columns = self._degraded(numbers, device), self._restored(G, numbers), self._clean(numbers, device)
        seen = [to_display(to_networks(column, self._image), self._image, self._bands) for column in columns]
        return list(torch.cat(seen, dim=3).permute(0, 2, 3, 1).cpu().numpy())

    def measure(self, G: nn.Module, world: World) -> dict[str, float]:
        """Return mean PSNR and SSIM of the restored and of the degraded images by log key; called by all ranks.

        Ranks share the work in whole chunks, so the result does not depend on their number.
        """
        total = self._dataset.num_held_out
        if not total:
            return {}
        own_chunks = {}
        for start in range(world.rank * self._chunk, total, world.size * self._chunk):
            numbers = range(
                self._dataset.num_samples + start, self._dataset.num_samples + min(total, start + self._chunk)
            )
            clean = self._clean(numbers, world.device)
            own_chunks[start] = [self._psnr_and_ssim(self._restored(G, numbers, start), clean)]
            if not self._before:
                own_chunks[start].append(self._psnr_and_ssim(self._degraded(numbers, world.device), clean))
        on_host = {start: [values.cpu().numpy() for values in pair] for start, pair in own_chunks.items()}
        chunks = {start: values for part in world.all_gather_object(on_host) for start, values in part.items()}
        means = [
            np.mean(np.concatenate(columns), axis=0) for columns in zip(*(chunks[start] for start in sorted(chunks)))
        ]
        if not self._before:
            self._before = {"Restoration/psnr_degraded": means[1][0], "Restoration/ssim_degraded": means[1][1]}
        return {"Restoration/psnr": means[0][0], "Restoration/ssim": means[0][1], **self._before}

    def _clean(self, numbers: Sequence[int], device: torch.device, degraded: bool = False) -> Tensor:
        """Return images of the data set on a device, stored values [n, H, W, C]."""
        pixels = np.stack([self._dataset.read(number, self._decode, degraded=degraded) for number in numbers])
        return copy_to_device(torch.from_numpy(pixels), device)

    def _degraded(self, numbers: Sequence[int], device: torch.device) -> Tensor:
        """Return degraded images on a device, stored values [n, H, W, C]."""
        if self._dataset.pairs:
            return self._clean(numbers, device, degraded=True)
        seeds = host_rng.bits(host_rng.key(0, "held out, degraded"), np.asarray(numbers)).view(np.int64)
        clean = to_networks(self._clean(numbers, device), self._image)
        return to_stored(degrade(clean, copy_to_device(seeds, device), self._recipe, self._image), self._image)

    def _restored(self, G: nn.Module, numbers: Sequence[int], first: int = 0) -> Tensor:
        """Return restored images on G's device, stored values [n, H, W, C], with the latents from number `first` on."""
        latents = range(first, first + len(numbers))
        labels = [self._dataset.label(number) for number in numbers] if self._dataset.num_classes else None

        device = next(G.parameters()).device

        def read_degraded(part: list[int]) -> Tensor:
            return self._degraded([numbers[latent - first] for latent in part], device)

        images = sampling.Sampler(G, self._z_dim, 0, self._image).images(latents, labels, read_degraded)
        return torch.cat([to_stored(part, self._image) for part in images])

    def _psnr_and_ssim(self, restored: Tensor, clean: Tensor) -> Tensor:
        """Return PSNR and SSIM of each image, float64 [n, 2]; its range is 0..255 for that, and it is clipped to it."""
        image = self._image
        scale = 255 / (image.high - image.low)
        levels = [(values.double().permute(0, 3, 1, 2) - image.low) * scale for values in (restored, clean)]
        if not image.has_all_levels:  # G can make none beyond the range, which clean images may have
            levels = [values.clamp(0, 255) for values in levels]
        return torch.stack([psnr(*levels).clamp(max=BEST_DB), ssim(*levels)], 1)
