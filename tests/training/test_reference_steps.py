"""Eight steps of D and G as the trainer makes them, against the same recipe in plain torch, in float64.

The reference knows neither DDP nor fused optimizers nor our losses, penalties, schedules and averages: it is what the
R3GAN paper (Huang et al. 2024) and Adam's (Kingma and Ba 2015) write down.
"""

import copy
import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from distgan.config.schema import Config, Ema, Loss, Optim, Optimizer, Train
from distgan.distributed.process_group import World
from distgan.image_spec import square
from distgan.models import r3gan
from distgan.training import ema
from distgan.training.gan_step import GanStep
from distgan.training.learner import set_rates
from distgan.training.optimizers import build_optimizer
from distgan.training.schedulers import Schedulers
from distgan.training.step_inputs import LatentSampler, StepBatch, StepOptions

BATCH, STEPS, CLASSES, Z_DIM, RAMP = 8, 8, 3, 6, 48  # the last two steps come after the ramp
GAMMA, LR, BETA2, HALF_LIFE = (2.0, 0.2), (2e-3, 5e-4), (0.9, 0.99), (0.0, 100.0)


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    own = {"widths": [8], "blocks": 1, "group_width": 2}
    G = r3gan.Generator(square(16), Z_DIM, CLASSES, embed_dim=3, **own)
    D = r3gan.Discriminator(square(16), CLASSES, **own)
    for block in (module for net in (G, D) for module in net.modules() if isinstance(module, r3gan.Block)):
        nn.init.normal_(block.project.weight, std=0.1)  # so that every weight has a gradient from the first step on
    return G.double(), D.double()


def batch_at(images: int) -> StepBatch:
    at = np.arange(images, images + BATCH)
    pixels = np.random.default_rng(images).integers(0, 256, (BATCH, 16, 16, 3), dtype=np.uint8)
    z_d, z_g, seeds = map(torch.from_numpy, LatentSampler(0, Z_DIM)(at))
    return StepBatch(torch.from_numpy(pixels), torch.from_numpy(at % CLASSES), z_d.double(), z_g.double(), seeds)


def ours() -> tuple[nn.Module, nn.Module, nn.Module]:
    G, D = networks()
    average = copy.deepcopy(G)
    settings = Optimizer(lr=list(LR), betas=(0.0, 0.99), beta2=list(BETA2))
    config = Config(
        loss=Loss(name="rpgan", r1=list(GAMMA), r2=list(GAMMA)),
        optim=Optim(G=settings, D=settings),
        ema=Ema(half_life=list(HALF_LIFE), ramp_up=0),
        train=Train(batch=BATCH, schedule_images=RAMP, schedule_shape="cosine"),
    )
    world = World()
    controls, step = Schedulers(config, world), GanStep(world, G, D, StepOptions("rpgan", dtype=torch.float64))
    opt_G, opt_D = (build_optimizer(settings, net) for net in (G, D))
    for images in range(0, STEPS * BATCH, BATCH):
        batch, now = batch_at(images), controls.step_hyperparams(images)
        set_rates(opt_D, controls.lr_and_betas("D", images))
        step.d_step(batch, opt_D, now)
        set_rates(opt_G, controls.lr_and_betas("G", images))
        step.g_step(batch, opt_G, now)
        ema.update(average, G, controls.ema_decay(images, BATCH))
    return G, D, average


class Adam:
    """Algorithm 1, with a beta2 that changes; beta1 is 0."""

    def __init__(self, net: nn.Module) -> None:
        self.weights, self.steps = list(net.parameters()), 0
        self.squares = [torch.zeros_like(weight) for weight in self.weights]

    @torch.no_grad()
    def step(self, gradients: list[Tensor], lr: float, beta2: float) -> None:
        self.steps += 1
        for weight, second, gradient in zip(self.weights, self.squares, gradients):
            second.copy_(beta2 * second + (1 - beta2) * gradient**2)
            weight -= lr * gradient / ((second / (1 - beta2**self.steps)).sqrt() + 1e-8)


def penalty(logits: Tensor, images: Tensor) -> Tensor:
    gradient = torch.autograd.grad(logits.sum(), images, create_graph=True)[0]
    return (gradient**2).sum((1, 2, 3)).mean()


def theirs() -> tuple[nn.Module, nn.Module, nn.Module]:
    G, D = networks()
    average, adam_G, adam_D = copy.deepcopy(G), Adam(G), Adam(D)
    for images in range(0, STEPS * BATCH, BATCH):
        share = (1 - math.cos(math.pi * min(images / RAMP, 1))) / 2
        gamma, lr, beta2, half_life = (a + (b - a) * share for a, b in (GAMMA, LR, BETA2, HALF_LIFE))
        batch = batch_at(images)
        real = batch.images.permute(0, 3, 1, 2).double() / 127.5 - 1

        real.requires_grad_()
        fake = G(batch.z_d, batch.labels).detach().requires_grad_()
        on_real, on_fake = D(real, batch.labels), D(fake, batch.labels)
        loss = softplus(on_fake - on_real).mean() + gamma / 2 * (penalty(on_real, real) + penalty(on_fake, fake))
        adam_D.step(list(torch.autograd.grad(loss, adam_D.weights)), lr, beta2)

        fake = G(batch.z_g, batch.labels)
        loss = softplus(D(real.detach(), batch.labels).detach() - D(fake, batch.labels)).mean()
        adam_G.step(list(torch.autograd.grad(loss, adam_G.weights)), lr, beta2)
        kept = 0.5 ** (BATCH / half_life) if half_life else 0.0
        with torch.no_grad():
            for mean, weight in zip(average.parameters(), G.parameters()):
                mean.copy_(kept * mean + (1 - kept) * weight)
    return G, D, average


def test_eight_steps_are_the_recipe_in_plain_torch() -> None:
    start = dict(zip("GDA", (*networks(), networks()[0])))
    for name, net, reference in zip("GDA", ours(), theirs()):
        for (key, weight), expected, before in zip(
            net.named_parameters(), reference.parameters(), start[name].parameters()
        ):
            moved = (expected - before).abs().max().item()
            assert moved > 1e-4, f"{name}.{key} did not move"
            torch.testing.assert_close(
                weight, expected, rtol=0, atol=1e-14, msg=lambda told, at=f"{name}.{key}": at + told
            )
