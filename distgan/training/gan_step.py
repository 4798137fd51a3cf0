"""One training step: the whole algorithm.

The D loss is one module and the G loss another (`objectives`), and these two are what DDP wraps. So every backward
belongs to exactly one forward of the wrapped module and reaches each of its weights once. DDP needs that to reduce
gradients correctly, with penalties and accumulation too. The networks themselves are never wrapped: where one of them
only serves the other (G in the D step, D in the G step), the plain module is called.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from distgan.condition_spec import VectorInput
from distgan.distributed.process_group import World, allow_tf32
from distgan.image_spec import ImageSpec
from distgan.losses import gradient_penalty
from distgan.losses.adversarial import LOSSES
from distgan.losses.path_length import DECAY
from distgan.models.image_seeds import drawing_modules, set_seeds
from distgan.models.label_embedding import blank_labels
from distgan.models.networks import run_generator
from distgan.models.spectral_norm import normalized_once, power_iteration_step, spectral_norm_layers
from distgan.rng import device_rng
from distgan.training import compilation
from distgan.training.discriminator import AugmentedDiscriminator, autocast
from distgan.training.objectives import DiscriminatorLoss, GeneratorLoss
from distgan.training.step_inputs import MicroBatch, StepBatch, StepHyperparams, StepOptions
from distgan.training.training_stats import TrainingStats
from distgan.transforms.degrade import degrade
from distgan.transforms.image_values import to_networks


class GanStep:
    """The D step and the G step on one rank.

    A step whose loss or gradient is not finite, on any rank, is skipped: weights and optimizer stay as they are.

    Args:
        G, D: The plain networks; they are moved to this rank's device.
        on_logits: Called with the scores of each pass of a D step, of real images and fakes, [B] each.
    """

    def __init__(
        self,
        world: World,
        G: nn.Module,
        D: nn.Module,
        options: StepOptions,
        on_logits: Callable[[Tensor, Tensor], None] = lambda real_logits, fake_logits: None,
    ) -> None:
        self.world, self.G, self.D, self.options, self.stats = world, G, D, options, TrainingStats(world)
        self._on_logits = on_logits
        to_image = options.image_to_image
        self.looks_at_real = LOSSES[options.loss].paired or options.feature_matching > 0 or to_image is not None
        compiled = functools.partial(
            compilation.compiled, device=world.device, backend=options.backend, cuda_graphs=options.cuda_graphs
        )
        self._discriminator = AugmentedDiscriminator(
            D,
            options.augment,
            options.color,
            bf16=options.bf16,
            bf16_penalties=options.penalty_precision == "bf16",
            finite_sigma=options.finite_sigma,
            compile=options.compile,
            compiled=compiled,
            sees_condition=to_image is not None and to_image.conditional_D,
            alpha=options.image.alpha,
        )
        self._drawing = drawing_modules(G)
        # The running mean of path lengths, of all ranks: a state of the training, which a checkpoint keeps.
        self.mean_path_length = torch.zeros((), dtype=torch.float64, device=world.device)
        self._generator = G if options.compile == "off" else compiled(G)
        self.d_loss = world.prepare(DiscriminatorLoss(self._discriminator, options))
        self.g_loss = world.prepare(GeneratorLoss(G, self._discriminator, options, self._generator))
        spectral_norms = [*spectral_norm_layers(G), *spectral_norm_layers(D)]
        # Of a frozen weight, the vectors stay too, so that its layer stays the same function.
        self._spectral_norms = [(norm, weight) for norm, weight in spectral_norms if weight.requires_grad]
        # A compiled graph has its own: it takes no tensor that is another one in each step.
        self._normalized_once = spectral_norms if options.compile == "off" else []
        self._weights = {"G": list(G.parameters()), "D": list(D.parameters())}
        self._trained_D = [weight for weight in D.parameters() if weight.requires_grad]  # the others are frozen
        # Running statistics; what is not in a checkpoint is constant.
        kept = [value for net in (G, D) for name, value in net.named_buffers() if name in net.state_dict()]
        self._restored_buffers = kept if options.restore_buffers else []

    def d_step(
        self,
        batch: StepBatch,
        optimizer: torch.optim.Optimizer,
        hp: StepHyperparams,
        around_fakes: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    ) -> None:
        """Train D to distinguish the real images of this batch from as many fakes.

        Args:
            around_fakes: Context in which fakes are made, which is work without communication.
        """
        self._begin()
        buffers = [buffer.clone() for buffer in self._restored_buffers]
        tf32 = hp.has_penalty and self.options.penalty_precision == "tf32"
        if self._spectral_norms:
            power_iteration_step(self._spectral_norms)
        for micro, is_last in self._micro_batches(batch, batch.z_d, with_real=True):
            set_seeds(self._drawing, micro.seeds, "of D")
            with torch.no_grad(), around_fakes(), autocast(micro.z, self.options.bf16):
                fake = run_generator(self._generator, micro.z, micro.condition, micro.labels).to(self.options.dtype)
            with self.world.grad_sync(self.d_loss, last=is_last), allow_tf32(self.world.device, tf32):
                with normalized_once(self._normalized_once):
                    result = self.d_loss(micro, fake, hp)
                self._backward(result.loss)
            self.stats.add_d_pass(result.terms, result.real_scores, result.fake_scores)
            self._on_logits(result.real_scores, result.fake_scores)
            assert micro.real is not None
            self._last = (micro, micro.real.detach(), fake.detach(), result.real_scores, result.fake_scores)
        self._update("D", optimizer, buffers)
        if self.options.weight_clip:
            gradient_penalty.clip_weights(self.D, self.options.weight_clip)

    def g_step(self, batch: StepBatch, optimizer: torch.optim.Optimizer, hp: StepHyperparams) -> None:
        """Train G to make images that D takes for real.

        Where the loss uses real images, they are those of the last D step.
        """
        self._begin()
        buffers = [buffer.clone() for buffer in self._restored_buffers]
        self._train_D(False)
        lengths = []
        for micro, is_last in self._micro_batches(batch, batch.z_g, with_real=self.looks_at_real):
            with self.world.grad_sync(self.g_loss, last=is_last):
                with normalized_once(self._normalized_once):
                    result = self.g_loss(micro, hp, self.mean_path_length)
                self._backward(result.loss)
            self.stats.add_g_pass(result.terms)
            lengths += [] if result.path_lengths is None else [result.path_lengths]
        self._train_D(True)
        if lengths:
            self._follow_path_lengths(torch.cat(lengths))
        self._update("G", optimizer, buffers)

    def _follow_path_lengths(self, lengths: Tensor) -> None:
        """Move the running mean toward that of all ranks; it stays where that is not finite."""
        lengths = lengths.double()
        sums = self.world.all_reduce_sum(torch.stack([lengths.sum(), lengths.new_full((), len(lengths))]))
        moved = self.mean_path_length.lerp(sums[0] / sums[1], DECAY)
        self.mean_path_length = torch.where(moved.isfinite(), moved, self.mean_path_length)

    def last_scores(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return this rank's last pass of a D step: real images, [B, C, H, W] in -1..1, and D's scores of them and of
        the fakes, [B] each."""
        _, real, _, real_scores, fake_scores = self._last
        return real, real_scores, fake_scores

    @torch.no_grad()
    def diversity(self) -> float:
        """Return how much the fakes of the last D step differ, relative to its real images; near 0 at mode collapse.

        The measure is the mean squared distance of two images' features, which is twice their variance: of D's last
        features, over all ranks, of fakes divided by real images.
        """
        micro, real, fake, _, _ = self._last
        was_training = self.D.training
        self.D.eval()
        variances = []
        for images in (fake, real):
            with autocast(images, self.options.bf16):
                _, features = self._discriminator.forward_plain(images, micro.labels, True, micro.condition)
            x = features[-1].flatten(1).double()
            sums = self.world.all_reduce_sum(torch.cat([x.new_tensor([len(x)]), x.square().sum().view(1), x.sum(0)]))
            variances.append((sums[1] / sums[0] - (sums[2:] / sums[0]).square().sum()).item())
        self.D.train(was_training)
        return max(0.0, variances[0]) / variances[1] if variances[1] > 0 else 0.0

    def warm_up_ddp_buckets(self, num: int, image: ImageSpec, z_dim: int, labeled: int | VectorInput) -> None:
        """Run two backwards that change nothing, before any state is loaded.

        DDP rebuilds its buckets after its first backward, and from three ranks on the order of a sum depends on
        the layout: without this, a resumed run would differ from the unbroken one in the last bits of its first step.
        """
        if self.world.size == 1:
            return
        sides = image.channels, image.height, image.width
        blank = torch.zeros(num, *sides, device=self.world.device, dtype=self.options.dtype)
        labels = blank_labels(labeled, num, self.world.device)
        z, seeds = blank.new_zeros(num, z_dim), torch.zeros(num, device=self.world.device, dtype=torch.long)
        condition = blank if self.options.image_to_image is not None else None
        buffers = [*self.G.buffers(), *self.D.buffers()]
        kept = [buffer.clone() for buffer in buffers]
        for _ in range(2):
            batch = MicroBatch(z, labels, seeds, blank.clone(), condition)
            (0 * self.d_loss(batch, blank.clone(), StepHyperparams()).loss).backward()
            self._train_D(False)
            loss = self.g_loss(MicroBatch(z, labels, seeds, blank, condition), StepHyperparams()).loss
            (0 * loss).backward()
            self._train_D(True)
        self.G.zero_grad(set_to_none=True)
        self.D.zero_grad(set_to_none=True)
        for buffer, value in zip(buffers, kept):
            buffer.copy_(value)

    def _train_D(self, is_trained: bool) -> None:
        """Let D's weights have gradients, or not while G is trained; frozen ones never have."""
        for weight in self._trained_D:
            weight.requires_grad_(is_trained)

    def _begin(self) -> None:
        if self.options.cuda_graphs:
            compilation.release_outputs()

    def _micro_batches(self, batch: StepBatch, z: Tensor, *, with_real: bool) -> Iterator[tuple[MicroBatch, bool]]:
        """Yield the passes of a step as the networks see them, and whether each is the last one."""
        num = self.options.accumulation_steps
        for number, (part, part_z) in enumerate(zip(batch.split(num), z.split(len(z) // num)), 1):
            real, condition = self._images(part) if with_real else (None, None)
            yield MicroBatch(part_z, part.labels, part.seeds, real, condition), number == num

    def _backward(self, loss: Tensor) -> None:
        """Run a backward. A loss that is not finite makes the gradients so, and their sum over the ranks shows it."""
        value = loss.detach()
        one = value - value + 1  # or NaN
        num = self.options.accumulation_steps
        loss.backward(one if num == 1 else one / num)

    def _update(self, name: str, optimizer: torch.optim.Optimizer, buffers: list[Tensor]) -> None:
        """Take the step, or leave all as it was where the gradient is not finite; the host does not ask which."""
        self.world.average_gradients(self._weights[name])
        norms = torch._foreach_norm([p.grad for p in self._weights[name] if p.grad is not None])
        norm = torch.linalg.vector_norm(torch.stack(norms))
        is_bad = norm - norm != 0  # infinite or NaN
        if optimizer.defaults.get("fused"):
            # What fused optimizers read before they change anything.
            optimizer.found_inf = is_bad.float()  # type: ignore[attr-defined]
            optimizer.step()
        elif not is_bad:  # for this the host waits
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for buffer, before in zip(self._restored_buffers, buffers):
            buffer.copy_(torch.where(is_bad, before, buffer))
        self.stats.add_update(name, norm)

    def _images(self, batch: StepBatch) -> tuple[Tensor, Tensor | None]:
        """Return real images as the networks see them, and the condition that G restores them from."""
        real = self._scaled(batch.images, batch.seeds)
        if self.options.image_to_image is None:
            return real, None
        if batch.degraded is not None:
            return real, self._scaled(batch.degraded, batch.seeds)
        return real, degrade(real, batch.seeds, self.options.image_to_image.degrade, self.options.image)

    def _scaled(self, pixels: Tensor, seeds: Tensor) -> Tensor:
        """Map stored values [B, H, W, C] to [B, C, H, W] in -1..1, mirrored where the seed says so."""
        options = self.options
        images = to_networks(pixels, options.image, options.dtype, options.memory_format)
        if not options.flip:
            return images
        mirrored = device_rng.uniform(seeds, "flip", 1) < 0.5
        return torch.where(mirrored[:, :, None, None], images.flip(3), images)
