"""One rank of test_step_ranks: the gradients of one D and one G step for every loss and penalty, in float64.

Usage: ranks_gradients.py OUT PASSES; under RANK and WORLD_SIZE where there are several.
"""

import sys

import numpy as np
import torch
from safetensors.torch import save_file

from distgan.losses import LOSSES
from distgan.models import MODELS
from distgan.step import DeviceBatch, GanStep, Noise
from distgan.world import World

BATCH, RESOLUTION, Z_DIM, CLASSES = 8, 16, 6, 3
PENALTIES = {"none": (0, 0, 0), "r1": (2.0, 0, 0), "r2": (0, 3.0, 0), "r1+r2": (2.0, 3.0, 0), "gp": (0, 0, 10.0)}


class Recorder:
    """An optimizer that keeps the gradients instead of using them."""

    def __init__(self, net: torch.nn.Module):
        self.net, self.gradients = net, {}

    def step(self) -> None:
        self.gradients = {name: p.grad.clone() for name, p in self.net.named_parameters()}

    def zero_grad(self, set_to_none: bool) -> None:
        self.net.zero_grad(set_to_none)


def count_reduced(counter: list[int], bucket: torch.distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """A DDP communication hook that notes how many numbers are reduced."""
    counter[0] += bucket.buffer().numel()
    work = torch.distributed.all_reduce(bucket.buffer(), async_op=True).get_future()
    return work.then(lambda done: done.value()[0] / torch.distributed.get_world_size())


def main(out: str, passes: int) -> None:
    world = World()
    share = BATCH // world.size
    mine = np.arange(world.rank * share, (world.rank + 1) * share)
    images = torch.randint(0, 256, (BATCH, RESOLUTION, RESOLUTION, 3), generator=torch.Generator().manual_seed(1))
    drawn = [torch.from_numpy(array).double() for array in Noise(0, Z_DIM)(1000 + mine)]
    batch = DeviceBatch(images[mine].to(torch.uint8), torch.from_numpy(mine % CLASSES), *drawn)
    results = {}
    for loss in LOSSES:
        torch.manual_seed(0)
        small = {"width": 4, "max_width": 8, "norm": "none"}
        G = MODELS["dcgan"].generator(RESOLUTION, Z_DIM, CLASSES, **small, embedding=3).double()
        D = MODELS["dcgan"].discriminator(RESOLUTION, CLASSES, **small).double()
        sizes = {net: sum(p.numel() for p in module.parameters()) for net, module in (("G", G), ("D", D))}
        step = GanStep(world, G, D, loss, passes=passes, dtype=torch.float64)
        step.settle(share // passes, RESOLUTION, Z_DIM, CLASSES)
        counters = {"D": [0], "G": [0]}
        if world.size > 1:
            step.d_loss.register_comm_hook(counters["D"], count_reduced)
            step.g_loss.register_comm_hook(counters["G"], count_reduced)
        for penalty, weights in PENALTIES.items():
            recorder = Recorder(D)
            step.d_step(batch, recorder, *weights)
            results[f"{loss}/{penalty}/report"] = torch.tensor(list(step.meter.flush().values()))
            results |= {f"{loss}/{penalty}/D.{name}": g for name, g in recorder.gradients.items()}
        recorder = Recorder(G)
        step.g_step(batch, recorder)
        results |= {f"{loss}/G/G.{name}": g for name, g in recorder.gradients.items()}
        assert all(p.grad is None for p in D.parameters()), "G's step left gradients in D"
        if world.size > 1:
            assert counters["D"][0] == len(PENALTIES) * sizes["D"], (loss, counters, sizes)
            assert counters["G"][0] == sizes["G"], (loss, counters, sizes)
    save_file(results, f"{out}.{world.rank}")
    world.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
