"""One rank of test_compiling: D's and G's step compiled and not, in float64; traffic is counted as in ranks_gradients.

Usage: ranks_compiled.py MODE NUM, the first settings of PENALTIES; under RANK and WORLD_SIZE where there are several.
"""

import sys

import numpy as np
import torch
from ranks_gradients import BATCH, RESOLUTION, Z_DIM, steps

from distgan.distributed.process_group import World
from distgan.training.step_inputs import LatentSampler, StepBatch, StepHyperparams

PENALTIES = (
    StepHyperparams(r1=2.0, r2=3.0, gp=10.0),
    StepHyperparams(),
    StepHyperparams(r1=2.0, instance_noise=0.1, augment_p=0.7),
)


def main(mode: str, num: int) -> None:
    world = World()
    share = BATCH // world.size
    mine = np.arange(world.rank * share, (world.rank + 1) * share)
    z_d, z_g, seeds = map(torch.from_numpy, LatentSampler(0, Z_DIM)(1000 + mine))
    images = torch.randint(0, 256, (share, RESOLUTION, RESOLUTION, 3), generator=torch.Generator().manual_seed(1))
    batch = StepBatch(images.to(torch.uint8), torch.from_numpy(mine % 3), z_d.double(), z_g.double(), seeds)
    for passes, now in zip((1, 2, 1), PENALTIES[:num]):
        more = {"augment": "flip", "feature_matching": 3.0} if now.augment_p else {}
        found = {}
        for compile in ("off", mode):
            torch._dynamo.reset()
            given = {**more, "compile": compile, "backend": "aot_eager"}
            found[compile] = steps(world, batch, passes, "rpgan", "", now, {}, given)
        assert found["off"].keys() == found[mode].keys()
        for name, expected in found["off"].items():
            scale = expected.abs().max().item() or 1.0
            error = (found[mode][name] - expected).abs().max().item() / scale
            assert error < 1e-10, (mode, now, name, error)
    world.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
