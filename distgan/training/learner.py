"""The data set, networks, optimizers, schedules and counters of a run. A checkpoint holds their state."""

import copy
import dataclasses
import functools
import os
import secrets
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import nn

from distgan.condition_spec import VectorInput
from distgan.config.batch_plan import BatchPlan
from distgan.config.schema import Config
from distgan.data.dataset import Dataset, RankInfo
from distgan.distributed.process_group import World
from distgan.inference.condition_examples import ConditionExamples
from distgan.training import ema, factory, memory_format, optimizers
from distgan.training.gan_step import GanStep
from distgan.training.schedulers import OptimizerRates, Schedulers
from distgan.training.step_inputs import StepBatch


@dataclass
class TrainState:
    """The counts of a run; all of it is saved in each checkpoint."""

    images: int = 0  # real images consumed so far: the clock of everything, and the position in the stream
    iterations: int = 0
    num_skipped: int = 0  # steps not taken, since something was not finite
    num_rollbacks: int = 0
    num_replaced: int = 0  # images that took the place of corrupt ones, since the last line, on this rank
    train_sec: float = 0.0
    eval_sec: float = 0.0  # of that, for evaluations
    evaluation_pending: bool = False  # a stop was requested in the middle of it
    wandb_id: str = field(default_factory=lambda: os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4))


@dataclass(frozen=True)
class OwnObjects:
    """A program's own objects in place of what the config describes; None: as the config says. See `distgan.train`."""

    networks: tuple[nn.Module, nn.Module] | None = None
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer] | None = None
    dataset: Dataset | None = None


AS_CONFIGURED = OwnObjects()


class Learner:
    """A GAN and all that its updates depend on, on one rank.

    Args:
        build_nets: Builds G and D from the config and the number of classes, or the kind of conditions. Networks of no
            family are possible too.
        saved_memory_format: Reads the memory format of the checkpoint that the run resumes from; "" for none.
        own: Objects of the caller's.

    Attributes:
        config: The settings, with the range of values that the data set's card says where they have none.
        memory_format: A key of `memory_format.FORMATS`.
        layout: The constants of the data order, which a resumed run takes from its checkpoint.
        label_input: The number of classes, or the kind of the vectors of conditions.
        examples: Conditions of some real images, float32 [N, R]; None without conditions.
        frozen: Names of the weights of G and of D that are not trained.
        unseen: Classes that no data of the run had an image of.
    """

    def __init__(
        self,
        config: Config,
        world: World,
        batch_plan: BatchPlan,
        build_nets: Callable[[Config, int | VectorInput], tuple[nn.Module, nn.Module]] = factory.build_nets,
        saved_memory_format: Callable[[], str] = str,
        own: OwnObjects = AS_CONFIGURED,
    ) -> None:
        self.own = own
        if own.networks is not None:
            build_nets = functools.partial(_given, own.networks)
        self.dataset = own.dataset or factory.open_dataset(
            config, RankInfo(world.rank, world.size, world.all_gather_object)
        )
        config = factory.with_range(
            config, lambda: world.run_on_main(lambda: factory.range_of_data(config, self.dataset))
        )
        self.config, self.world, self.batch_plan = config, world, batch_plan
        self.num_classes, self.label_input = self.dataset.num_classes, self.dataset.label_input
        self.examples = None
        if self.dataset.conditions is not None:
            self.examples = world.run_on_main(self.dataset.example_conditions)
        self.memory_format = memory_format.choose(
            config,
            world,
            saved_memory_format,
            lambda: copy.deepcopy(build_nets(config, self.label_input)),
            batch_plan.micro_batch,
        )
        self.G, self.D = build_nets(config, self.label_input)
        for net in (self.G, self.D):
            memory_format.convert(net, self.memory_format)
        self.G_ema = copy.deepcopy(self.G).eval().requires_grad_(False).to(world.device)
        self.frozen = factory.freeze_weights(config, self.G, self.D)  # before DDP knows the networks
        self.schedulers = Schedulers(config, world)
        options = dataclasses.replace(
            factory.step_options(config, batch_plan), memory_format=memory_format.FORMATS[self.memory_format]
        )
        self.step = GanStep(world, self.G, self.D, options, on_logits=self.schedulers.observe)
        self.opt_G, self.opt_D = own.optimizers or (
            optimizers.build_optimizer(config.optim.G, self.G, "optim.G"),
            optimizers.build_optimizer(config.optim.D, self.D, "optim.D"),
        )
        self.state, self.layout = TrainState(), factory.choose_layout(config, self.dataset)
        self.unseen = [label for label, count in enumerate(self.dataset.class_counts) if not count]
        self.step.warm_up_ddp_buckets(batch_plan.micro_batch, options.image, config.model.z_dim, self.label_input)

    @property
    def condition_examples(self) -> ConditionExamples | None:
        """Return conditions with the values of some real images; None without conditions."""
        if self.dataset.conditions is None or self.examples is None:
            return None
        return ConditionExamples(self.dataset.conditions, self.examples)

    def d_step(self, batch: StepBatch, around_fakes: Callable[[], AbstractContextManager]) -> None:
        """Train D on the next real images; the clock moves past them."""
        before = self.state.images
        set_rates(self.opt_D, self.schedulers.lr_and_betas("D", before))
        self.step.d_step(batch, self.opt_D, self.schedulers.step_hyperparams(before), around_fakes)
        self.state.images += self.batch_plan.batch
        self.schedulers.update(before, self.state.images)

    def g_step(self, batch: StepBatch, images: int) -> None:
        """Train G, with schedules as they were at `images`: where the iteration began (as in StyleGAN2 and R3GAN)."""
        set_rates(self.opt_G, self.schedulers.lr_and_betas("G", images))
        self.step.g_step(batch, self.opt_G, self.schedulers.step_hyperparams(images))

    def average_weights(self, images: int) -> float:
        """Move the average toward G, after the iteration that began at `images`. Returns the share of it that stays."""
        keep = self.schedulers.ema_decay(images, self.state.images - images)
        ema.update(self.G_ema, self.G, keep)
        return keep

    @property
    def nets(self) -> dict[str, nn.Module]:
        """Return the networks by name."""
        return {"G": self.G, "D": self.D, "G_ema": self.G_ema}

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Return the optimizers, by the names of the networks that they train."""
        return {"G": self.opt_G, "D": self.opt_D}

    def progress(self) -> dict[str, int]:
        """Return how far the run is, as status.json has it; a step is one of G, with its D steps."""
        images, step = self.state.images, self.state.iterations
        return {"images": images, "step": step, "total_images": self.config.train.images, "world": self.world.size}

    @property
    def is_done(self) -> bool:
        """Return whether all images of the run are consumed, or all its minutes."""
        return self.state.images >= self.config.train.images or self.is_out_of_time(self.state.train_sec)

    def is_out_of_time(self, train_sec: float) -> bool:
        """Return whether `train_sec` seconds of training reach the limit of the run."""
        return 0 < self.config.train.max_minutes * 60 <= train_sec


def _given(
    networks: tuple[nn.Module, nn.Module], config: Config, label_input: int | VectorInput
) -> tuple[nn.Module, nn.Module]:
    return networks


def set_rates(optimizer: torch.optim.Optimizer, rates: OptimizerRates) -> None:
    """Set an optimizer's learning rate, and its betas if it has them."""
    for group in optimizer.param_groups:
        group["lr"] = rates.lr * group.get("lr_factor", 1.0)
        if "betas" in group:
            group["betas"] = rates.betas
