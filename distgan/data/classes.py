"""Class-balanced sampling: an epoch in which every class occurs equally often, however many samples it has.

Such an epoch holds each class as often as the largest one has samples. A sample of a class of n stands in it
floor(largest / n) times or once more; whose turn it is to stand there once more goes round the class from epoch to
epoch, so that in the long run all samples of a class are seen equally often. All is a function of the seed, the labels
and the number of the epoch.
"""

from functools import lru_cache

import numpy as np

from distgan.rng import host_rng


class Balanced:
    """The samples of balanced epochs, each in an order that `plan.Plan` shuffles as it does a data set's.

    Takes about 40 bytes for each place of an epoch while one is laid out, and 8 afterwards.

    Args:
        labels: Class of each sample, int [num_samples], from 0 on. Classes without a sample are left out.
    """

    def __init__(self, labels: np.ndarray, seed: int) -> None:
        sizes = np.bincount(labels)
        self.largest, self.num_classes = int(sizes.max()), int((sizes > 0).sum())
        self.num_places = self.largest * self.num_classes  # of each epoch
        self._sizes = sizes[labels]  # of each sample's class
        mixed = host_rng.permutation(host_rng.key(seed, "classes"), len(labels))
        mixed = mixed[np.argsort(labels[mixed], kind="stable")]  # class by class, each in an order of its own
        self._turn = np.empty(len(labels), np.int64)  # of each sample in its class
        self._turn[mixed] = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        self.samples = lru_cache(maxsize=2)(self._samples)  # a batch may span two epochs

    def _samples(self, epoch: int) -> np.ndarray:
        """The sample at each place of an epoch; int64 [num_places].

        All samples come once, in the order in which they are stored; then all that come again; and so on. So
        neighbours in this order are neighbours on the disk where that is possible, and never the same picture.
        """
        times, more = np.divmod(self.largest, self._sizes)
        times += (self._turn - epoch * more) % self._sizes < more
        samples = np.repeat(np.arange(len(times)), times)
        nth = np.arange(len(samples)) - np.repeat(np.cumsum(times) - times, times)
        return samples[np.argsort(nth, kind="stable")]
