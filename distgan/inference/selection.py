"""Select a generator's images: their numbers, a class for each, and the best of them by a score.

Images are made in groups: the images of a group are a function of the selection alone, so that processes share the
groups without communication, and finished ones stay.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from distgan.errors import ConfigError


class GeneratedImage(NamedTuple):
    """One image of a generator."""

    number: int
    label: int | None
    pixels: np.ndarray  # stored values [H, W, C]
    score: float = 0.0
    condition: np.ndarray | None = None  # values [R], of a generator with conditions


@dataclass(frozen=True)
class SampleSelection:
    """The number of images, their classes, the size of a group, and the share of the candidates to keep.

    Image i is of class `classes[i % len(classes)]`. With a share below 1, a group of n images has the n best of its own
    candidates, ceil(n / share) images that follow those of the group before; the others are left out. With `balance`,
    it has the n / len(classes) best of each class, so that all classes have the same number of images.

    Attributes:
        num: Number of images.
        group_size: Images of every group but the last.
        classes: Class numbers; empty for a generator without classes.
        share: Share of the candidates to keep, above 0 and up to 1.
        balance: Whether all classes have the same number of images.

    Raises:
        ConfigError: `balance` is not possible.
    """

    num: int
    group_size: int
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
        object.__setattr__(self, "group_size", -(-self.group_size // len(self.classes)) * len(self.classes))

    @property
    def num_groups(self) -> int:
        """Return the number of groups."""
        return -(-self.num // self.group_size)

    @property
    def num_candidates(self) -> int:
        """Return the number of images to be made in all groups."""
        return self.candidates(self.num_groups - 1).stop

    def size(self, group: int) -> int:
        """Return the number of images of a group."""
        return min(self.group_size, self.num - group * self.group_size)

    def candidates(self, group: int) -> range:
        """Return the numbers of the images from which a group's are chosen."""
        first = group * self._num_candidates(self.group_size)
        return range(first, first + self._num_candidates(self.size(group)))

    def label(self, number: int) -> int | None:
        """Return the class of an image, None without classes."""
        return self.classes[number % len(self.classes)] if self.classes else None

    def labels(self, numbers: Sequence[int]) -> list[int] | None:
        """Return the classes of some images, None without classes."""
        return [self.classes[i % len(self.classes)] for i in numbers] if self.classes else None

    def best(self, group: int, images: list[GeneratedImage]) -> list[GeneratedImage]:
        """Return the best images of a group, as many as it holds, in order of number; of equal ones, the earlier."""
        by_score = sorted(images, key=lambda image: (-image.score, image.number))
        if not self.balance:
            kept = by_score[: self.size(group)]
        else:
            room: dict[int | None, int] = dict.fromkeys(self.classes, self.size(group) // len(self.classes))
            kept = []
            for image in by_score:
                if room[image.label] > 0:
                    room[image.label] -= 1
                    kept.append(image)
        return sorted(kept, key=lambda image: image.number)

    def _num_candidates(self, size: int) -> int:
        step = len(self.classes) if self.balance else 1
        return step * math.ceil(size / step / self.share - 1e-9)  # 7 / 0.7 is a little more than 10


def parse_classes(text: str, num_classes: int, setting: str, usage: str, names: Sequence[str] = ()) -> list[int]:
    """Return the classes that a text names: "0,3,7-9" -> [0, 3, 7, 8, 9], or "cat,dog" by their names.

    Args:
        names: Names of classes 0, 1 ..., where they are known. A number is never taken as a name.
        setting: The option or key with its value, for messages.
        usage: What to write instead, for the message about a text of another form.

    Raises:
        ConfigError: The text has another form, or a class does not exist.
    """
    classes: list[int] = []
    for part in text.split(","):
        if part.strip() in names and not part.strip().isdecimal():
            classes.append(list(names).index(part.strip()))
            continue
        first, _, last = part.partition("-")
        if not first.isdecimal() or not (last or first).isdecimal():
            known = f"; the names are {', '.join(names[:10])}{' ...' * (len(names) > 10)}" if names else ""
            raise ConfigError(f"{setting}: {usage}{known}")
        if not int(first) <= int(last or first) < num_classes:
            raise ConfigError(f"{setting}: the classes are 0 to {num_classes - 1}")
        classes += range(int(first), int(last or first) + 1)
    return classes
