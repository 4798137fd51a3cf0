"""The losses of D and of G, as the two modules that DDP wraps."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from distgan.losses import gradient_penalty
from distgan.losses.adversarial import open_loss
from distgan.losses.path_length import path_lengths
from distgan.losses.reconstruction import PIXEL, feature_matching
from distgan.models.image_seeds import drawing_modules, set_seeds
from distgan.models.networks import run_generator
from distgan.rng import device_rng
from distgan.training.discriminator import AugmentedDiscriminator, autocast
from distgan.training.step_inputs import MicroBatch, StepHyperparams, StepOptions


class DiscriminatorResult(NamedTuple):
    """The D loss, its terms by log key, and D's scores of real images and fakes, [B] each, all three detached."""

    loss: Tensor
    terms: dict[str, Tensor]
    real_scores: Tensor
    fake_scores: Tensor


class GeneratorResult(NamedTuple):
    """The G loss, its terms by log key, and the path lengths where they were computed, [B]; the last two detached."""

    loss: Tensor
    terms: dict[str, Tensor]
    path_lengths: Tensor | None = None


class DiscriminatorLoss(nn.Module):
    """Real images and fakes -> the D loss: the adversarial loss on logits, plus gradient penalties."""

    def __init__(self, discriminator: AugmentedDiscriminator, options: StepOptions) -> None:
        super().__init__()
        self.D = discriminator.D  # registers D's weights, which DDP reduces the gradients of
        self.loss = open_loss(options.loss, options.loss_options)
        self.discriminator, self.bf16 = discriminator, options.bf16
        self.smoothing = {"smooth": options.label_smoothing} if options.label_smoothing else {}

    def forward(self, batch: MicroBatch, fake: Tensor, hp: StepHyperparams) -> DiscriminatorResult:
        """Compute the loss of `batch.real` and `fake`, [B, C, H, W] in -1..1 each."""
        D, real = self.discriminator, batch.real
        assert real is not None
        of_real, of_fake = D.draw(real, batch, ("real", "fake"), hp)
        with autocast(fake, self.bf16):
            on_real = D.evaluate(real, batch, of_real, penalize=hp.r1 > 0)
            on_fake = D.evaluate(fake, batch, of_fake, penalize=hp.r2 > 0)
        real_logits, fake_logits = as_float32(on_real.logits), as_float32(on_fake.logits)
        adversarial = self.loss.d(real_logits, fake_logits, **self.smoothing)
        penalties = {}
        if hp.r1 > 0:
            penalties["Loss/r1"] = hp.r1 / 2 * on_real.squared_gradient()
        if hp.r2 > 0:
            penalties["Loss/r2"] = hp.r2 / 2 * on_fake.squared_gradient()
        if hp.gp > 0:
            penalties["Loss/gp"] = hp.gp * D.gradient_penalty(real, fake, batch)
        total = sum(penalties.values(), adversarial)

        # A lazy penalty is logged as what it adds to the loss on average over all steps.
        terms = {name: term.detach() / hp.penalty_interval for name, term in penalties.items()}
        terms = {"Loss/D_adv": adversarial.detach(), **terms, "Loss/D": total.detach()}
        scores = (gradient_penalty.score(one.logits.detach()) for one in (on_real, on_fake))
        return DiscriminatorResult(total, terms, *scores)


class GeneratorLoss(nn.Module):
    """Latents, and a condition where there is one -> the G loss.

    Args:
        forward: G as it is called, where that is not G itself: its compiled form.
    """

    def __init__(
        self,
        G: nn.Module,
        discriminator: AugmentedDiscriminator,
        options: StepOptions,
        forward: Callable[..., Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.G = G
        self.discriminator = discriminator  # not a module: DDP has nothing to do with D's weights here
        self.loss, self.options = open_loss(options.loss, options.loss_options), options
        # Each restored image has a real one of its own to match.
        self.group = 1 if options.image_to_image else options.group
        self._drawing = drawing_modules(G)
        # In a list, so that it does not count as a second module.
        self._generator: Sequence[Callable[..., Tensor]] = [G if forward is None else forward]

    def forward(self, batch: MicroBatch, hp: StepHyperparams, mean_length: Tensor | None = None) -> GeneratorResult:
        """Compute the loss.

        Args:
            mean_length: The running mean of path lengths, where `hp.path_length` is set.
        """
        D, options = self.discriminator, self.options
        features = options.feature_matching > 0
        tags = ("G's fake", "G's real") if self.loss.paired or features else ("G's fake",)
        real_logits: Tensor | None = None
        real_features: list[Tensor] = []
        set_seeds(self._drawing, batch.seeds, "of G")
        styles = None
        with autocast(batch.z, options.bf16):
            if hp.path_length:  # of styles, by a G that has some
                styles = self.G.styles(batch.z, batch.labels)  # type: ignore[operator]
                fake = self.G.synthesize(styles)  # type: ignore[operator]
            else:
                fake = run_generator(self._generator[0], batch.z, batch.condition, batch.labels)
            of_fake, *of_real = D.draw(fake, batch, tags, hp)
            fake_logits, fake_features = D.logits_and_features(fake, batch, of_fake, features=features)
            if of_real:
                assert batch.real is not None
                with torch.no_grad():
                    real_logits, real_features = D.logits_and_features(batch.real, batch, of_real[0], features=features)
        terms = {
            "Loss/G_adv": self.loss.g(as_float32(fake_logits), None if real_logits is None else as_float32(real_logits))
        }
        if features:
            terms["Loss/fm"] = options.feature_matching * feature_matching(real_features, fake_features, self.group)
        if to_image := options.image_to_image:
            assert batch.real is not None
            terms["Loss/pixel"] = to_image.pixel_weight * PIXEL[to_image.pixel_loss](as_float32(fake), batch.real)
        lengths = None
        adversarial, *others = terms.values()
        if styles is not None:
            assert mean_length is not None
            noise = device_rng.normal(batch.seeds, "path length", fake[0].numel()).to(styles.dtype)
            lengths = path_lengths(as_float32(fake), styles, noise)
            penalty = hp.path_length * (lengths - mean_length.to(lengths.dtype)).square().mean()
            terms["Loss/path"] = penalty.detach() / hp.path_length_interval  # what it adds on average over all steps
            others.append(penalty)
        total = sum(others, adversarial)
        detached = {name: term.detach() for name, term in {**terms, "Loss/G": total}.items()}
        return GeneratorResult(total, detached, None if lengths is None else lengths.detach())


def as_float32(logits: Tensor) -> Tensor:
    """Return bfloat16 as float32, and float32 or float64 as it is."""
    return logits.float() if logits.dtype is torch.bfloat16 else logits
