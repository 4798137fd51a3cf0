"""Controllers that read D's logits: adaptive augmentation, and a balance of D and G."""

from distgan.storage import saved_state


class Balance:
    """A level from 0 to 1 that rises while D is too strong and falls while it is too weak.

    What the level weakens D by is the caller's: its learning rate, its number of steps, or augmentation. A D that is
    too strong leaves G no gradient to learn from; one that is too weak has nothing to teach.

    Args:
        low, high: The band, in the unit of what is watched.
        max_factor: By how much D is weakened at level 1; a factor.
        step: Share of the range of levels that one update goes.
    """

    def __init__(self, low: float, high: float, max_factor: float, step: float) -> None:
        self.low, self.high, self.max_factor, self.step = low, high, max_factor, step
        self.level = 0.0

    def update(self, value: float) -> None:
        """Update the level by the signal, e.g. the share of pairs that D orders correctly."""
        direction = (value > self.high) - (value < self.low)
        self.level = min(1.0, max(0.0, self.level + direction * self.step))

    def state(self) -> dict[str, float]:
        return {"level": self.level}

    def load_state(self, state: saved_state.Balance) -> None:
        self.level = state["level"]


class Ada:
    """Adaptive probability of augmentation: as much as keeps D from memorizing the real images.

    The mean sign of D's logits on real images, r_t in Karras et al. 2020 (section 3, eq. 1), rises with overfitting.
    Where it is above the target p grows, below it p shrinks, at a pace that goes from 0 to 1 in `speed_images`.
    Arithmetic of the host on what all ranks share, hence the same p on all of them.

    Attributes:
        p: Probability of each operation now.
    """

    def __init__(self, target: float = 0.6, speed_images: int = 500_000, p_max: float = 0.8) -> None:
        """The default bound: in Karras et al., section 2, augmentations do not leak into G's images below 0.8."""
        self.target, self.speed_images, self.p_max = target, speed_images, p_max
        self.p = 0.0

    def update(self, sign_mean: float, images: int) -> None:
        """Follow what was seen.

        Args:
            sign_mean: Mean sign of D's logits on real images since the last update, -1..1.
            images: Real images since the last update.
        """
        direction = (sign_mean > self.target) - (sign_mean < self.target)
        self.p = min(max(self.p + direction * images / self.speed_images, 0.0), self.p_max)

    def state(self) -> dict[str, float]:
        """Return what a checkpoint keeps."""
        return {"p": self.p}

    def load_state(self, state: saved_state.Ada) -> None:
        """Undo `state`; a bound that was lowered since then holds."""
        self.p = min(state["p"], self.p_max)
