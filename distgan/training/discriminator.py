"""D behind its augmentation: logits and gradient penalties. Compilation, bfloat16 and double backward stay in here."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from distgan.losses import gradient_penalty
from distgan.models.image_seeds import drawing_modules, set_seeds
from distgan.rng import device_rng
from distgan.training.step_inputs import MicroBatch, StepHyperparams
from distgan.transforms.augment import AUGMENTATIONS, Plan, apply_plan, plan


@dataclass(frozen=True)
class Evaluation:
    """D's answer to one batch of images.

    Attributes:
        logits: [B] or [B, P], in the precision of the networks.
        squared_gradient: Computes E ||dD/dx||^2 of D's score, differentiable, in the precision of penalties. To be
            called at most once, outside of autocast.
    """

    logits: Tensor
    squared_gradient: Callable[[], Tensor]


class RandomNumbers(NamedTuple):
    """What is drawn for an evaluation: the augmentation (empty for none) and the noise of its images.

    Attributes:
        tag: Name of the evaluation, which keeps its numbers apart from those of others of the same images.
    """

    tag: str
    plan: Plan
    noise: Tensor | None


class AugmentedDiscriminator:
    """D, and what happens to every image before D sees it: augmentation, then instance noise (Sonderby et al. 2017).

    Both are the same for real images and fakes, and G's gradient passes through them. Where D sees G's condition, the
    condition is augmented like the image.

    Random numbers are drawn outside of what is compiled, so a graph has networks and arithmetic alone. Those of all
    evaluations of a step are drawn in one call (`draw`).

    Args:
        augment, color: See `StepOptions`.
        bf16: Whether callers evaluate under autocast.
        bf16_penalties: Whether penalties are those of this evaluation in bfloat16. Else they are in float32, for which
            D evaluates the images once more where `bf16` is set.
        finite_sigma: Deviation of the noise by which penalties are estimated, in float32; 0: by the gradient.
        compile: "off"; "g": where no gradient of a gradient is needed; "all": there too.
        compiled: Returns the compiled form of a function.
        sees_condition: Whether D gets the image that G started from, too.
        alpha: Whether the last channel of images is transparency.
    """

    def __init__(
        self,
        D: nn.Module,
        augment: str = "none",
        color: float = 1.0,
        *,
        bf16: bool = False,
        bf16_penalties: bool = False,
        finite_sigma: float = 0.0,
        compile: str = "off",
        compiled: Callable[[Callable], Callable] = lambda function: function,
        sees_condition: bool = False,
        alpha: bool = False,
    ) -> None:
        self.D, self._augment, self._color, self._alpha = D, augment, color, alpha
        self._bf16_penalties, self._evaluates_twice = bf16_penalties, bf16 and not bf16_penalties
        self._finite_sigma = finite_sigma
        self._sees_condition, self._compiles_penalties = sees_condition, compile == "all"
        self._drawing = drawing_modules(D)
        self._forward = self._augmented if compile == "off" else compiled(self._augmented)
        self._plan = plan if compile == "off" else compiled(plan)
        self._penalty = compiled(self._squared_gradient) if self._compiles_penalties else self._squared_gradient
        self._gp = compiled(self._distance_from_one) if self._compiles_penalties else None

    def draw(self, images: Tensor, batch: MicroBatch, tags: Sequence[str], hp: StepHyperparams) -> list[RandomNumbers]:
        """Draw for evaluations with these tags; their images are as many as `images`, of that shape and type."""
        plans: list[Plan] = [()] * len(tags)
        noises: list[Tensor] | list[None] = [None] * len(tags)
        dtype = torch.promote_types(images.dtype, torch.float32)
        if self._augment != "none":
            num = AUGMENTATIONS[self._augment].num_draws
            draws = device_rng.uniform(batch.seeds, [f"augment {tag}" for tag in tags], num)
            p: Tensor | float = hp.augment_p
            if self._plan is not plan:  # a graph is made for one number, but for any value of a tensor
                p = torch.full((), hp.augment_p, device=images.device)
            planned = self._plan(draws, self._augment, tuple(images.shape[1:]), p, self._color, dtype, self._alpha)
            plans = list(zip(*(part.chunk(len(tags)) for part in planned)))
        if hp.instance_noise:
            purposes = [f"noise {tag}" for tag in tags]
            noise = device_rng.normal(batch.seeds, purposes, images[0].numel()).view(-1, *images.shape[1:])
            noises = list((hp.instance_noise * noise.to(dtype)).chunk(len(tags)))
        return [RandomNumbers(*one) for one in zip(tags, plans, noises)]

    def evaluate(self, images: Tensor, batch: MicroBatch, numbers: RandomNumbers, *, penalize: bool) -> Evaluation:
        """Evaluate images [B, C, H, W] in -1..1. With `penalize`, their squared gradient can be computed."""
        self.set_dropout_seeds(batch.seeds, numbers.tag)
        if self._finite_sigma:
            logits = self._forward(images, batch.labels, numbers.plan, numbers.noise, batch.condition)[0]
            return Evaluation(logits, functools.partial(self._finite, images, batch, numbers, logits))
        images.requires_grad_(penalize and not self._compiles_penalties)
        inputs = (images, batch.labels, numbers.plan, numbers.noise, batch.condition)

        if penalize and not self._evaluates_twice and self._compiles_penalties:
            squares, logits = self._penalty(*inputs)
            return Evaluation(logits, lambda: squares)
        if penalize and not self._evaluates_twice:
            logits, _ = self._augmented(*inputs)
            return Evaluation(logits, lambda: gradient_penalty.squared_gradient(logits, images))

        def in_float32() -> Tensor:  # for which D sees the images once more
            self.set_dropout_seeds(batch.seeds, numbers.tag)
            if self._compiles_penalties:
                return self._penalty(*inputs)[0]
            return gradient_penalty.squared_gradient(self._augmented(*inputs)[0], images)

        return Evaluation(self._forward(*inputs)[0], in_float32)

    def _finite(self, images: Tensor, batch: MicroBatch, numbers: RandomNumbers, logits: Tensor) -> Tensor:
        """Estimate E ||dD/dx||^2 by a difference. Both sides have the same augmentation, noise and dropout."""
        inputs = batch.labels, numbers.plan, numbers.noise, batch.condition
        if self._evaluates_twice:  # outside of autocast, since the logits in bfloat16 are too coarse for a difference
            self.set_dropout_seeds(batch.seeds, numbers.tag)
            logits = self._forward(images, *inputs)[0]
        drawn = device_rng.normal(batch.seeds, f"finite {numbers.tag}", images[0].numel()).view_as(images)
        self.set_dropout_seeds(batch.seeds, numbers.tag)
        moved = self._forward(images + self._finite_sigma * drawn.to(images.dtype), *inputs)[0]
        return gradient_penalty.finite_squared_gradient(logits, moved, self._finite_sigma)

    def logits_and_features(
        self, images: Tensor, batch: MicroBatch, numbers: RandomNumbers, *, features: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """Return logits, and D's features where `features` is set."""
        self.set_dropout_seeds(batch.seeds, numbers.tag)
        return self._forward(images, batch.labels, numbers.plan, numbers.noise, batch.condition, features)

    def gradient_penalty(self, real: Tensor, fake: Tensor, batch: MicroBatch) -> Tensor:
        """Return E (||dD/dx|| - 1)^2 between real images and fakes, without augmentation (Gulrajani et al. 2017)."""
        self.set_dropout_seeds(batch.seeds, "between")
        mix = device_rng.uniform(batch.seeds, "mix", 1).flatten()
        if self._gp is not None:
            with autocast(real, self._bf16_penalties):
                return self._gp(real, fake, batch.labels, mix, batch.condition)

        def D(x: Tensor, labels: Tensor | None) -> Tensor:
            with autocast(x, self._bf16_penalties):
                return self.forward_plain(x, labels, condition=batch.condition)[0]

        return gradient_penalty.gradient_penalty(D, real, fake, batch.labels, mix)

    def forward_plain(
        self, images: Tensor, labels: Tensor | None, features: bool = False, condition: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return D's logits of images as they are, and its features where `features` is set."""
        x = images
        if self._sees_condition:
            assert condition is not None
            x = torch.cat([images, condition.to(images.dtype)], 1)
        return self.D(x, labels, features=True) if features else (self.D(x, labels), [])

    def set_dropout_seeds(self, seeds: Tensor, tag: str) -> None:
        """Set which images D's dropout is about to see: its masks are a function of their seeds."""
        set_seeds(self._drawing, seeds, tag)

    def _augmented(
        self,
        images: Tensor,
        labels: Tensor | None,
        planned: Plan,
        noise: Tensor | None,
        condition: Tensor | None,
        features: bool = False,
    ) -> tuple[Tensor, list[Tensor]]:
        x = apply_plan(images, planned, self._augment, self._alpha) if planned else images
        x = x if noise is None else x + noise.to(x.dtype)
        if condition is not None and self._sees_condition and planned:
            condition = apply_plan(condition, planned, self._augment, self._alpha)
        return self.forward_plain(x, labels, features, condition)

    def _squared_gradient(
        self, images: Tensor, labels: Tensor | None, planned: Plan, noise: Tensor | None, condition: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        def D(x: Tensor) -> Tensor:
            return self._augmented(x, labels, planned, noise, condition)[0]

        gradient, logits = gradient_penalty.traced_gradient(D, images)
        return gradient_penalty.mean_square(gradient), logits

    def _distance_from_one(
        self, real: Tensor, fake: Tensor, labels: Tensor | None, mix: Tensor, condition: Tensor | None
    ) -> Tensor:
        between = gradient_penalty.between(real, fake, mix)
        gradient, _ = gradient_penalty.traced_gradient(
            lambda x: self.forward_plain(x, labels, condition=condition)[0], between
        )
        return gradient_penalty.distance_from_one(gradient)


def autocast(like: Tensor, bf16: bool) -> contextlib.AbstractContextManager:
    """Return a context of bfloat16, or of nothing.

    It belongs around one forward, never around a whole step: its cache of cast weights would outlive the optimizer's
    change.
    """
    return torch.autocast(like.device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()
