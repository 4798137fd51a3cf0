"""Keeps D and G in a stated band of one another."""


class Balance:
    """A level from 0 to 1 that rises while D is too strong and falls while it is too weak.

    What the level weakens D by is the caller's: its learning rate, its number of steps, or augmentation. A D that is
    too strong leaves G no gradient to learn from; one that is too weak has nothing to teach.

    Args:
        low, high: The band, in the unit of what is watched.
        limit: By how much D is weakened at level 1; a factor.
        rate: Share of the range of levels that one update goes.
    """

    def __init__(self, low: float, high: float, limit: float, rate: float) -> None:
        self.low, self.high, self.limit, self.rate = low, high, limit, rate
        self.level = 0.0

    def update(self, value: float) -> None:
        """Look at what is watched, e.g. the share of pairs that D orders rightly."""
        direction = (value > self.high) - (value < self.low)
        self.level = min(1.0, max(0.0, self.level + direction * self.rate))

    def state(self) -> dict[str, float]:
        return {"level": self.level}

    def load_state(self, state: dict[str, float]) -> None:
        self.level = state["level"]
