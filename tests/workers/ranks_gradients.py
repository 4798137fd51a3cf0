"""One rank of test_step_ranks: the gradients of one D and one G step for every loss and penalty, in float64.

Usage: ranks_gradients.py OUT PASSES all|some; under RANK and WORLD_SIZE where there are several. `some` are all
penalties with two losses, and one with each of the others.
"""

import dataclasses
import functools
import sys

import numpy as np
import torch
from safetensors.torch import save_file

from distgan.condition_spec import VectorInput
from distgan.distributed.process_group import World
from distgan.image_spec import ImageSpec, square
from distgan.losses.adversarial import LOSSES
from distgan.models import MODELS
from distgan.models.epilogue import Epilogue
from distgan.training.gan_step import GanStep
from distgan.training.step_inputs import ImageToImageOptions, LatentSampler, StepBatch, StepHyperparams, StepOptions
from distgan.transforms.degrade_spec import parse
from distgan.transforms.image_values import TORCH

BATCH, RESOLUTION, Z_DIM, CLASSES = 8, 16, 6, 3
SMALL = {  # settings of G and of D
    "dcgan": 2 * ({"base_channels": 4, "max_channels": 8, "norm": "none"},),
    "r3gan": 2 * ({"widths": [4], "blocks": 1, "group_width": 2},),
    "resnet": ({"base_channels": 4, "norm": "none"}, {"base_channels": 4, "attention": 8}),
    "stylegan2": (
        {"channel_base": 32, "max_channels": 8, "w_dim": 5, "mapping_layers": 2},
        {"channel_base": 32, "max_channels": 8, "mapping_layers": 2},
    ),
    "restore": (
        {"base_channels": 4, "max_channels": 8, "norm": "none", "skips": True, "residual": True, "noise": True},
        {"base_channels": 4, "max_channels": 8, "norm": "none", "paired": True, "patches": 4},
    ),
}
RECIPE = [{"blur": [0.3, 1]}, {"shot": [10, 90]}, {"jpeg": [20, 80], "p": 0.5}, {"strokes": [0.05, 0.1]}]
PLAIN = square(RESOLUTION)
OTHER_IMAGES = {
    "dcgan": ImageSpec(24, 16, 4, alpha=True),
    "resnet": ImageSpec(16, 24, 1, "uint16"),
    "r3gan": ImageSpec(12, 12, 5, "float32", -3, 2),
}
PENALTIES = {"none": (0, 0, 0), "r1": (2.0, 0, 0), "r2": (0, 3.0, 0), "r1+r2": (2.0, 3.0, 0), "gp": (0, 0, 10.0)}


class Recorder:
    """An optimizer that keeps the gradients instead of using them."""

    def __init__(self, net: torch.nn.Module):
        self.net, self.gradients, self.defaults = net, {}, {"fused": True}

    def step(self) -> None:
        self.gradients = {
            name: p.grad.clone(memory_format=torch.contiguous_format) for name, p in self.net.named_parameters()
        }

    def zero_grad(self, set_to_none: bool) -> None:
        self.net.zero_grad(set_to_none)


def count_reduced(counter: list[int], bucket: torch.distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """A DDP communication hook that notes how many numbers are reduced."""
    counter[0] += bucket.buffer().numel()
    work = torch.distributed.all_reduce(bucket.buffer(), async_op=True).get_future()
    return work.then(lambda done: done.value()[0] / torch.distributed.get_world_size())


def steps(
    world: World,
    batch: StepBatch,
    passes: int,
    loss: str,
    name: str,
    now: StepHyperparams,
    epilogue: dict,
    more: dict,
    family: str = "dcgan",
    memory_format: torch.memory_format = torch.contiguous_format,
    image: ImageSpec = PLAIN,
    labeled: int | VectorInput = CLASSES,
) -> dict[str, torch.Tensor]:
    """What D's and G's step find, by name."""
    torch.manual_seed(0)
    g, d = SMALL[family]
    g = g if family == "stylegan2" else {**g, "embed_dim": 3}
    G = MODELS[family].generator(image, Z_DIM, labeled, **g).double()
    for key, weight in G.named_parameters():
        if key.endswith("noise_strength"):
            weight.data.fill_(0.3)
    D = MODELS[family].discriminator(image, labeled, **d, epilogue=functools.partial(Epilogue, **epilogue)).double()
    G, D = (net.to(memory_format=memory_format) for net in (G, D))
    step = GanStep(world, G, D, StepOptions(loss, image, accumulation_steps=passes, dtype=torch.float64, **more))
    step.warm_up_ddp_buckets(len(batch.images) // passes, image, Z_DIM, labeled)
    sent = {"D": [0], "G": [0]}
    if world.size > 1:
        step.d_loss.register_comm_hook(sent["D"], count_reduced)
        step.g_loss.register_comm_hook(sent["G"], count_reduced)
    of_d, of_g = Recorder(D), Recorder(G)
    step.d_step(batch, of_d, now)
    step.g_step(batch, of_g, now)
    assert all(p.grad is None for p in D.parameters()), "G's step left gradients in D"
    if world.size > 1:
        for net, module in (("D", D), ("G", G)):
            assert sent[net][0] == sum(p.numel() for p in module.parameters()), (loss, name, net, sent)
    found = {f"{loss}/{name}/diversity": torch.tensor(step.diversity())} if passes == 1 else {}  # it is of one pass
    found[f"{loss}/{name}/path length"] = step.mean_path_length
    found[f"{loss}/{name}/report"] = torch.tensor(list(step.stats.flush().values()))
    for net, recorder in (("D", of_d), ("G", of_g)):
        found |= {f"{loss}/{name}/{net}.{key}": gradient for key, gradient in recorder.gradients.items()}
    return found


def main(out: str, passes: int, pairs: str) -> None:
    world = World()
    share = BATCH // world.size
    mine = np.arange(world.rank * share, (world.rank + 1) * share)
    images = torch.randint(0, 256, (BATCH, RESOLUTION, RESOLUTION, 3), generator=torch.Generator().manual_seed(1))
    z_d, z_g, seeds = map(torch.from_numpy, LatentSampler(0, Z_DIM)(1000 + mine))
    batch = StepBatch(images[mine].to(torch.uint8), torch.from_numpy(mine % CLASSES), z_d.double(), z_g.double(), seeds)
    results = {}
    for i, loss in enumerate(LOSSES):
        for j, (penalty, weights) in enumerate(PENALTIES.items()):
            if pairs == "some" and loss not in ("hinge", "rpgan") and j != i % len(PENALTIES):
                continue
            results |= steps(world, batch, passes, loss, penalty, StepHyperparams(*weights), {}, {})
    everything = StepHyperparams(r1=2.0, instance_noise=0.2, augment_p=0.7)
    for minibatch in ("stddev", "discrimination"):
        epilogue = {"minibatch": minibatch, "group": 2, "dropout": 0.3}
        more = {"feature_matching": 3.0, "group": 2, "augment": "ada", "flip": True, "label_smoothing": 0.1}
        results |= steps(world, batch, passes, "non_saturating", minibatch, everything, epilogue, more)
    for family in ("r3gan", "resnet"):
        for name, memory_format in ((family, torch.contiguous_format), (f"{family} NHWC", torch.channels_last)):
            now = StepHyperparams(r1=2.0, r2=3.0)
            results |= steps(world, batch, passes, "rpgan", name, now, {}, {}, family, memory_format)
    for family, image in OTHER_IMAGES.items():
        values = torch.rand(BATCH, *image.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        stored = (image.low + values[mine] * (image.high - image.low)).to(TORCH[image.dtype])
        of_image = dataclasses.replace(batch, images=stored)
        now, more = StepHyperparams(r1=2.0, r2=3.0, augment_p=0.7), {"augment": "ada", "flip": True}
        results |= steps(
            world, of_image, passes, "rpgan", f"{family} of {image.size}", now, {}, more, family, image=image
        )
    vectors = torch.randn(BATCH, 5, generator=torch.Generator().manual_seed(1))
    of_conditions = dataclasses.replace(batch, labels=vectors[mine])
    for family in ("dcgan", "r3gan", "resnet"):
        now = StepHyperparams(r1=2.0, r2=3.0)
        name = f"{family} of conditions"
        results |= steps(world, of_conditions, passes, "rpgan", name, now, {}, {}, family, labeled=VectorInput(5, 5.0))
    for minibatch in ("none", "stddev"):
        now = StepHyperparams(r1=2.0, path_length=8.0, path_length_interval=4)
        epilogue, name = {"minibatch": minibatch, "group": 2}, f"stylegan2, {minibatch}"
        results |= steps(world, batch, passes, "non_saturating", name, now, epilogue, {}, "stylegan2")
    more = {"finite_sigma": 0.1, "augment": "diffaugment", "flip": True}
    now = StepHyperparams(r1=2.0, r2=3.0, instance_noise=0.2, augment_p=0.7)
    results |= steps(world, batch, passes, "non_saturating", "finite", now, {"dropout": 0.3}, more)
    restoring = ImageToImageOptions(parse(RECIPE, square(RESOLUTION)), "charbonnier", 10.0, conditional_D=True)
    more = {"image_to_image": restoring, "feature_matching": 3.0, "augment": "ada", "flip": True}
    for loss in ("non_saturating", "rpgan"):
        now = StepHyperparams(r1=2.0, gp=1.0, instance_noise=0.2, augment_p=0.7)
        results |= steps(world, batch, passes, loss, "restore", now, {"dropout": 0.3}, more, "restore")
    save_file(results, f"{out}.{world.rank}")
    world.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
