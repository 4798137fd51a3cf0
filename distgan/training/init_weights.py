"""Start a run from weights of others (`init.from`): its clock, optimizers, augmentation and data start from zero."""

import json
import logging
from dataclasses import dataclass

from torch import nn

from distgan.config.schema import Config, image_spec
from distgan.data.dataset import Dataset
from distgan.errors import ConfigError
from distgan.inference.weight_source import WeightSource, read_source
from distgan.storage.atomic import replace_file
from distgan.storage.run_dir import RunDir
from distgan.training import transfer
from distgan.training.learner import Learner
from distgan.training.transfer import Fitted, Target

log = logging.getLogger("distgan")

INSTEAD = {"G": ("G", "G_ema"), "D": ("D",), "G_ema": ("G_ema", "G")}  # what a network starts from, the best first


@dataclass(frozen=True)
class Start:
    """What each network of a new run starts from, and where that is from."""

    source: WeightSource
    nets: dict[str, tuple[str, Fitted]]  # by network of the run: the network of the source, and its weights

    def lines(self) -> list[str]:
        """Return the table of what was taken, made and left, in lines for the log."""
        lines = [f"init: weights of {self.source.path}, sha256 {self.source.sha256}"]
        for name, (of, fitted) in self.nets.items():
            lines += fitted.lines(name, of or "the file")
        lines += [f"init: {name} starts new" for name in ("G", "D") if name not in self.nets]
        if self.source.ignored:
            lines.append(f"init: not used of the file: {', '.join(self.source.ignored[:10])}")
        return lines

    def record(self) -> dict[str, object]:
        """Return the origin of the weights as a run keeps it, in init.json."""
        nets = {
            name: {"of": of, "taken": len(fitted.taken), "made": fitted.made, "new": fitted.new, "left": fitted.left}
            for name, (of, fitted) in self.nets.items()
        }
        return {"from": str(self.source.path), "sha256": self.source.sha256, "nets": nets}


def plan(config: Config, dataset: Dataset, G: nn.Module, D: nn.Module) -> Start:
    """Read `init.from`, and fit its weights to the networks of a run, which stay as they are.

    Raises:
        ConfigError: It is of other networks, or the settings of init do not go with it.
        DataError: It is of no known form, corrupt or not finite.
    """
    settings = config.init
    source = read_source(settings.source, config.run.dir)
    fields = [] if dataset.conditions is None else dataset.conditions.fields
    target = Target(
        config.model.family, image_spec(config.data), dataset.num_classes, list(dataset.class_names), list(fields)
    )
    transfer.require_fitting(source, target)
    classes = transfer.match_classes(settings.classes, source, target)
    if "" in source.nets:
        source = _named(source, G, D)
    wanted = settings.parts or [name for name in INSTEAD if any(of in source.nets for of in INSTEAD[name])]
    nets = {}
    for name in wanted:
        of = next((of for of in INSTEAD[name] if of in source.nets), None)
        if of is None:
            raise ConfigError(
                f"init.parts={settings.parts}: {source.path} has no {name}, only {', '.join(source.nets)}: leave "
                f"{name} out, so that it starts new"
            )
        net, is_D = (D, True) if name == "D" else (G, False)
        fitted = transfer.fit(net, source.nets[of], source, target, is_D=is_D, classes=classes)
        nets[name] = (of, fitted)
    return Start(source, nets)


def _named(source: WeightSource, G: nn.Module, D: nn.Module) -> WeightSource:
    """Return a source with a name for its only network: that of the one which has more of its tensors."""
    tensors = source.nets[""]
    common = {
        name: sum(tensors[key].shape == own.shape for key, own in net.state_dict().items() if key in tensors)
        for name, net in (("G", G), ("D", D))
    }
    name = "D" if common["D"] > common["G"] else "G"
    return WeightSource(source.path, {name: tensors}, source.spec, source.sha256, source.ignored)


def start(learner: Learner, folder: RunDir) -> None:
    """Give the networks of a new run the weights that `init.from` names; called by all ranks, and read by rank 0."""
    config, world = learner.config, learner.world

    def read() -> None:
        found = plan(config, learner.dataset, learner.G, learner.D)
        for name in ("G", "D"):
            if name in found.nets:
                transfer.load(learner.nets[name], found.nets[name][1])
        learner.G_ema.load_state_dict(learner.G.state_dict())
        if "G_ema" in found.nets:
            transfer.load(learner.G_ema, found.nets["G_ema"][1])
        for line in found.lines():
            log.info(line)
        if "G_ema" in found.nets and config.ema.ramp_up:
            log.warning(
                f"warning: ema.ramp_up={config.ema.ramp_up:g} makes the average forget the weights that it starts from "
                "in the first steps: set ema.ramp_up=0 to keep them for ema.half_life images"
            )
        replace_file(folder.path / "init.json", json.dumps(found.record(), indent=1) + "\n")

    world.run_on_main(read)
    world.broadcast_weights(*learner.nets.values())
