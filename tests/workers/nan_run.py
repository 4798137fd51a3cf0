"""`distgan` with a fault: the latents of one step are not finite. For test_nan.

    python nan_run.py POSITION ATTEMPTS train ...

The image at POSITION gets NaN for its latents in D's step and in G's, in the first ATTEMPTS attempts.
"""

import sys

import numpy as np

from distgan.cli.main import main
from distgan.training import step_inputs

POSITION, ATTEMPTS = int(sys.argv[1]), int(sys.argv[2])


class FaultyNoise(step_inputs.LatentSampler):
    def __init__(self, seed: int, z_dim: int, attempt: int = 0):
        super().__init__(seed, z_dim, attempt)
        self._is_faulty = attempt < ATTEMPTS

    def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        z_d, z_g, seeds = super().__call__(positions)
        if self._is_faulty:
            z_d[positions == POSITION] = z_g[positions == POSITION] = np.nan
        return z_d, z_g, seeds


if __name__ == "__main__":
    from distgan.training import trainer

    trainer.LatentSampler = FaultyNoise
    sys.exit(main(sys.argv[3:]))
