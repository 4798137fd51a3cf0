"""One training step: the whole algorithm.

What D minimises is one module, what G minimises another, and these two are what DDP wraps. So every backward belongs
to exactly one forward of the wrapped module and reaches each of its weights once, which is what DDP needs to reduce
gradients rightly, penalties and accumulation included. The networks themselves are never wrapped: wherever one of them
only serves the other (G in D's step, D in G's), it is called as the plain module that it is.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from distgan.distributed.process_group import World
from distgan.inference.sampling import make
from distgan.losses import gradient_penalty
from distgan.losses.adversarial import LOSSES, PIXEL, Loss, feature_matching
from distgan.models.spectral_norm import normalised
from distgan.rng import device_rng, host_rng
from distgan.training import compilation
from distgan.training.discriminator import Judge, Strengths
from distgan.training.training_stats import Meter
from distgan.transforms.degrade import degrade
from distgan.transforms.degrade_spec import Step as Degradation


@dataclass
class DeviceBatch:
    """One rank's share of a global batch, on its device.

    Attributes:
        images: uint8 [B, R, R, 3].
        labels: int64 [B], or None for unconditional networks.
        z_d, z_g: Latents of the fakes in D's and in G's step, [B, Z].
        seeds: Of all else that is drawn for an image, int64 [B]; see `draw`.
        degraded: uint8 [B, R, R, 3] where the data brings along what G restores.
    """

    images: Tensor
    labels: Tensor | None
    z_d: Tensor
    z_g: Tensor
    seeds: Tensor
    degraded: Tensor | None = None

    def parts(self, num: int) -> list["DeviceBatch"]:
        """The batch in `num` parts of equal size."""
        if num == 1:
            return [self]
        size = len(self.images) // num
        columns = (self.images, self.labels, self.z_d, self.z_g, self.seeds, self.degraded)
        split = [[None] * num if column is None else column.split(size) for column in columns]
        return [DeviceBatch(*part) for part in zip(*split)]


class Noise:
    """All that is drawn for an image, as a function of the seed and the image's position.

    Args:
        attempt: Other numbers give other noise for the same images.
    """

    def __init__(self, seed: int, z_dim: int, attempt: int = 0) -> None:
        self._z_dim = z_dim
        purposes = ("z of D", "z of G", "device")
        self._z_d, self._z_g, self._device = (host_rng.key(seed, purpose, attempt) for purpose in purposes)

    def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`z_d`, `z_g` and `seeds` of `DeviceBatch`, on the host."""
        z_d, z_g = (host_rng.normal(key, positions, self._z_dim) for key in (self._z_d, self._z_g))
        return z_d, z_g, host_rng.bits(self._device, positions).view(np.int64)


@dataclass(frozen=True)
class Restoring:
    """Image to image: G is given degraded pictures beside its latents, and is to find the real ones.

    Attributes:
        degrade: Recipe of the degraded pictures; empty where batches bring them along.
        pixel, weight: Distance of G's pictures from the real ones, a key of `losses.PIXEL`, and its weight in G's loss.
        paired: Whether D, too, is shown what G was given.
    """

    degrade: Sequence[Degradation] = ()
    pixel: str = "l1"
    weight: float = 0.0
    paired: bool = False


class DiscriminatorLoss(nn.Module):
    """Real and fake images -> what D minimises."""

    def __init__(self, judge: Judge, loss: Loss, bf16: bool, smooth: float = 0.0) -> None:
        super().__init__()
        self.D, self.judge, self.loss, self.bf16 = judge.D, judge, loss, bf16
        self.smooth = {"smooth": smooth} if smooth else {}

    def forward(
        self,
        real: Tensor,
        fake: Tensor,
        given: Tensor | None,
        labels: Tensor | None,
        seeds: Tensor,
        now: Strengths,
    ) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
        """Returns the loss, its terms by log key, and D's scores, [B] each, all but the first without gradient.

        Args:
            real, fake: [B, 3, R, R] in -1..1.
            given: What the fakes were made of, besides latents.
        """
        traced = self.judge.traces
        real.requires_grad_(now.r1 > 0 and not traced)
        fake.requires_grad_(now.r2 > 0 and not traced)
        looks = (("real", "r1", real, now.r1), ("fake", "r2", fake, now.r2))
        logits, squares = {}, {}
        with _autocast(real, self.bf16):
            for look, name, images, weight in looks:
                if weight > 0 and traced and not self.bf16:
                    squares[name], logits[look] = self.judge.squared_gradient(images, labels, seeds, look, now, given)
                else:
                    twice = weight > 0 and not self.bf16
                    logits[look] = self.judge(images, labels, seeds, look, now, twice=twice, given=given)
        total = self.loss.d(_full(logits["real"]), _full(logits["fake"]), **self.smooth)
        terms = {"Loss/D_adv": total.detach()}
        for look, name, images, weight in looks:
            if weight > 0:
                if self.bf16 and traced:  # in float32, for which D sees the images once more
                    squares[name], _ = self.judge.squared_gradient(images, labels, seeds, look, now, given)
                elif not traced:
                    once_more = logits[look]
                    if self.bf16:
                        once_more = self.judge(images, labels, seeds, look, now, twice=True, given=given)
                    squares[name] = gradient_penalty.squared_gradient(once_more, images)
                terms[f"Loss/{name}"] = weight / 2 * squares[name]
                total = total + terms[f"Loss/{name}"]
        if now.gp > 0:
            terms["Loss/gp"] = now.gp * self.judge.gradient_penalty(real, fake, labels, seeds, given)
            total = total + terms["Loss/gp"]
        # A penalty is told as what it adds to the loss on average, whether it is applied in each step or now and then.
        reported = {k: v.detach() if k == "Loss/D_adv" else v.detach() / now.every for k, v in terms.items()}
        reported["Loss/D"] = total.detach()
        return total, reported, *(gradient_penalty.score(logits[look].detach()) for look in ("real", "fake"))


class GeneratorLoss(nn.Module):
    """Latents, and what there is to restore -> what G minimises. D only judges."""

    def __init__(
        self,
        G: nn.Module,
        judge: Judge,
        loss: Loss,
        bf16: bool,
        matching: float,
        group: int,
        restoring: Restoring | None = None,
        generate: Sequence[Callable[..., Tensor]] = (),
    ) -> None:
        """`generate` holds G as it is called, where that is not G itself; in a sequence it is no second module."""
        super().__init__()
        self.G, self.loss, self.bf16, self.matching, self.restoring = G, loss, bf16, matching, restoring
        self.group = 1 if restoring else group  # each restored picture has a real one of its own to match
        self.generate = generate or [G]
        self.judge = judge  # no module: D's weights are not DDP's business here

    def forward(
        self,
        z: Tensor,
        given: Tensor | None,
        labels: Tensor | None,
        real: Tensor | None,
        seeds: Tensor,
        now: Strengths,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss, and its terms by log key without gradient.

        Args:
            real: Where the loss looks at real images too (see `GanStep.looks_at_real`).
        """
        with_features = self.matching > 0
        with _autocast(z, self.bf16):
            fake = make(self.generate[0], z, given, labels)
            fake_verdict = self.judge(fake, labels, seeds, "G's fake", now, with_features, given=given)
            real_verdict = None
            if self.loss.paired or with_features:
                with torch.no_grad():
                    real_verdict = self.judge(real, labels, seeds, "G's real", now, with_features, given=given)
        fake_logits, fake_features = fake_verdict if with_features else (fake_verdict, [])
        real_logits, real_features = real_verdict if with_features else (real_verdict, [])
        total = self.loss.g(_full(fake_logits), None if real_logits is None else _full(real_logits))
        terms = {"Loss/G_adv": total.detach()}
        if with_features:
            terms["Loss/fm"] = self.matching * feature_matching(real_features, fake_features, self.group)
            total = total + terms["Loss/fm"]
        if self.restoring is not None:
            terms["Loss/pixel"] = self.restoring.weight * PIXEL[self.restoring.pixel](_full(fake), real)
            total = total + terms["Loss/pixel"]
        terms["Loss/G"] = total
        return total, {k: v.detach() for k, v in terms.items()}


class GanStep:
    """D's and G's step on one rank.

    A step whose loss or gradient is not finite, on any rank, is not taken: weights and optimizer stay as they are.

    Args:
        G, D: The plain networks; they are moved to this rank's device.
        passes: Passes over micro-batches that a step's gradient is gathered from.
        clip: Bound on D's weights after each of its steps; 0 for none.
        smooth: How far below 1 the target for real images lies, for losses that have one.
        matching: Weight of feature matching in G's loss.
        group: Images over which feature matching takes its means; 0 for those of a pass.
        pipe, colour: Augmentation, a key of `augment.NUM_DRAWS`, or "none"; see there.
        flip: Whether half of the real images, a function of their seeds, are mirrored.
        restoring: What turns noise to image into image to image; None for a G that makes images of latents alone.
        observe: Told the logits of each pass of a D step, real and fake, [B] each.
        compile: What is compiled: "off", "g" (G, and D where no penalty is applied) or "all".
        backend: What compiles, a name of torch's.
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
        smooth: float = 0.0,
        matching: float = 0.0,
        group: int = 0,
        pipe: str = "none",
        colour: float = 1.0,
        flip: bool = False,
        restoring: Restoring | None = None,
        observe: Callable[[Tensor, Tensor], None] = lambda real_logits, fake_logits: None,
        compile: str = "off",
        backend: str = "inductor",
        undo_buffers: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.world, self.G, self.D, self.meter = world, G, D, Meter(world)
        self.passes, self.clip, self.flip, self._bf16, self._dtype = passes, clip, flip, bf16, dtype
        self._observe, self._restoring = observe, restoring
        self.looks_at_real = LOSSES[loss].paired or matching > 0 or restoring is not None
        compiled = functools.partial(compilation.compiled, device=world.device, backend=backend)
        paired = restoring is not None and restoring.paired
        self._judge = judge = Judge(D, pipe, colour, compile, compiled, paired)
        self._generate = G if compile == "off" else compiled(G)
        self.d_loss = world.prepare(DiscriminatorLoss(judge, LOSSES[loss], bf16, smooth))
        self.g_loss = world.prepare(
            GeneratorLoss(G, judge, LOSSES[loss], bf16, matching, group, restoring, [self._generate])
        )
        self._spectral = [*normalised(G), *normalised(D)]
        self._weights = {"G": list(G.parameters()), "D": list(D.parameters())}
        self._undone = [*G.buffers(), *D.buffers()] if undo_buffers else []

    def d_step(
        self,
        batch: DeviceBatch,
        optimizer: torch.optim.Optimizer,
        now: Strengths,
        around_fakes: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    ) -> None:
        """Move D towards telling this batch from as many fakes.

        Args:
            around_fakes: Context of the fakes' making, which is work without any word from other ranks.
        """
        before = [buffer.clone() for buffer in self._undone]
        for norm, weight in self._spectral:
            norm.advance(weight)
        for number, part in enumerate(batch.parts(self.passes), 1):
            real, given = self._pictures(part)
            with torch.no_grad(), around_fakes(), _autocast(part.z_d, self._bf16):
                fake = make(self._generate, part.z_d, given, part.labels).to(self._dtype)
            with self.world.synchronising(self.d_loss, last=number == self.passes):
                loss, *report = self.d_loss(real, fake, given, part.labels, part.seeds, now)
                self._backward(loss)
            self.meter.add_d(*report)
            self._last, self._scores = (real.detach(), fake.detach(), given, part.labels), report[1:]
            self._observe(*report[1:])
        self._update("D", optimizer, before)
        if self.clip:
            gradient_penalty.clip_weights(self.D, self.clip)

    def g_step(self, batch: DeviceBatch, optimizer: torch.optim.Optimizer, now: Strengths) -> None:
        """Move G towards what D takes for real.

        Where the loss looks at real images, they are those of D's last step.
        """
        before = [buffer.clone() for buffer in self._undone]
        self.D.requires_grad_(False)
        for number, part in enumerate(batch.parts(self.passes), 1):
            real, given = self._pictures(part) if self.looks_at_real else (None, None)
            with self.world.synchronising(self.g_loss, last=number == self.passes):
                loss, report = self.g_loss(part.z_g, given, part.labels, real, part.seeds, now)
                self._backward(loss)
            self.meter.add_g(report)
        self.D.requires_grad_(True)
        self._update("G", optimizer, before)

    def last_judged(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of this rank's last pass of a D step: real images, [B, 3, R, R] in -1..1, and D's scores of them and of the
        fakes, [B] each."""
        return self._last[0], *self._scores

    @torch.no_grad()
    def diversity(self) -> float:
        """How much the fakes of the last D step differ, next to its real images; near 0 where G repeats itself.

        The mean squared distance of two images' features, which is twice their variance: of D's last features, over all
        ranks, fakes over real images.
        """
        real, fake, given, labels = self._last
        was_training = self.D.training
        self.D.eval()
        spreads = []
        for images in (fake, real):
            with _autocast(images, self._bf16):
                _, features = self._judge.plain(images, labels, True, given)
            x = features[-1].flatten(1).double()
            sums = self.world.sum(torch.cat([x.new_tensor([len(x)]), x.square().sum().view(1), x.sum(0)]))
            spreads.append((sums[1] / sums[0] - (sums[2:] / sums[0]).square().sum()).item())
        self.D.train(was_training)
        return max(0.0, spreads[0]) / spreads[1] if spreads[1] > 0 else 0.0

    def settle(self, num: int, resolution: int, z_dim: int, num_classes: int) -> None:
        """Two backwards that change nothing, made before any state is loaded.

        DDP lays out its buckets anew after its first backward, and from three ranks on the order of a sum depends on
        the layout: without this, a resumed run would differ from the unbroken one in the last bits of its first step.
        """
        if self.world.size == 1:
            return
        blank = torch.zeros(num, 3, resolution, resolution, device=self.world.device, dtype=self._dtype)
        labels = torch.zeros(num, device=self.world.device, dtype=torch.long) if num_classes else None
        z, seeds = blank.new_zeros(num, z_dim), torch.zeros(num, device=self.world.device, dtype=torch.long)
        given = blank if self._restoring is not None else None
        buffers = [*self.G.buffers(), *self.D.buffers()]
        kept = [buffer.clone() for buffer in buffers]
        for _ in range(2):
            loss, *_ = self.d_loss(blank.clone(), blank.clone(), given, labels, seeds, Strengths())
            (0 * loss).backward()
            self.D.requires_grad_(False)
            loss, _ = self.g_loss(z, given, labels, blank if self.looks_at_real else None, seeds, Strengths())
            (0 * loss).backward()
            self.D.requires_grad_(True)
        self.G.zero_grad(set_to_none=True)
        self.D.zero_grad(set_to_none=True)
        for buffer, value in zip(buffers, kept):
            buffer.copy_(value)

    def _backward(self, loss: Tensor) -> None:
        """A loss that is not finite makes its gradients so; thus their sum over the ranks tells every rank."""
        value = loss.detach()
        one = value - value + 1  # or NaN
        loss.backward(one if self.passes == 1 else one / self.passes)

    def _update(self, name: str, optimizer: torch.optim.Optimizer, buffers: list[Tensor]) -> None:
        """Take the step, or leave all as it was where the gradient is not finite; the host does not ask which."""
        self.world.average_gradients(self._weights[name])
        norms = torch._foreach_norm([p.grad for p in self._weights[name] if p.grad is not None])
        norm = torch.linalg.vector_norm(torch.stack(norms))
        is_bad = norm - norm != 0  # infinite or NaN
        if optimizer.defaults.get("fused"):
            optimizer.found_inf = is_bad.float()  # what fused optimizers look at before they change anything
            optimizer.step()
        elif not is_bad:  # for this the host waits
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for buffer, before in zip(self._undone, buffers):
            buffer.copy_(torch.where(is_bad, before, buffer))
        self.meter.add_update(name, norm)

    def _pictures(self, batch: DeviceBatch) -> tuple[Tensor, Tensor | None]:
        """Real images as the networks see them, and what G is given to restore them from; [B, 3, R, R] in -1..1."""
        real = self._scaled(batch.images, batch.seeds)
        if self._restoring is None:
            return real, None
        if batch.degraded is not None:
            return real, self._scaled(batch.degraded, batch.seeds)
        return real, degrade(real, batch.seeds, self._restoring.degrade)

    def _scaled(self, pixels: Tensor, seeds: Tensor) -> Tensor:
        """uint8 [B, R, R, 3] -> [B, 3, R, R] in -1..1."""
        images = pixels.permute(0, 3, 1, 2).to(self._dtype) / 127.5 - 1
        if not self.flip:
            return images
        mirrored = device_rng.uniform(seeds, "flip", 1) < 0.5
        return torch.where(mirrored[:, :, None, None], images.flip(3), images)


def _autocast(like: Tensor, bf16: bool) -> contextlib.AbstractContextManager:
    """Round one forward, never a whole step: its cache of cast weights would outlive the optimizer's change."""
    return torch.autocast(like.device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()


def _full(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype is torch.bfloat16 else logits
