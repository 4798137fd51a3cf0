"""Plan a comparison: which trainings it consists of, and whether their numbers can be compared at all."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from distgan.config.load import load
from distgan.config.schema import Config
from distgan.errors import ConfigError
from distgan.storage.home import user_path

OWN = ("run.dir", "run.resume", "train.seed")  # settings that the comparison itself gives each training
BUDGET = ("train.images", "train.max_minutes")
NOT_MEASURED = ("every", "best_metric")  # of the group `eval`: they do not change what an evaluation gives
IMAGES = ("resolution", "channels", "dtype", "range", "alpha", "background", "crop", "resize_filter", "image_key")


@dataclass(frozen=True)
class Training:
    """One training: a recipe with one seed.

    Attributes:
        recipe: The recipe's name.
        config_path, overrides: What is trained, without the settings that the comparison gives.
        config: The same, with them.
    """

    recipe: str
    seed: int
    config_path: str
    overrides: tuple[str, ...]
    config: Config
    folder: Path

    @property
    def arguments(self) -> list[str]:
        """Return what follows `distgan train`."""
        return [self.config_path, *self.overrides, *_own(self.folder, self.seed)]


def make_plan(words: Sequence[str], out: str, seeds: int) -> list[Training]:
    """Return the trainings of a comparison, seed by seed, so that recipes can be compared after the first one.

    Args:
        words: Config files, and settings `key=value` of all of them.
        out: Folder of the comparison.
        seeds: Number of trainings of each recipe.

    Raises:
        ConfigError: A setting is wrong, or the recipes have other budgets, images or evaluations, which would not be a
            comparison.
    """
    paths = [word for word in words if "=" not in word or user_path(word).exists()]
    overrides = tuple(word for word in words if word not in paths)
    if not paths:
        raise ConfigError("name the configs to compare, such as configs/a.yaml configs/b.yaml")
    if seeds < 1:
        raise ConfigError(f"--seeds {seeds}: at least 1")
    for key in OWN:
        if given := next((word for word in overrides if word.partition("=")[0] == key), None):
            raise ConfigError(f"{given}: `compare` sets it for each training; --out and --seeds say where and how many")
    names = _names(paths)
    trainings = []
    for seed in range(seeds):
        for name, path in zip(names, paths):
            folder = user_path(out) / name / f"seed-{seed}"
            config = load(path, [*overrides, *_own(folder, seed)])
            trainings.append(Training(name, seed, path, overrides, config, folder))
    _require_comparable(trainings[: len(paths)])
    return trainings


def _own(folder: Path, seed: int) -> list[str]:
    return [f"run.dir={folder}", "run.resume=auto", f"train.seed={seed}"]


def _names(paths: Sequence[str]) -> list[str]:
    """Return a folder's name for each recipe. Raises ConfigError where two would be called alike."""
    names = [user_path(path).resolve().stem for path in paths]
    for name in names:
        alike = [path for path, other in zip(paths, names) if other == name]
        if len(alike) > 1:
            raise ConfigError(f"{' and '.join(alike)} are both called {name}: rename one of the files")
    return names


def _require_comparable(trainings: Sequence[Training]) -> None:
    """Raise ConfigError for what would make the numbers of two recipes different things."""
    first = trainings[0]
    for other in trainings[1:]:
        for key, value in _shared(first.config).items():
            theirs = _shared(other.config)[key]
            if theirs != value:
                raise ConfigError(
                    f"{key} is {_text(value)} in {first.config_path} and {_text(theirs)} in {other.config_path}: "
                    f"their numbers would not compare; give all the same, as {key}={_text(value)}"
                )


def _shared(config: Config) -> dict[str, object]:
    """Return the settings that all recipes must share: budget, images, and what an evaluation measures."""
    shared: dict[str, object] = {key: getattr(config.train, key.partition(".")[2]) for key in BUDGET}
    shared |= {f"data.{key}": getattr(config.data, key) for key in IMAGES}
    shared |= {f"eval.{key}": value for key, value in asdict(config.eval).items() if key not in NOT_MEASURED}
    if not config.eval.reference:
        shared["data.shards"] = config.data.shards
    return shared


def _text(value: object) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    return str(value) if value not in ("", None) else "empty"
