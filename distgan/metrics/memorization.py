"""Whether generated images are copies: how near each is to a training image, next to how near unseen real ones are."""

from dataclasses import dataclass

from torch import Tensor

from distgan.metrics import precision_recall

NEAR = 0.01  # share of the unseen images that are nearer than what counts as very near


@dataclass
class Nearness:
    """Attributes:
    distance: Of each generated image to its nearest training image; float64 [n].
    nearest: Which that is; int64 [n].
    unseen: The same distances of unseen real images, float64 [m]; or of training images to the others.
    """

    distance: Tensor
    nearest: Tensor
    unseen: Tensor

    def values(self) -> dict[str, float]:
        """Numbers that tell of copies.

        `nearness` is the median distance over that of unseen images: about 1 for new images of the same kind, towards
        0 for copies, above 1 for images unlike the training set. `very_near` is the share of generated images that are
        nearer than all but NEAR of the unseen ones, which should be about NEAR.
        """
        bound = self.unseen.quantile(NEAR)
        return {
            "nearness": float(self.distance.median() / self.unseen.median()),
            "very_near": float((self.distance < bound).double().mean()),
        }

    def closest(self, num: int) -> list[tuple[int, int]]:
        """The closest pairs, as (generated, training)."""
        order = self.distance.argsort(stable=True)[:num]
        return [(int(i), int(self.nearest[i])) for i in order]


def nearness(train: Tensor, generated: Tensor, unseen: Tensor | None = None) -> Nearness:
    """Distances in feature space; features are [n, d]. Without unseen images, training images stand for them."""
    distance, nearest = precision_recall.nearest(generated, train)
    if unseen is not None:
        return Nearness(distance, nearest, precision_recall.nearest(unseen, train)[0])
    own = precision_recall.reach(train, 1).sqrt()  # each to the nearest of the others
    return Nearness(distance, nearest, own)
