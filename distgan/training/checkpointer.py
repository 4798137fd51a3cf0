"""Save the complete training state in a checkpoint, and load it."""

import dataclasses
import logging
from pathlib import Path

import torch
from torch import nn

from distgan.condition_spec import Conditions, rows_of
from distgan.config import plugins
from distgan.config.load import from_dict
from distgan.config.records import changes, for_records, to_dict
from distgan.config.schema import Config, Optimizer, shapes_nets
from distgan.data import dataset_card
from distgan.data.dataset import Dataset
from distgan.data.shuffle import ShuffleLayout
from distgan.errors import ConfigError, DataError
from distgan.models import MODELS, networks
from distgan.storage import checkpoint, checkpoint_folder
from distgan.storage.saved_state import SavedState, require_resumable
from distgan.training import optimizers
from distgan.training.learner import Learner

log = logging.getLogger("distgan")

FORMER_CONDITIONS: dict[str, object] = {"memory format": "contiguous"}  # of checkpoints by versions without a choice


AS_A_START = "init.from starts a new run from the weights of this one, while run.resume goes on with it"


def save(learner: Learner, folder: Path) -> Path:
    """Write a checkpoint and delete old ones; called by all ranks. Of what a rank has alone, only sums are kept."""
    config, world, dataset = learner.config, learner.world, learner.dataset
    stats, controls = learner.step.stats.state(), learner.schedulers.state()
    counts = vars(learner.state) | {"num_replaced": world.all_gather_object(learner.state.num_replaced)}
    world.barrier()  # the lines of metrics and audit that this checkpoint counts on are written
    tensors = {name: net.state_dict() for name, net in learner.nets.items()}
    for name, optimizer in learner.optimizers.items():
        tensors[f"opt_{name}"] = checkpoint.optimizer_tensors(optimizer, learner.nets[name])
    state = {
        **counts,
        "fingerprint": dataset.fingerprint,
        "layout": vars(learner.layout),
        "num_classes": learner.num_classes,
        "unseen": learner.unseen,
        "class_names": dataset.class_names,
        "aspect": dataset_card.mean_aspect(dataset.urls) if world.is_main else 0.0,
        **_image_conditions(learner),
        "revision": MODELS[config.model.family].revision,
        "stats": stats,
        "controls": controls,
        **conditions(learner),
        "plugins": plugins.digests(config.plugins),
        "mean_path_length": float(learner.step.mean_path_length),
        "own_networks": learner.own.networks is not None,
        "config": to_dict(for_records(config)),
    }

    def write() -> Path:
        path = checkpoint.save(folder, learner.state.images, tensors, state)
        checkpoint_folder.prune(folder, config.checkpoint.keep_last, config.checkpoint.keep_every)
        return path

    return world.run_on_main(write)


def load(learner: Learner, path: Path) -> SavedState:
    """Load a checkpoint, on all ranks; returns its state. The W&B run stays as it is.

    Raises:
        DataError: It is corrupt, or was trained on other shards.
        ConfigError: It is of other networks or settings.
    """
    tensors, saved = learner.world.run_on_all(lambda: _read(learner, path))
    for name, net in learner.nets.items():
        net.load_state_dict(tensors[name])
    for name, optimizer in learner.optimizers.items():
        settings = getattr(learner.config.optim, name)
        if f"opt_{name}" not in tensors:
            raise DataError(f"{path}: opt_{name}.safetensors is missing")
        if learner.own.optimizers is None:
            load_optimizer(name, settings, optimizer, learner.nets[name], tensors[f"opt_{name}"])
        else:
            checkpoint.load_optimizer(optimizer, learner.nets[name], tensors[f"opt_{name}"])
    _load_conditions(learner, saved)
    learner.step.stats.load_state(saved["stats"])
    learner.schedulers.load_state(saved["controls"])
    learner.step.mean_path_length.fill_(saved.get("mean_path_length", 0.0))
    for name in vars(learner.state).keys() - {"num_replaced", "wandb_id"}:
        setattr(learner.state, name, saved.get(name, getattr(learner.state, name)))
    counts, size = saved["num_replaced"], learner.world.size
    counts = counts if len(counts) == size else [sum(counts)] + [0] * size
    learner.state.num_replaced = counts[learner.world.rank]
    learner.layout = ShuffleLayout(**saved["layout"])
    # A class counts as seen once any data of the run had images of it. Older checkpoints do not say.
    is_same_data = saved["fingerprint"] == learner.dataset.fingerprint
    before = saved.get("unseen", learner.unseen if is_same_data else [])
    learner.unseen = sorted(set(learner.unseen).intersection(before))
    return saved


def conditions(learner: Learner) -> dict[str, object]:
    """Return the conditions that may change the last bits of a sum."""
    return {
        "ranks": learner.world.size,
        "micro-batch": learner.batch_plan.micro_batch,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "compile": learner.config.train.compile,
        "memory format": learner.memory_format,
    }


def _read(learner: Learner, path: Path) -> tuple[checkpoint.Tensors, SavedState]:
    def expected(saved: SavedState) -> checkpoint.Shapes:  # once the state is known to be one of this run
        check_same_run(learner.config, saved, learner.dataset, path)
        return {name: checkpoint.shapes_of(net.state_dict()) for name, net in learner.nets.items()}

    try:
        return checkpoint.load(path, expected)
    except checkpoint.CorruptCheckpointError as error:
        raise DataError(f"{path}: {error}") from None


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
    if kept == optimizers.optimizer_slots(settings, net):
        checkpoint.load_optimizer(optimizer, net, tensors)
        return True
    optimizer.load_state_dict(optimizers.build_optimizer(settings, net, f"optim.{name}").state_dict())
    if kept:
        log.warning(
            f"warning: the checkpoint has {', '.join(sorted(kept))} of {name}'s optimizer, which optim.{name} does not "
            "use: the optimizer starts from zero"
        )
    return False


def _image_conditions(learner: Learner) -> dict[str, object]:
    """Return what a generator must know of the conditions of images; nothing without conditions."""
    conditions, examples = learner.dataset.conditions, learner.examples
    if conditions is None or examples is None:
        return {}
    return {"conditions": [dataclasses.asdict(one) for one in conditions.fields], "examples": rows_of(examples)}


def _load_conditions(learner: Learner, saved: SavedState) -> None:
    """Take the statistics of conditions with which the networks were trained, which other data may not have."""
    now = learner.dataset.conditions
    if now is not None:
        learner.dataset.conditions = Conditions(
            [
                dataclasses.replace(before, may_be_unknown=before.may_be_unknown or one.may_be_unknown)
                for before, one in zip(saved["conditions"], now.fields)
            ]
        )


def check_same_run(config: Config, state: SavedState, dataset: Dataset, path: Path) -> None:
    """Refuse to resume with other data or with settings that change the training, unless the config allows it; with
    other networks always."""
    require_resumable(state, path)
    if state["fingerprint"] != dataset.fingerprint and not config.run.allow_data_change:
        raise DataError(
            "the shards are not those that the checkpoint was trained on; put them back, or set "
            "run.allow_data_change=true to continue with these"
        )
    _, refused = changes(from_dict(state["config"], path), config)
    if misfits := [name for name in refused if shapes_nets(name)]:
        listed = "; ".join(f"{name} was {refused[name][0]!r}, is {refused[name][1]!r}" for name in misfits)
        raise ConfigError(
            f"the checkpoint is of other networks: {listed}. Put them back, or choose another run.dir; {AS_A_START}"
        )
    fields = [] if dataset.conditions is None else dataset.conditions.fields
    before, now = ([one.described_fully for one in each] for each in (state.get("conditions", []), fields))
    if before != now:
        differ = next(i for i in range(1 + len(before)) if before[i : i + 1] != now[i : i + 1])
        had, has = ((each[differ : differ + 1] or ["nothing"])[0] for each in (before, now))
        raise ConfigError(
            f"the checkpoint is of other networks: they know {had}, these shards give {has} (data.condition). Put back "
            f"the shards with those conditions, or choose another run.dir and start from scratch; {AS_A_START}"
        )
    if state["num_classes"] != dataset.num_classes:
        had, has = (f"{num} classes" if num else "no classes" for num in (state["num_classes"], dataset.num_classes))
        raise ConfigError(
            f"the checkpoint is of other networks: it knows {had}, these shards give {has} (data.classes, "
            "model.conditional). Put back the shards with those classes, set data.classes where it is larger than "
            f"what they hold, or choose another run.dir and start from scratch; {AS_A_START}"
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
