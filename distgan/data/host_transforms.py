"""Changes of decoded images on the host, before they are brought to the size of a run: `data.transforms`.

None is built in; a plugin adds them. A transform is a function of an image and of numbers that are drawn for the
image's position in the data order, so that ranks, threads and a resume do not change what networks see.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from distgan.errors import ConfigError, DataError
from distgan.storage.untrusted import parse as parse_as

if TYPE_CHECKING:
    import numpy as np  # which a config does not wait for

MIDDLE = 0.5  # each number where none is drawn, as for the real images of an evaluation


class HostTransform(NamedTuple):
    """An entry of `TRANSFORMS`.

    Attributes:
        function: (pixels [h, w, C] of `data.dtype`, draws float32 [num_draws] in [0, 1), options) -> pixels
            [h', w', C] of the same type. It is called by several threads at a time, and leaves its argument as it is.
        num_draws: Numbers that an image needs. Where none are drawn, as in evaluations, each is 0.5.
        options: Dataclass of its own settings, of which the function gets an object; None: it gets None.
    """

    function: "Callable[[np.ndarray, np.ndarray, Any], np.ndarray]"
    num_draws: int = 0
    options: type | None = None


TRANSFORMS: dict[str, HostTransform] = {}


@dataclass(frozen=True)
class TransformStep:
    """A transform of a run, with its options as an object of its dataclass."""

    name: str
    transform: HostTransform
    options: object = None

    @property
    def num_draws(self) -> int:
        return self.transform.num_draws

    @property
    def identity(self) -> str:
        """Return the name, the options, and the sha256 of the plugin that it is of: what its result depends on."""
        plugin = sys.modules.get(self.transform.function.__module__)
        return f"{self.name} {self.options} {getattr(plugin, '__sha256__', '')}"

    def __call__(self, pixels: "np.ndarray", draws: "np.ndarray") -> "np.ndarray":
        """Return the changed image. Raises ConfigError where the transform fails, or returns no such image."""
        height, width, channels = pixels.shape
        where = f"data.transforms: {self.name}, of an image of {width}x{height} pixels"
        try:
            changed = self.transform.function(pixels, draws, self.options)
        except Exception as error:
            raise ConfigError(f"{where}: {type(error).__name__}: {error}") from error
        if not isinstance(changed, type(pixels)) or changed.dtype != pixels.dtype:
            what = changed.dtype if isinstance(changed, type(pixels)) else type(changed).__name__
            raise ConfigError(f"{where}, returned {what}: an array of {pixels.dtype} is needed")
        if changed.ndim != 3 or changed.shape[2] != channels or not changed.size:
            raise ConfigError(f"{where}, returned {list(changed.shape)}: [height, width, {channels}] is needed")
        return changed


def parse(items: Sequence[object]) -> tuple[TransformStep, ...]:
    """Return the transforms that a config lists, as names or as {name: {option: value}}.

    Raises:
        ValueError: An item is wrong; the message says where and what is allowed.
    """
    return tuple(_parse_one(item, f"[{number}]") for number, item in enumerate(items))


def _parse_one(item: object, where: str) -> TransformStep:
    name: object = item
    values: Any = {}
    if isinstance(item, dict) and len(item) == 1:
        name, given = next(iter(item.items()))
        values = {} if given is None else given
    if not isinstance(name, str) or name not in TRANSFORMS:
        there = ", ".join(TRANSFORMS) or "none but those of plugins (--plugin; docs/plugins.md)"
        raise ValueError(f"{where}={item}: a transform is its name, or {{name: {{option: value}}}}; there are {there}")
    transform = TRANSFORMS[name]
    if transform.options is None:
        if values:
            raise ValueError(f"{where}: {name} has no options")
        return TransformStep(name, transform)
    known = [field.name for field in fields(transform.options)]
    if unknown := [one for one in values if one not in known] if isinstance(values, dict) else [values]:
        raise ValueError(f"{where}: {name} has no option {unknown[0]!r}: it has {', '.join(known)}")
    try:
        return TransformStep(name, transform, parse_as(transform.options, values, f"{where}: {name}"))
    except DataError as error:
        raise ValueError(str(error)) from None
