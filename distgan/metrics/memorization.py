"""Memorization: the distance of generated images to training images, compared with that of unseen real images."""

from dataclasses import dataclass

from torch import Tensor

from distgan.metrics import precision_recall

NEAR = 0.01  # share of the unseen images that are nearer than the bound of "very near"


@dataclass
class NearestNeighbors:
    """Distances to nearest neighbors in feature space, on the host.

    Attributes:
        distance: Distance of each generated image to its nearest training image; float64 [n].
        nearest: Number of that training image; int64 [n].
        unseen: Distance of each unseen real image to its nearest training image, float64 [m]; or of each training image
            to the nearest of the others.
    """

    distance: Tensor
    nearest: Tensor
    unseen: Tensor

    def values(self) -> dict[str, float]:
        """Return `nearness` and `very_near`.

        `nearness` is the median distance divided by that of unseen images: about 1 for new images of the same kind,
        near 0 for copies, above 1 for images unlike the training set. `very_near` is the share of generated images that
        are nearer than the NEAR quantile of the unseen ones; it should be about NEAR.
        """
        bound = self.unseen.quantile(NEAR)
        return {
            "nearness": float(self.distance.median() / self.unseen.median()),
            "very_near": float((self.distance < bound).double().mean()),
        }

    def closest(self, num: int) -> list[tuple[int, int]]:
        """Return the closest pairs of numbers, as (generated, training)."""
        order = self.distance.argsort(stable=True)[:num]
        return [(int(i), int(self.nearest[i])) for i in order]


def nearness(train: Tensor, generated: Tensor, unseen: Tensor | None = None) -> NearestNeighbors:
    """Measure distances between features [n, d]; without unseen images, training images take their place.

    They are computed on the device of the features.
    """
    distance, nearest = precision_recall.nearest(generated, train)
    if unseen is not None:
        to_train = precision_recall.nearest(unseen, train)[0]
    else:
        to_train = precision_recall.reach(train, 1).sqrt()
    return NearestNeighbors(distance.cpu(), nearest.cpu(), to_train.cpu())
