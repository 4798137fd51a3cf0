"""One rank of test_families: every family with every loss takes steps, in float32 and in bf16 by turns.

Usage: ranks_families.py all|some 0|1 (the second: which take bf16); under RANK and WORLD_SIZE. `some` are two losses to
a family, one of them in bf16, and every loss. Exits with an error where ranks end with different weights.
"""

import hashlib
import itertools
import sys

import numpy as np
import torch

from distgan.distributed.process_group import World
from distgan.image_spec import square
from distgan.losses.adversarial import LOSSES
from distgan.models import MODELS
from distgan.training.gan_step import GanStep
from distgan.training.step_inputs import ImageToImageOptions, LatentSampler, StepBatch, StepHyperparams, StepOptions
from distgan.transforms.degrade_spec import Step as Degradation

SMALL = {  # settings of G and of D, and a resolution
    "dcgan": (
        {"base_channels": 4, "max_channels": 8, "norm": "batch", "embed_dim": 3},
        {"base_channels": 4, "max_channels": 8, "norm": "none"},
        16,
    ),
    "r3gan": 2 * ({"widths": [4], "blocks": 1, "group_width": 2},) + (16,),
    "resnet": ({"base_channels": 8, "norm": "conditional"}, {"base_channels": 4}, 16),
    "hourglass": ({"base_channels": 4}, {"base_channels": 4}, 32),
    "stylegan2": (
        {"channel_base": 32, "max_channels": 8, "w_dim": 6, "mapping_layers": 2},
        {"channel_base": 32, "max_channels": 8, "mapping_layers": 2},
        16,
    ),
    "restore": (
        {
            "base_channels": 4,
            "max_channels": 8,
            "norm": "none",
            "skips": True,
            "residual": False,
            "noise": False,
            "embed_dim": 3,
        },
        {"base_channels": 4, "max_channels": 8, "norm": "none", "paired": True, "patches": 4},
        16,
    ),
}


def digest(net: torch.nn.Module) -> str:
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in net.parameters())).hexdigest()


def main(pairs: str, first: int) -> None:
    world = World()
    for (i, family), (j, loss) in itertools.product(enumerate(SMALL), enumerate(LOSSES)):
        if pairs == "some" and (j - i) % len(LOSSES) > 1:
            continue
        bf16 = (i + j) % 2 == first
        torch.manual_seed(world.rank)  # DDP makes rank 0's weights everybody's
        g, d, resolution = SMALL[family]
        G = MODELS[family].generator(square(resolution), 4, 3, **g)
        D = MODELS[family].discriminator(square(resolution), 3, **d)
        restoring = ImageToImageOptions((Degradation("noise", 10, 30),), "l1", 10.0, conditional_D=True)
        step = GanStep(
            world, G, D, StepOptions(loss, bf16=bf16, image_to_image=restoring if family == "restore" else None)
        )
        step.warm_up_ddp_buckets(4, square(resolution), 4, 3)
        optimizers = [torch.optim.Adam(net.parameters(), 1e-3, fused=True) for net in (G, D)]
        now = StepHyperparams(r1=1.0) if family in ("r3gan", "resnet") else StepHyperparams()
        if family == "stylegan2":
            now = StepHyperparams(r1=1.0, path_length=2.0)
        started = digest(G)
        for number in range(2):
            positions = np.arange(4) + 8 * number + 4 * world.rank
            images = torch.from_numpy(
                np.random.default_rng(positions[0]).integers(0, 256, (4, resolution, resolution, 3))
            )
            drawn = map(torch.from_numpy, LatentSampler(0, 4)(positions))
            batch = StepBatch(images.to(torch.uint8), torch.from_numpy(positions % 3), *drawn)
            step.d_step(batch, optimizers[1], now)
            step.g_step(batch, optimizers[0], now)
        case = f"{family}, {loss}, bf16={bf16}"
        assert step.stats.flush()["Optim/skipped_steps"] == 0, case
        assert digest(G) != started, case
        ends = world.all_gather_object((digest(G), digest(D)))
        assert len(set(ends)) == 1, f"{case}: ranks differ"
    world.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
