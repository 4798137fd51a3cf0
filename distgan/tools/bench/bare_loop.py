"""The references of `distgan bench`: the shortest loop that makes the same updates, and the least networks.

The loop takes images from a stream of its own and latents from torch's generator. It sums up the losses and keeps the
average generator. It has no schedules, controllers, norms, checkpoints or stops, and reads nothing back.
"""

import copy
import operator

import torch
from torch import Tensor, nn

from distgan.condition_spec import VectorInput
from distgan.config.schema import Config, image_spec, restores
from distgan.distributed.device_copy import DeviceCopy
from distgan.distributed.process_group import allow_tf32
from distgan.errors import ConfigError
from distgan.image_spec import ImageSpec
from distgan.losses.adversarial import LOSSES
from distgan.losses.gradient_penalty import gradient_penalty, squared_gradient
from distgan.training.discriminator import autocast
from distgan.training.optimizers import build_optimizer
from distgan.training.trainer import Trainer
from distgan.transforms.image_values import to_networks

KEEP = 0.999  # of the average, in each iteration
# Settings that the loop has no words for, with the values that leave them out.
WITHOUT = {
    "augment.pipe": "none",
    "loss.options": {},
    "augment.instance_noise": [0.0],
    "loss.feature_matching": 0.0,
    "loss.weight_clip": 0.0,
    "loss.path_length": 0.0,
    "loss.penalty": "exact",
    "loss.label_smoothing": 0.0,
    "data.flip": False,
    "balance.adapt": "",
    "model.dropout": 0.0,
    **{f"optim.{net}.{key}": [] for net in "GD" for key in ("freeze", "lr_factors")},
}


def check_supported(config: Config) -> None:
    """Raise ConfigError where a config asks for more than the loop does."""
    if restores(config):
        raise ConfigError("--baseline bare: the bare loop makes images of noise, and model.family=restore does not")
    for key, value in WITHOUT.items():
        if (set_to := operator.attrgetter(key)(config)) != value:
            written = value if value != "" else "''"
            raise ConfigError(f"--baseline bare: the bare loop has no {key}={set_to}; compare with {key}={written}")


class BareLoop:
    """GAN training as one writes it by hand, of the networks, losses and penalties that a trainer has."""

    def __init__(self, trainer: Trainer) -> None:
        config, self._world, self._stream = trainer.config, trainer.world, trainer.open_stream(with_noise=False)
        self._conditional, self._z_dim = bool(trainer.learner.label_input), config.model.z_dim
        self._n_critic, self._lazy, self._steps = config.train.n_critic, config.loss.penalty_interval, 0
        self._image = image_spec(config.data)
        self._passes, self._bf16 = trainer.batch_plan.passes, config.train.precision == "bf16"
        self.G, self.D = (copy.deepcopy(net) for net in (trainer.learner.G, trainer.learner.D))
        self._average = copy.deepcopy(self.G).requires_grad_(False)
        self._opt_G, self._opt_D = (build_optimizer(*of) for of in ((config.optim.G, self.G), (config.optim.D, self.D)))
        strengths = trainer.learner.schedulers.step_hyperparams(0)
        penalties = {"r1": strengths.r1, "r2": strengths.r2, "gp": strengths.gp}
        bf16_penalties = config.train.penalty_precision == "bf16"
        self._tf32_penalties = config.train.penalty_precision == "tf32"
        self._d_loss = self._world.prepare(DLoss(self.D, config.loss.name, penalties, self._bf16, bf16_penalties))
        self._g_loss = self._world.prepare(GLoss(self.G, self.D, config.loss.name, self._bf16))
        self._sums = torch.zeros(2, device=self._world.device)
        self._copy_to_device = DeviceCopy(self._world.device)

    def iterate(self) -> None:
        """Run one iteration: the D steps, and a G step."""
        for _ in range(self._n_critic):
            parts = self._next_parts()
            is_due = self._steps % self._lazy == 0
            for number, (real, labels) in enumerate(parts, 1):
                with torch.no_grad(), autocast(real, self._bf16):
                    fake = self.G(self._latents(real), labels).float()
                tf32 = allow_tf32(self._world.device, is_due and self._tf32_penalties)
                with self._world.grad_sync(self._d_loss, last=number == self._passes), tf32:
                    loss = self._d_loss(real, fake, labels, is_due) / self._passes
                    loss.backward()
                self._sums[0] += loss.detach()
            self._world.average_gradients(self.D.parameters())
            self._opt_D.step()
            self._opt_D.zero_grad()
            self._steps += 1
        self.D.requires_grad_(False)
        for number, (real, labels) in enumerate(parts, 1):
            with self._world.grad_sync(self._g_loss, last=number == self._passes):
                loss = self._g_loss(self._latents(real), real, labels) / self._passes
                loss.backward()
            self._sums[1] += loss.detach()
        self.D.requires_grad_(True)
        self._world.average_gradients(self.G.parameters())
        self._opt_G.step()
        self._opt_G.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(list(self._average.parameters()), list(self.G.parameters()), 1 - KEEP)

    def close(self) -> None:
        """Close the stream."""
        self._stream.close()

    def _next_parts(self) -> list[tuple[Tensor, Tensor | None]]:
        """Return the next images, in -1..1, and labels of each pass."""
        self._copy_to_device.wait()  # the stream takes the buffers of the last batch back now
        batch = next(self._stream)
        (images, *_), (numbers,) = self._copy_to_device(batch.buffers, [batch.given])
        real = to_networks(images, self._image)
        labels = numbers if self._conditional else None
        none = [None] * self._passes
        return list(zip(real.chunk(self._passes), none if labels is None else labels.chunk(self._passes)))

    def _latents(self, real: Tensor) -> Tensor:
        return torch.randn(len(real), self._z_dim, device=real.device)


class DLoss(nn.Module):
    """The loss of D; `penalties` are weights by name, for the steps in which they are due."""

    def __init__(
        self, D: nn.Module, loss: str, penalties: dict[str, float], bf16: bool, bf16_penalties: bool = False
    ) -> None:
        super().__init__()
        self.D, self.loss, self.penalties, self.bf16 = D, LOSSES[loss], penalties, bf16
        self.bf16_penalties = bf16_penalties

    def forward(self, real: Tensor, fake: Tensor, labels: Tensor | None, is_due: bool) -> Tensor:
        weights = self.penalties if is_due else dict.fromkeys(self.penalties, 0.0)
        real.requires_grad_(weights["r1"] > 0)
        fake.requires_grad_(weights["r2"] > 0)
        with autocast(real, self.bf16):
            real_logits, fake_logits = self.D(real, labels), self.D(fake, labels)
        total = self.loss.d(real_logits.float(), fake_logits.float())
        for name, images, logits in (("r1", real, real_logits), ("r2", fake, fake_logits)):
            if weights[name]:
                logits = self.D(images, labels) if self.bf16 and not self.bf16_penalties else logits
                total = total + weights[name] / 2 * squared_gradient(logits, images)
        if weights["gp"]:
            mix = torch.rand(len(real), device=real.device)
            total = total + weights["gp"] * gradient_penalty(self._plain, real, fake, labels, mix)
        return total

    def _plain(self, images: Tensor, labels: Tensor | None) -> Tensor:
        with autocast(images, self.bf16_penalties):
            return self.D(images, labels)


class GLoss(nn.Module):
    """The loss of G; D keeps its weights."""

    def __init__(self, G: nn.Module, D: nn.Module, loss: str, bf16: bool) -> None:
        super().__init__()
        self.G, self._D, self.loss, self.bf16 = G, [D], LOSSES[loss], bf16  # a list hides D's weights from DDP

    def forward(self, z: Tensor, real: Tensor, labels: Tensor | None) -> Tensor:
        (D,) = self._D
        with autocast(z, self.bf16):
            fake_logits, real_logits = D(self.G(z, labels), labels), None
            if self.loss.paired:
                with torch.no_grad():
                    real_logits = D(real, labels).float()
        return self.loss.g(fake_logits.float(), real_logits)


class NullG(nn.Module):
    """z [B, z_dim] -> gray images [B, C, H, W]: one weight, and next to no work."""

    def __init__(self, image: ImageSpec) -> None:
        super().__init__()
        self.scale, self.image = nn.Parameter(torch.ones(1)), image

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        image = self.image
        return (z[:, :1] * self.scale)[:, :, None, None].expand(-1, image.channels, image.height, image.width)


class NullD(nn.Module):
    """Images [B, C, H, W] -> logits [B]: one weight, and next to no work."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(
        self, images: Tensor, labels: Tensor | None = None, features: bool = False
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        logits = (images * self.scale).mean((1, 2, 3))
        return (logits, [images]) if features else logits


def null_nets(config: Config, labeled: int | VectorInput) -> tuple[nn.Module, nn.Module]:
    """Return the least G and D that there are."""
    return NullG(image_spec(config.data)), NullD()
