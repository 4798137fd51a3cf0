"""The inputs of a step: a batch on the device, the numbers drawn for it, and the hyperparameters of the moment."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from distgan.image_spec import ImageSpec, square
from distgan.rng import host_rng
from distgan.transforms.degrade_spec import Step as Degradation


@dataclass
class StepBatch:
    """One rank's share of a global batch, on its device.

    Attributes:
        images: Stored values [B, H, W, C]; see `ImageSpec`.
        labels: Class numbers, int64 [B]; vectors of conditions, float32 [B, V]; or None for unconditional networks.
        z_d, z_g: Latents of the fakes in the D step and in the G step, [B, Z].
        seeds: Keys of all other random numbers of an image, int64 [B]; see `rng.device_rng`.
        degraded: Of the same kind, where the data set brings along the images that G restores.
    """

    images: Tensor
    labels: Tensor | None
    z_d: Tensor
    z_g: Tensor
    seeds: Tensor
    degraded: Tensor | None = None

    def split(self, num: int) -> list["StepBatch"]:
        """Split into `num` micro-batches of equal size."""
        if num == 1:
            return [self]
        size = len(self.images) // num
        columns = (self.images, self.labels, self.z_d, self.z_g, self.seeds, self.degraded)
        split = [[None] * num if column is None else column.split(size) for column in columns]
        return [StepBatch(*part) for part in zip(*split)]


@dataclass
class MicroBatch:
    """One pass of a step, as the networks see it.

    Attributes:
        z: Latents of this step's fakes, [B, Z].
        labels, seeds: As in `StepBatch`.
        real: Real images, [B, C, H, W] in -1..1; None where the step uses none.
        condition: What G makes its images of, besides latents: degraded images, [B, C, H, W] in -1..1, or None.
    """

    z: Tensor
    labels: Tensor | None
    seeds: Tensor
    real: Tensor | None = None
    condition: Tensor | None = None


class LatentSampler:
    """Draws the latents and the seeds of images, as a function of the run's seed and each image's position.

    Args:
        attempt: Other numbers give other noise for the same images.
    """

    def __init__(self, seed: int, z_dim: int, attempt: int = 0) -> None:
        self._z_dim = z_dim
        purposes = ("z of D", "z of G", "device")
        self._z_d, self._z_g, self._device = (host_rng.key(seed, purpose, attempt) for purpose in purposes)

    def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return `z_d`, `z_g` and `seeds` of a `StepBatch`, on the host."""
        z_d, z_g = (host_rng.normal(key, positions, self._z_dim) for key in (self._z_d, self._z_g))
        return z_d, z_g, host_rng.bits(self._device, positions).view(np.int64)


@dataclass(frozen=True)
class StepHyperparams:
    """Values of schedules and controllers at one moment.

    Attributes:
        r1, r2, gp: Weights of the penalties; 0 where one is not applied in this step.
        instance_noise: Standard deviation of the noise on all images that D sees, which range over -1..1.
        augment_p: Probability of each augmentation.
        path_length: Weight of path length regularization; 0 where it is not applied in this G step. Like the penalties,
            it is already multiplied by its interval.
        path_length_interval: G steps from one application of it to the next.
        penalty_interval: D steps from one application of the penalties to the next. `r1`, `r2` and `gp` are already
            multiplied by it.
    """

    r1: float = 0.0
    r2: float = 0.0
    gp: float = 0.0
    instance_noise: float = 0.0
    augment_p: float = 0.0
    penalty_interval: int = 1
    path_length: float = 0.0
    path_length_interval: int = 1

    @property
    def has_penalty(self) -> bool:
        """Return whether a gradient penalty is applied in this step."""
        return max(self.r1, self.r2, self.gp) > 0


@dataclass(frozen=True)
class ImageToImageOptions:
    """Options of a G that gets degraded images in addition to its latents, and restores the real ones.

    Attributes:
        degrade: Operations that make the degraded images; empty where batches bring them along.
        pixel_loss, pixel_weight: Distance of G's images from the real ones, a key of `losses.PIXEL`, and its weight.
        conditional_D: Whether D sees the degraded image too.
    """

    degrade: Sequence[Degradation] = ()
    pixel_loss: str = "l1"
    pixel_weight: float = 0.0
    conditional_D: bool = False


@dataclass(frozen=True)
class StepOptions:
    """Options of `GanStep` that stay the same for a whole run.

    Attributes:
        loss, loss_options: A key of `losses.LOSSES`, and the settings that it has of its own.
        image: Channels and values of the images; their size does not count here.
        accumulation_steps: Micro-batches whose gradients are summed before an optimizer step.
        bf16: Whether the networks run under bfloat16 autocast.
        penalty_precision: Of gradient penalties: "fp32"; "tf32": the same with TF32 kernels, on a GPU; "bf16": that of
            the networks, which is bfloat16 then.
        finite_sigma: Deviation of the noise by which R1 and R2 are estimated; 0: by the gradient.
        weight_clip: Bound on D's weights after each D step; 0 for none.
        label_smoothing: How far below 1 the target for real images is, for losses that have a target.
        feature_matching: Weight of feature matching in G's loss.
        group: Images over which feature matching takes its means; 0 for all of a pass.
        augment, color: Augmentation, a key of `transforms.augment.AUGMENTATIONS` or "none", and its strength of color.
        flip: Whether half of the real images, chosen by their seeds, are mirrored.
        image_to_image: None for a G that makes images of latents alone.
        compile: What is compiled: "off", "g" (G, and D where no penalty is applied) or "all".
        backend: Compiler, one that torch.compile takes.
        cuda_graphs: Whether a GPU replays what is compiled as CUDA graphs.
        restore_buffers: Whether a skipped step leaves running statistics as they were too, for a copy in each step.
        dtype: Of images and losses.
        memory_format: Of real images, as of the networks' weights.
    """

    loss: str
    image: ImageSpec = square(1)
    loss_options: Mapping[str, object] = field(default_factory=dict)
    accumulation_steps: int = 1
    bf16: bool = False
    penalty_precision: str = "fp32"
    finite_sigma: float = 0.0
    weight_clip: float = 0.0
    label_smoothing: float = 0.0
    feature_matching: float = 0.0
    group: int = 0
    augment: str = "none"
    color: float = 1.0
    flip: bool = False
    image_to_image: ImageToImageOptions | None = None
    compile: str = "off"
    backend: str | Callable = "inductor"
    cuda_graphs: bool = False
    restore_buffers: bool = False
    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.contiguous_format
