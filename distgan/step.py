"""One training step: the whole algorithm.

What D minimises is one module, what G minimises another, and these two are what DDP wraps. So every backward belongs
to exactly one forward of the wrapped module and reaches each of its weights once, which is what DDP needs to reduce
gradients rightly, penalties and accumulation included. The networks themselves are never wrapped: wherever one of them
only serves the other (G in D's step, D in G's), it is called as the plain module that it is.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from distgan import keyed, penalties
from distgan.losses import LOSSES, Loss
from distgan.meter import Meter
from distgan.world import World


@dataclass
class DeviceBatch:
    """One rank's share of a global batch, on its device.

    Attributes:
        images: uint8 [B, R, R, 3].
        labels: int64 [B], or None for unconditional networks.
        z_d, z_g: Latents of the fakes in D's and in G's step, [B, Z].
        mix: Where between a real image and its fake the gradient penalty looks, in 0..1, [B].
    """

    images: Tensor
    labels: Tensor | None
    z_d: Tensor
    z_g: Tensor
    mix: Tensor

    def parts(self, num: int) -> list["DeviceBatch"]:
        """The batch in `num` parts of equal size."""
        if num == 1:
            return [self]
        size = len(self.images) // num
        columns = (self.images, self.labels, self.z_d, self.z_g, self.mix)
        split = [[None] * num if column is None else column.split(size) for column in columns]
        return [DeviceBatch(*part) for part in zip(*split)]


class Noise:
    """All that is drawn for an image, as a function of the seed and the image's position.

    Args:
        attempt: Other numbers give other noise for the same images.
    """

    def __init__(self, seed: int, z_dim: int, attempt: int = 0) -> None:
        self._z_dim = z_dim
        purposes = ("z of D", "z of G", "mix")
        self._z_d, self._z_g, self._mix = (keyed.key(seed, purpose, attempt) for purpose in purposes)

    def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`z_d`, `z_g` and `mix` of `DeviceBatch`, float32, on the host."""
        z_d = keyed.normal(self._z_d, positions, self._z_dim)
        return z_d, keyed.normal(self._z_g, positions, self._z_dim), keyed.uniform(self._mix, positions)


class DiscriminatorLoss(nn.Module):
    """Real and fake images -> what D minimises."""

    def __init__(self, D: nn.Module, loss: Loss, bf16: bool) -> None:
        super().__init__()
        self.D, self.loss, self.bf16 = D, loss, bf16

    def forward(
        self, real: Tensor, fake: Tensor, labels: Tensor | None, mix: Tensor, r1: float, r2: float, gp: float
    ) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
        """Returns the loss, its terms by log key, and the logits, all but the first without gradient.

        Args:
            real, fake: [B, 3, R, R] in -1..1.
            mix: Where between them the gradient penalty looks, [B] in 0..1.
            r1, r2, gp: This step's weights of the penalties, 0 where one is not applied.
        """
        real.requires_grad_(r1 > 0)
        fake.requires_grad_(r2 > 0)
        with _autocast(real, self.bf16):
            real_logits, fake_logits = self.D(real, labels), self.D(fake, labels)
        total = self.loss.d(_full(real_logits), _full(fake_logits))
        terms = {"Loss/D_adv": total.detach()}
        if r1 > 0:
            terms["Loss/r1"] = r1 / 2 * self._squared_gradient(real, real_logits, labels)
            total = total + terms["Loss/r1"]
        if r2 > 0:
            terms["Loss/r2"] = r2 / 2 * self._squared_gradient(fake, fake_logits, labels)
            total = total + terms["Loss/r2"]
        if gp > 0:
            terms["Loss/gp"] = gp * penalties.gradient_penalty(self.D, real, fake, labels, mix)
            total = total + terms["Loss/gp"]
        terms["Loss/D"] = total
        return total, {k: v.detach() for k, v in terms.items()}, real_logits.detach(), fake_logits.detach()

    def _squared_gradient(self, images: Tensor, logits: Tensor, labels: Tensor | None) -> Tensor:
        """In float32: under bf16, D sees the images once more for it."""
        return penalties.squared_gradient(self.D(images, labels) if self.bf16 else logits, images)


class GeneratorLoss(nn.Module):
    """Latents -> what G minimises. D only judges."""

    def __init__(self, G: nn.Module, D: nn.Module, loss: Loss, bf16: bool) -> None:
        super().__init__()
        self.G, self.loss, self.bf16 = G, loss, bf16
        self._judge = (D,)  # in a tuple, D is no submodule: its weights are not DDP's business here

    def forward(self, z: Tensor, labels: Tensor | None, real: Tensor | None) -> Tensor:
        """`real` images are given for paired losses only."""
        (D,) = self._judge
        with _autocast(z, self.bf16):
            fake_logits = _full(D(self.G(z, labels), labels))
            real_logits = None
            if real is not None:
                with torch.no_grad():
                    real_logits = _full(D(real, labels))
        return self.loss.g(fake_logits, real_logits)


class GanStep:
    """D's and G's step on one rank.

    A step whose loss or gradient is not finite, on any rank, is not taken: weights and optimizer stay as they are.

    Args:
        G, D: The plain networks; they are moved to this rank's device.
        passes: Passes over micro-batches that a step's gradient is gathered from.
        clip: Bound on D's weights after each of its steps; 0 for none.
        undo_buffers: Whether a step that is not taken leaves running statistics alone too, for the price of a copy in
            each step.
    """

    def __init__(
        self,
        world: World,
        G: nn.Module,
        D: nn.Module,
        loss: str,
        *,
        passes: int = 1,
        bf16: bool = False,
        clip: float = 0.0,
        undo_buffers: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.world, self.G, self.D, self.meter = world, G, D, Meter(world)
        self.passes, self.clip, self._bf16, self._dtype = passes, clip, bf16, dtype
        self._paired = LOSSES[loss].paired
        self.d_loss = world.prepare(DiscriminatorLoss(D, LOSSES[loss], bf16))
        self.g_loss = world.prepare(GeneratorLoss(G, D, LOSSES[loss], bf16))
        self._undone = [*G.buffers(), *D.buffers()] if undo_buffers else []

    def d_step(
        self,
        batch: DeviceBatch,
        optimizer: torch.optim.Optimizer,
        r1: float,
        r2: float,
        gp: float,
        around_fakes: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    ) -> None:
        """Move D towards telling this batch from as many fakes, with these weights of the penalties.

        Args:
            around_fakes: Context of the fakes' making, which is work without any word from other ranks.
        """
        before = [buffer.clone() for buffer in self._undone]
        for number, part in enumerate(batch.parts(self.passes), 1):
            with torch.no_grad(), around_fakes(), _autocast(part.z_d, self._bf16):
                fake = self.G(part.z_d, part.labels).to(self._dtype)
            with self.world.synchronising(self.d_loss, last=number == self.passes):
                loss, *report = self.d_loss(self._scaled(part), fake, part.labels, part.mix, r1, r2, gp)
                self._backward(loss)
            self.meter.add_d(*report)
        self._update("D", self.D, optimizer, before)
        if self.clip:
            penalties.clip_weights(self.D, self.clip)

    def g_step(self, batch: DeviceBatch, optimizer: torch.optim.Optimizer) -> None:
        """Move G towards what D takes for real.

        A paired loss compares with the real images of the batch, which are those of D's last step.
        """
        before = [buffer.clone() for buffer in self._undone]
        self.D.requires_grad_(False)
        for number, part in enumerate(batch.parts(self.passes), 1):
            with self.world.synchronising(self.g_loss, last=number == self.passes):
                loss = self.g_loss(part.z_g, part.labels, self._scaled(part) if self._paired else None)
                self._backward(loss)
            self.meter.add_g(loss.detach())
        self.D.requires_grad_(True)
        self._update("G", self.G, optimizer, before)

    def settle(self, num: int, resolution: int, z_dim: int, num_classes: int) -> None:
        """Two backwards that change nothing, made before any state is loaded.

        DDP lays out its buckets anew after its first backward, and from three ranks on the order of a sum depends on
        the layout: without this, a resumed run would differ from the unbroken one in the last bits of its first step.
        """
        if self.world.size == 1:
            return
        blank = torch.zeros(num, 3, resolution, resolution, device=self.world.device, dtype=self._dtype)
        labels = torch.zeros(num, device=self.world.device, dtype=torch.long) if num_classes else None
        z = blank.new_zeros(num, z_dim)
        buffers = [*self.G.buffers(), *self.D.buffers()]
        kept = [buffer.clone() for buffer in buffers]
        for _ in range(2):
            loss, *_ = self.d_loss(blank.clone(), blank.clone(), labels, z[:, 0], 0.0, 0.0, 0.0)
            (0 * loss).backward()
            self.D.requires_grad_(False)
            (0 * self.g_loss(z, labels, blank if self._paired else None)).backward()
            self.D.requires_grad_(True)
        self.G.zero_grad(set_to_none=True)
        self.D.zero_grad(set_to_none=True)
        for buffer, value in zip(buffers, kept):
            buffer.copy_(value)

    def _backward(self, loss: Tensor) -> None:
        """A loss that is not finite makes its gradients so; thus their sum over the ranks tells every rank."""
        value = loss.detach()
        loss.backward((value - value + 1) / self.passes)

    def _update(self, name: str, net: nn.Module, optimizer: torch.optim.Optimizer, buffers: list[Tensor]) -> None:
        """Take the step, or leave all as it was where the gradient is not finite; the host does not ask which."""
        norm = torch.nn.utils.get_total_norm([p.grad for p in net.parameters() if p.grad is not None])
        is_bad = ~norm.isfinite()
        optimizer.found_inf = is_bad.float()  # what fused optimizers look at before they change anything
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for buffer, before in zip(self._undone, buffers):
            buffer.copy_(torch.where(is_bad, before, buffer))
        self.meter.add_update(name, norm)

    def _scaled(self, batch: DeviceBatch) -> Tensor:
        """Real images as the networks see them: [B, 3, R, R] in -1..1."""
        return batch.images.permute(0, 3, 1, 2).to(self._dtype) / 127.5 - 1


def _autocast(like: Tensor, bf16: bool) -> contextlib.AbstractContextManager:
    """Round one forward, never a whole step: its cache of cast weights would outlive the optimizer's change."""
    return torch.autocast(like.device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()


def _full(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype is torch.bfloat16 else logits
