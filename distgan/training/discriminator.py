"""How D is asked: what is done to every image before D sees it, and D's gradient with respect to images."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distgan.losses import gradient_penalty as penalties
from distgan.models.epilogue import Tail
from distgan.rng import device_rng
from distgan.transforms.augment import NUM_DRAWS, augment

Verdict = Tensor | tuple[Tensor, list[Tensor]]  # logits, and with `features` those too


@dataclass(frozen=True)
class Strengths:
    """What schedules and controllers say at one moment.

    Attributes:
        r1, r2, gp: Weights of the penalties, 0 where one is not applied.
        noise: Standard deviation of the noise on all images that D sees, which range over -1..1.
        p: Probability of each augmentation.
        every: D steps from one application of the penalties to the next; their weights are as much larger.
    """

    r1: float = 0.0
    r2: float = 0.0
    gp: float = 0.0
    noise: float = 0.0
    p: float = 0.0
    every: int = 1


class Judge:
    """D behind what is done to every image before D sees it.

    That is augmentation, then instance noise (Sonderby et al. 2017): the same for real images and fakes, and G's
    gradient passes through it. A `look` keeps the draws of several judgements of one image apart. Where D is shown what
    G was given (`paired`), that is moved and coloured like the image.

    Random numbers are drawn before what is compiled, so a graph holds networks and arithmetic alone.

    Args:
        compile: "off"; "g": where no gradient of a gradient is needed; "all": there too.
        compiled: Makes the compiled form of a function.
        paired: Whether D is shown what G restored an image from; then it is `given` beside each image.

    Attributes:
        traces: Whether gradients with respect to images are part of a compiled graph.
    """

    def __init__(
        self,
        D: nn.Module,
        pipe: str,
        colour: float,
        compile: str = "off",
        compiled: Callable[[Callable], Callable] = lambda function: function,
        paired: bool = False,
    ) -> None:
        self.D, self.pipe, self.colour, self.traces = D, pipe, colour, compile == "all"
        self.paired = paired
        self._tails = [module for module in D.modules() if isinstance(module, Tail)]
        self._verdict = self._look if compile == "off" else compiled(self._look)
        self._square = compiled(self._squared_gradient) if self.traces else None
        self._distance = compiled(self._distance_from_one) if self.traces else None

    def __call__(
        self,
        images: Tensor,
        labels: Tensor | None,
        seeds: Tensor,
        look: str,
        now: Strengths,
        features: bool = False,
        twice: bool = False,
        given: Tensor | None = None,
    ) -> Verdict:
        """D's logits [B] or [B, P]. With `twice`, for a gradient that is differentiated again by torch.autograd."""
        verdict = self._look if twice else self._verdict
        return verdict(images, labels, *self._drawn(images, seeds, look, now), features, given)

    def plain(
        self, images: Tensor, labels: Tensor | None, features: bool = False, given: Tensor | None = None
    ) -> Verdict:
        """D's logits of images as they are."""
        x = torch.cat([images, given.to(images.dtype)], 1) if self.paired else images
        return self.D(x, labels, features=True) if features else self.D(x, labels)

    def squared_gradient(
        self,
        images: Tensor,
        labels: Tensor | None,
        seeds: Tensor,
        look: str,
        now: Strengths,
        given: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`penalties.squared_gradient` and the logits, as one graph, where `traces`."""
        return self._square(images, labels, *self._drawn(images, seeds, look, now), given)

    def gradient_penalty(
        self, real: Tensor, fake: Tensor, labels: Tensor | None, seeds: Tensor, given: Tensor | None = None
    ) -> Tensor:
        """`penalties.gradient_penalty` of the images as they are."""
        self.tell(seeds, "between")
        mix = device_rng.uniform(seeds, "mix", 1).flatten()
        if self.traces:
            return self._distance(real, fake, labels, mix, given)
        return penalties.gradient_penalty(functools.partial(self.plain, given=given), real, fake, labels, mix)

    def tell(self, seeds: Tensor, look: str) -> None:
        """Tell D's dropout which images it is about to see."""
        for tail in self._tails:
            tail.seeds, tail.look = seeds, look

    def _drawn(
        self, images: Tensor, seeds: Tensor, look: str, now: Strengths
    ) -> tuple[Tensor | None, Tensor | float, Tensor | None]:
        """All that is random in a look: numbers and probability of the augmentation, and the noise."""
        self.tell(seeds, look)
        draws, p, noise = None, now.p, None
        if self.pipe != "none":
            draws = device_rng.uniform(seeds, f"augment {look}", NUM_DRAWS[self.pipe])
            if self._verdict != self._look:  # a graph is made for a number, but for any value of a tensor
                p = torch.full((), now.p, device=images.device)
        if now.noise:
            noise = now.noise * device_rng.normal(seeds, f"noise {look}", images[0].numel()).view_as(images).to(
                images.dtype
            )
        return draws, p, noise

    def _look(
        self,
        images: Tensor,
        labels: Tensor | None,
        draws: Tensor | None,
        p: Tensor | float,
        noise: Tensor | None,
        features: bool = False,
        given: Tensor | None = None,
    ) -> Verdict:
        x = images if draws is None else augment(images, draws, self.pipe, p, self.colour)
        x = x if noise is None else x + noise
        if self.paired and draws is not None:
            given = augment(given, draws, self.pipe, p, self.colour)
        return self.plain(x, labels, features, given)

    def _squared_gradient(
        self,
        images: Tensor,
        labels: Tensor | None,
        draws: Tensor | None,
        p: Tensor | float,
        noise: Tensor | None,
        given: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        def look(x: Tensor) -> Verdict:
            return self._look(x, labels, draws, p, noise, given=given)

        gradient, logits = penalties.traced_gradient(look, images)
        return penalties.mean_square(gradient), logits

    def _distance_from_one(
        self, real: Tensor, fake: Tensor, labels: Tensor | None, mix: Tensor, given: Tensor | None
    ) -> Tensor:
        between = penalties.between(real, fake, mix)
        gradient, _ = penalties.traced_gradient(lambda x: self.plain(x, labels, given=given), between)
        return penalties.distance_from_one(gradient)
