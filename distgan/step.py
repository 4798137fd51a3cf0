"""One training step: the whole algorithm.

What D minimises is one module, what G minimises another, and these two are what DDP wraps. So every backward belongs
to exactly one forward of the wrapped module and reaches each of its weights once, which is what DDP needs to reduce
gradients rightly, penalties and accumulation included. The networks themselves are never wrapped: wherever one of them
only serves the other (G in D's step, D in G's), it is called as the plain module that it is.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from distgan import keyed, penalties
from distgan.losses import LOSSES, Loss, logit_statistics
from distgan.world import World


@dataclass
class DeviceBatch:
    """One rank's share of a global batch, on its device.

    Attributes:
        images: uint8 [B, R, R, 3].
        labels: int64 [B], or None for unconditional networks.
        positions: Global positions, on the host; all that is drawn for an image is a function of its position.
    """

    images: Tensor
    labels: Tensor | None
    positions: np.ndarray


class DiscriminatorLoss(nn.Module):
    """Real and fake images -> what D minimises, and the report of `meter.D_REPORT`."""

    def __init__(self, D: nn.Module, loss: Loss, bf16: bool):
        super().__init__()
        self.D, self.loss, self.bf16 = D, loss, bf16

    def forward(
        self, real: Tensor, fake: Tensor, labels: Tensor | None, mix: Tensor, r1: float, r2: float, gp: float
    ) -> tuple[Tensor, Tensor]:
        """`r1`, `r2`, `gp`: this step's weights of the penalties, 0 where one is not applied."""
        real.requires_grad_(r1 > 0)
        fake.requires_grad_(r2 > 0)
        with _autocast(real, self.bf16):
            real_logits, fake_logits = self.D(real, labels), self.D(fake, labels)
        adversarial = self.loss.d(_full(real_logits), _full(fake_logits))
        terms = [adversarial] + [adversarial.new_zeros(())] * 3
        if r1 > 0:
            terms[1] = r1 / 2 * self._squared_gradient(real, real_logits, labels)
        if r2 > 0:
            terms[2] = r2 / 2 * self._squared_gradient(fake, fake_logits, labels)
        if gp > 0:
            terms[3] = gp * penalties.gradient_penalty(self.D, real, fake, labels, mix)
        total = sum(terms)
        report = torch.cat([torch.stack([total, *terms]).detach(), logit_statistics(real_logits, fake_logits)])
        return total, report

    def _squared_gradient(self, images: Tensor, logits: Tensor, labels: Tensor | None) -> Tensor:
        """In float32: under bf16, D sees the images once more for it."""
        return penalties.squared_gradient(self.D(images, labels) if self.bf16 else logits, images)


class GeneratorLoss(nn.Module):
    """Latents -> what G minimises, and the report of `meter.G_REPORT`. D only judges."""

    def __init__(self, G: nn.Module, D: nn.Module, loss: Loss, bf16: bool):
        super().__init__()
        self.G, self.loss, self.bf16 = G, loss, bf16
        self._judge = (D,)  # in a tuple, D is no submodule: its weights are not DDP's business here

    def forward(self, z: Tensor, labels: Tensor | None, real: Tensor | None) -> tuple[Tensor, Tensor]:
        (D,) = self._judge
        with _autocast(z, self.bf16):
            fake_logits = _full(D(self.G(z, labels), labels))
            real_logits = None
            if real is not None:
                with torch.no_grad():
                    real_logits = _full(D(real, labels))
        loss = self.loss.g(fake_logits, real_logits)
        return loss, loss.detach().view(1)


class GanStep:
    """D's and G's step on one rank.

    Args:
        G, D: The plain networks, on this rank's device once the losses are prepared.
        seed: Of all noise.
        passes: Passes over micro-batches that a step's gradient is gathered from.
        clip: Bound on D's weights after each of its steps; 0 for none.
    """

    def __init__(
        self,
        world: World,
        G: nn.Module,
        D: nn.Module,
        loss: str,
        *,
        z_dim: int,
        seed: int,
        passes: int = 1,
        bf16: bool = False,
        clip: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ):
        self.world, self.G, self.D = world, G, D
        self.passes, self.clip, self._bf16, self._dtype = passes, clip, bf16, dtype
        self._z_dim, self._paired = z_dim, LOSSES[loss].paired
        self._keys = {name: keyed.key(seed, name) for name in ("z of D", "z of G", "mix")}
        self.d_loss = world.prepare(DiscriminatorLoss(D, LOSSES[loss], bf16))
        self.g_loss = world.prepare(GeneratorLoss(G, D, LOSSES[loss], bf16))

    def d_step(self, batch: DeviceBatch, optimizer: torch.optim.Optimizer, r1: float, r2: float, gp: float) -> Tensor:
        """Move D towards telling this batch from as many fakes; returns the report of `meter.D_REPORT`."""
        z = self._normal("z of D", batch.positions)
        mix = self.world.send(keyed.uniform(self._keys["mix"], batch.positions))
        reports = 0
        for part, last in self._parts(batch):
            labels = None if batch.labels is None else batch.labels[part]
            with torch.no_grad(), _autocast(z, self._bf16):
                fake = self.G(z[part], labels).to(self._dtype)
            with self.world.synchronising(self.d_loss, last):
                loss, report = self.d_loss(self._scaled(batch, part), fake, labels, mix[part], r1, r2, gp)
                (loss / self.passes).backward()
            reports += report
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if self.clip:
            penalties.clip_weights(self.D, self.clip)
        return reports / self.passes

    def g_step(self, batch: DeviceBatch, optimizer: torch.optim.Optimizer) -> Tensor:
        """Move G towards what D takes for real; returns the report of `meter.G_REPORT`.

        A paired loss compares with the real images of the batch, which are those of D's last step.
        """
        z = self._normal("z of G", batch.positions)
        self.D.requires_grad_(False)
        reports = 0
        for part, last in self._parts(batch):
            labels = None if batch.labels is None else batch.labels[part]
            with self.world.synchronising(self.g_loss, last):
                loss, report = self.g_loss(z[part], labels, self._scaled(batch, part) if self._paired else None)
                (loss / self.passes).backward()
            reports += report
        self.D.requires_grad_(True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return reports / self.passes

    def settle(self, num: int, resolution: int, num_classes: int) -> None:
        """Two backwards that change nothing, made before any state is loaded.

        DDP lays out its buckets anew after its first backward, and from three ranks on the order of a sum depends on
        the layout: without this, a resumed run would differ from the unbroken one in the last bits of its first step.
        """
        if self.world.size == 1:
            return
        blank = torch.zeros(num, 3, resolution, resolution, device=self.world.device, dtype=self._dtype)
        labels = torch.zeros(num, device=self.world.device, dtype=torch.long) if num_classes else None
        z = blank.new_zeros(num, self._z_dim)
        buffers = [*self.G.buffers(), *self.D.buffers()]
        kept = [buffer.clone() for buffer in buffers]
        for _ in range(2):
            loss, _ = self.d_loss(blank.clone(), blank.clone(), labels, z[:, 0], 0.0, 0.0, 0.0)
            (0 * loss).backward()
            self.D.requires_grad_(False)
            loss, _ = self.g_loss(z, labels, blank if self._paired else None)
            (0 * loss).backward()
            self.D.requires_grad_(True)
        self.G.zero_grad(set_to_none=True)
        self.D.zero_grad(set_to_none=True)
        for buffer, value in zip(buffers, kept):
            buffer.copy_(value)

    def _parts(self, batch: DeviceBatch) -> list[tuple[slice, bool]]:
        """The micro-batches of a batch, and whether each is the last."""
        size = len(batch.positions) // self.passes
        return [(slice(i * size, (i + 1) * size), i == self.passes - 1) for i in range(self.passes)]

    def _scaled(self, batch: DeviceBatch, part: slice) -> Tensor:
        """Real images as the networks see them: [B, 3, R, R] in -1..1."""
        return batch.images[part].permute(0, 3, 1, 2).to(self._dtype) / 127.5 - 1

    def _normal(self, purpose: str, positions: np.ndarray) -> Tensor:
        return self.world.send(keyed.normal(self._keys[purpose], positions, self._z_dim)).to(self._dtype)


def _autocast(like: Tensor, bf16: bool) -> torch.autocast:
    """Round one forward, never a whole step: its cache of cast weights would outlive the optimizer's change."""
    return torch.autocast(like.device.type, torch.bfloat16, enabled=bf16)


def _full(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype is torch.bfloat16 else logits
