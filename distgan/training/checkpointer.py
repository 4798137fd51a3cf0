"""Save the complete training state in a checkpoint, and load it."""

import logging
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from distgan.config.load import from_dict
from distgan.config.records import changes, for_records, to_dict
from distgan.config.schema import Config, Optimizer, shapes_nets
from distgan.data.dataset import Dataset
from distgan.data.shuffle import ShuffleLayout
from distgan.distributed.process_group import World
from distgan.errors import ConfigError, DataError
from distgan.models import MODELS, networks
from distgan.storage import checkpoint, checkpoint_folder
from distgan.storage.saved_state import SavedState, require_resumable
from distgan.training import factory
from distgan.training.schedulers import Schedulers
from distgan.training.training_stats import TrainingStats

log = logging.getLogger("distgan")


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


class Checkpointer:
    """The objects of a run by name, and its counts."""

    def __init__(
        self,
        config: Config,
        world: World,
        micro_batch: int,
        layout: ShuffleLayout,
        dataset: Dataset,
        nets: dict[str, nn.Module],
        optimizers: dict[str, torch.optim.Optimizer],
        stats: TrainingStats,
        schedulers: Schedulers,
    ) -> None:
        """`optimizers` has the names of the networks they train."""
        self.state, self.layout = TrainState(), layout
        self._config, self._world, self._micro_batch = config, world, micro_batch
        self._num_classes, self._fingerprint = dataset.num_classes, dataset.fingerprint
        self._class_names = dataset.class_names
        self._unseen = [label for label, count in enumerate(dataset.class_counts) if not count]
        self._nets, self._optimizers, self._stats, self._schedulers = nets, optimizers, stats, schedulers

    def save(self, folder: Path) -> Path:
        """Write a checkpoint and delete old ones; called by all ranks. Of what a rank has alone, only sums are kept."""
        stats, controls = self._stats.state(), self._schedulers.state()
        counts = vars(self.state) | {"num_replaced": self._world.all_gather_object(self.state.num_replaced)}
        self._world.barrier()  # the lines of metrics and audit that this checkpoint counts on are written
        tensors = {name: net.state_dict() for name, net in self._nets.items()}
        for name, optimizer in self._optimizers.items():
            tensors[f"opt_{name}"] = checkpoint.optimizer_tensors(optimizer, self._nets[name])
        state = {
            **counts,
            "fingerprint": self._fingerprint,
            "layout": vars(self.layout),
            "num_classes": self._num_classes,
            "unseen": self._unseen,
            "class_names": self._class_names,
            "revision": MODELS[self._config.model.family].revision,
            "stats": stats,
            "controls": controls,
            **self.conditions(),
            "config": to_dict(for_records(self._config)),
        }
        keep = self._config.checkpoint

        def write() -> Path:
            path = checkpoint.save(folder, self.state.images, tensors, state)
            checkpoint_folder.prune(folder, keep.keep_last, keep.keep_every)
            return path

        return self._world.run_on_main(write)

    def load(self, path: Path) -> SavedState:
        """Load a checkpoint, on all ranks; returns its state. The W&B run stays as it is.

        Raises:
            DataError: It is corrupt, or was trained on other shards.
            ConfigError: It is of other networks or settings.
        """
        tensors, state = self._world.run_on_all(lambda: self._read(path))
        for name, net in self._nets.items():
            net.load_state_dict(tensors[name])
        for name, optimizer in self._optimizers.items():
            settings = getattr(self._config.optim, name)
            if f"opt_{name}" not in tensors:
                raise DataError(f"{path}: opt_{name}.safetensors is missing")
            load_optimizer(name, settings, optimizer, self._nets[name], tensors[f"opt_{name}"])
        self._stats.load_state(state["stats"])
        self._schedulers.load_state(state["controls"])
        for name in vars(self.state).keys() - {"num_replaced", "wandb_id"}:
            setattr(self.state, name, state.get(name, getattr(self.state, name)))
        counts = state["num_replaced"]
        counts = counts if len(counts) == self._world.size else [sum(counts)] + [0] * self._world.size
        self.state.num_replaced = counts[self._world.rank]
        self.layout = ShuffleLayout(**state["layout"])
        # A class counts as seen once any data of the run had images of it. Older checkpoints do not say.
        before = state.get("unseen", self._unseen if state["fingerprint"] == self._fingerprint else [])
        self._unseen = sorted(set(self._unseen).intersection(before))
        return state

    def conditions(self) -> dict[str, object]:
        """Return the conditions that may change the last bits of a sum."""
        return {
            "ranks": self._world.size,
            "micro-batch": self._micro_batch,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "compile": self._config.train.compile,
        }

    def _read(self, path: Path) -> tuple[checkpoint.Tensors, SavedState]:
        try:
            return checkpoint.load(path, lambda state: self._expected(state, path))
        except checkpoint.CorruptCheckpointError as error:
            raise DataError(f"{path}: {error}") from None

    def _expected(self, state: SavedState, path: Path) -> checkpoint.Shapes:
        """Return the shapes of the networks' tensors; raise where the state is not one of this run."""
        check_same_run(self._config, state, self._fingerprint, self._num_classes, path)
        return {name: checkpoint.shapes_of(net.state_dict()) for name, net in self._nets.items()}


def load_optimizer(
    name: str,
    settings: Optimizer,
    optimizer: torch.optim.Optimizer,
    net: nn.Module,
    tensors: dict[str, torch.Tensor],
) -> bool:
    """Load an optimizer's state from a checkpoint; returns whether there was one to load.

    One of another kind, or one that was saved before its first step, starts from zero.
    """
    kept = {key.rpartition("/")[2] for key in tensors}
    if kept == factory.optimizer_slots(settings):
        checkpoint.load_optimizer(optimizer, net, tensors)
        return True
    optimizer.load_state_dict(factory.build_optimizer(settings, net).state_dict())
    if kept:
        log.warning(
            f"warning: the checkpoint has {', '.join(sorted(kept))} of {name}'s optimizer, which optim.{name} does not "
            "use: the optimizer starts from zero"
        )
    return False


def check_same_run(config: Config, state: SavedState, fingerprint: str, num_classes: int, path: Path) -> None:
    """Refuse to resume with other data or with settings that change the training, unless the config allows it; with
    other networks always."""
    require_resumable(state, path)
    if state["fingerprint"] != fingerprint and not config.run.allow_data_change:
        raise DataError(
            "the shards are not those that the checkpoint was trained on; put them back, or set "
            "run.allow_data_change=true to continue with these"
        )
    _, refused = changes(from_dict(state["config"], path), config)
    if misfits := [name for name in refused if shapes_nets(name)]:
        listed = "; ".join(f"{name} was {refused[name][0]!r}, is {refused[name][1]!r}" for name in misfits)
        raise ConfigError(f"the checkpoint is of other networks: {listed}. Put them back, or choose another run.dir")
    if state["num_classes"] != num_classes:
        had, has = (f"{num} classes" if num else "no classes" for num in (state["num_classes"], num_classes))
        raise ConfigError(
            f"the checkpoint is of other networks: it knows {had}, these shards give {has} (data.classes, "
            "model.conditional). Put back the shards with those classes, set data.classes where it is larger than "
            "what they hold, or choose another run.dir and start from scratch"
        )
    networks.require_revision(config.model.family, state.get("revision", 1), path)
    if config.run.allow_config_change:
        return
    if refused:
        listed = "; ".join(f"{key} was {old!r}, is {new!r}" for key, (old, new) in refused.items())
        raise ConfigError(
            f"the checkpoint was trained with other settings: {listed}. Put them back, choose another run.dir, or "
            "set run.allow_config_change=true"
        )


def changed_settings(config: Config, state: SavedState, fingerprint: str) -> dict[str, tuple]:
    """Return the settings that differ from those of the checkpoint that a run resumes from, as key -> (old, new).

    Settings of a single start (run.*) do not count. Other data may be at the same address: the fingerprint counts.
    """
    free_and_refused = changes(from_dict(state["config"]), for_records(config))
    changed = {key: values for part in free_and_refused for key, values in part.items() if not key.startswith("run.")}
    return changed | ({} if state["fingerprint"] == fingerprint else {"data": (state["fingerprint"], fingerprint)})


def difference_lines(changed: dict[str, tuple]) -> list[str]:
    """Format what `changed_settings` returned."""
    return [f"changed since the checkpoint: {key}: {old!r} -> {new!r}" for key, (old, new) in changed.items()]
