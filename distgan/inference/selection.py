"""Which of a generator's images are taken: their numbers, a class for each, and the best of them by a score.

Images are made in units, each by itself: what a unit holds is a function of the choice alone, so that processes share
the units without a word to one another, and what is finished stays.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from distgan.errors import ConfigError


class Drawn(NamedTuple):
    """One image of a generator."""

    number: int
    label: int | None
    picture: np.ndarray  # uint8 [H, W, 3]
    score: float = 0.0


@dataclass(frozen=True)
class Choice:
    """How many images, of which classes, in units of how many, and which share of the candidates.

    Image i is of class `classes[i % len(classes)]`. With a share below 1, a unit of n images is the n best of its own
    candidates, ceil(n / share) images that follow those of the unit before; the others are left out. With `balance`
    each class has its own n / len(classes) best, so that all classes have equally many.

    Attributes:
        num: Images in all.
        unit: Images of every unit but the last.
        classes: Class numbers; none for a generator without classes.
        share: Of the candidates that are taken, above 0 and up to 1.
        balance: Whether all classes have equally many images.

    Raises:
        ConfigError: Equally many are not possible.
    """

    num: int
    unit: int
    classes: tuple[int, ...] = ()
    share: float = 1.0
    balance: bool = False

    def __post_init__(self) -> None:
        if not self.balance:
            return
        if not self.classes:
            raise ConfigError("--balance: this generator was trained without classes (model.conditional=false)")
        if rest := self.num % len(self.classes):
            near = [n for n in (self.num - rest, self.num - rest + len(self.classes)) if n]
            raise ConfigError(
                f"--balance: {self.num} images cannot be spread evenly over {len(self.classes)} classes: "
                f"choose --num {' or '.join(map(str, near))}"
            )
        object.__setattr__(self, "unit", -(-self.unit // len(self.classes)) * len(self.classes))

    @property
    def num_units(self) -> int:
        return -(-self.num // self.unit)

    @property
    def num_candidates(self) -> int:
        return self.candidates(self.num_units - 1).stop

    def size(self, unit: int) -> int:
        """Images of a unit."""
        return min(self.unit, self.num - unit * self.unit)

    def candidates(self, unit: int) -> range:
        """Numbers of the images that a unit's are chosen from."""
        first = unit * self._candidates(self.unit)
        return range(first, first + self._candidates(self.size(unit)))

    def label(self, number: int) -> int | None:
        return self.classes[number % len(self.classes)] if self.classes else None

    def labels(self, numbers: Sequence[int]) -> list[int] | None:
        return [self.classes[i % len(self.classes)] for i in numbers] if self.classes else None

    def best(self, unit: int, drawn: list[Drawn]) -> list[Drawn]:
        """Those of a unit that stay when no others come: the best, the earlier one of equals; in order of number."""
        by_score = sorted(drawn, key=lambda one: (-one.score, one.number))
        if not self.balance:
            kept = by_score[: self.size(unit)]
        else:
            room = dict.fromkeys(self.classes, self.size(unit) // len(self.classes))
            kept = []
            for one in by_score:
                if room[one.label] > 0:
                    room[one.label] -= 1
                    kept.append(one)
        return sorted(kept, key=lambda one: one.number)

    def _candidates(self, size: int) -> int:
        step = len(self.classes) if self.balance else 1
        return step * math.ceil(size / step / self.share - 1e-9)  # 7 / 0.7 is a little more than 10
