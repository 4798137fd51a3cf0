"""The parts that settings choose by name, and the settings that a part has of its own.

The parts themselves are in the dictionaries that `PARTS` names; most of these import torch, which a config does not
wait for. So the names are here once more, with each part's own settings (a dataclass, or None): a test compares. A
plugin's parts are added to both, by `plugins`.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from distgan.config.model_schema import FAMILIES
from distgan.data import host_transforms
from distgan.metrics.names import EVAL_METRICS
from distgan.transforms import degrade_spec

Own = dict[str, type | None]  # name -> dataclass of a part's own settings, None for one without any

AUGMENTATIONS: Own = dict.fromkeys(("flip", "diffaugment", "ada", "ada-cutout"))
EXTRACTORS: Own = dict.fromkeys(("inception", "dinov2_vitl14", "efficientnet_lite0", "toy"))
LOSSES: Own = dict.fromkeys(("minimax", "non_saturating", "lsgan", "hinge", "wasserstein", "rpgan"))
OPTIMIZERS: Own = dict.fromkeys(("adam", "adamw", "sgd", "rmsprop"))
SCHEDULES: Own = dict.fromkeys(("cosine", "linear"))
TRACKERS: Own = {}

# Kind of part -> what there is of it; a setting names a kind by `key(choices=...)`.
CHOICES: dict[str, Mapping[str, Any]] = {
    "augmentations": AUGMENTATIONS,
    "degradations": degrade_spec.KINDS,
    "extractors": EXTRACTORS,
    "families": FAMILIES,
    "host transforms": host_transforms.TRANSFORMS,
    "losses": LOSSES,
    "metrics": EVAL_METRICS,
    "optimizers": OPTIMIZERS,
    "schedules": SCHEDULES,
    "trackers": TRACKERS,
}
# Group of settings that a part has of its own -> the setting that names the part.
CHOOSERS = {
    "model.G": "model.family",
    "model.D": "model.family",
    "loss.options": "loss.name",
    "optim.G.options": "optim.G.name",
    "optim.D.options": "optim.D.name",
}
_OWN = {
    "loss.options": LOSSES,
    "optim.G.options": OPTIMIZERS,
    "optim.D.options": OPTIMIZERS,
}


def names(choices: str) -> Collection[str]:
    """Return the values of a setting with these choices: "losses", or "best metrics" of those with a direction.

    With "none or ..." or "empty or ..." in front, "none" or "" is one too.
    """
    kind = choices.rpartition(" or ")[2]
    if kind == "best metrics":
        found = [name for name, direction in EVAL_METRICS.items() if direction]
    else:
        found = list(CHOICES[kind])
    first = {"none": ["none"], "empty": [""]}.get(choices.partition(" or ")[0], [])
    return [*first, *found]


def own_schema(group: str, part: str) -> type | None:
    """Return the dataclass of the settings that a part has of its own; None without any, or for an unknown part."""
    if group in ("model.G", "model.D"):
        schemas = FAMILIES.get(part)
        return schemas["GD".index(group[-1])] if schemas else None
    return _OWN[group].get(part)


def own_schemas() -> Iterator[tuple[str, str, type]]:
    """Yield every group with settings of a part's own: the group, the part, and the dataclass; part by part."""
    for chooser in dict.fromkeys(CHOOSERS.values()):
        groups = [group for group, of in CHOOSERS.items() if of == chooser]
        for part in FAMILIES if chooser == "model.family" else _OWN[groups[0]]:
            for group in groups:
                if (schema := own_schema(group, part)) is not None:
                    yield group, part, schema


def group_of(name: str) -> str:
    """Return the group of a part's own settings that a dotted name is in; "" for a setting of the program."""
    return next((group for group in CHOOSERS if name.startswith(f"{group}.")), "")
