"""The conditions of images: named fields, numbers, flags, classes and vectors, as one vector that networks are given.

Two forms of an image's conditions go through the program. Values are float32 [R], as data has them: a number each, or
the numbers of a vector; NaN is unknown. Vectors are float32 [V], as networks see them; see `Conditions.encode`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

Kind = Literal["number", "flag", "class", "vector"]
MAX_LENGTH = 65_536  # of the vector that networks are given
MAX_EXAMPLES, MAX_EXAMPLE_VALUES = 1000, 2**17  # rows of real conditions that a generator keeps, and values in all


class VectorInput(NamedTuple):
    """The kind of vectors that networks are given in place of class numbers.

    Attributes:
        length: V.
        second_moment: Mean of the squared length of a vector.
    """

    length: int
    second_moment: float


@dataclass(frozen=True)
class Field:
    """One condition of an image.

    Attributes:
        name: Its name.
        kind: "number", any value; "flag", 0 or 1; "class", a place in `classes`; "vector", `length` numbers.
        length: Values of it.
        mean, std: Of a number; of a flag, `mean` is the share of ones; `std` of a vector is the root of the mean square
            of its numbers.
        classes: Names of the classes.
        known, missing: Number of images that have it, and that lack it.
        may_be_unknown: Whether networks are trained on images without it.
    """

    name: str
    kind: Kind
    length: int = field(default=1, metadata={"low": 1, "high": MAX_LENGTH})
    mean: float = field(default=0.0, metadata={"low": -1e30, "high": 1e30})
    std: float = field(default=1.0, metadata={"low": 1e-30, "high": 1e30})
    classes: list[str] = field(default_factory=list)
    known: int = field(default=0, metadata={"low": 0, "high": 2**53})
    missing: int = field(default=0, metadata={"low": 0, "high": 2**53})
    may_be_unknown: bool = False

    @property
    def is_sound(self) -> bool:
        """Return whether its parts go together, as those of a file may not."""
        classes = self.classes if self.kind == "class" else [""] * (not self.classes)
        return bool(self.name and classes) and (self.kind == "vector" or self.length == 1)

    @property
    def columns(self) -> int:
        """Return the numbers of the networks' vector that say it, the last of which says that it is unknown."""
        return (len(self.classes) if self.kind == "class" else self.length) + 1

    @property
    def second_moment(self) -> float:
        """Return the mean of the squared length of its part of the vector, where it is known."""
        return {"number": 1.0, "flag": self.mean, "class": 1.0, "vector": float(self.length)}[self.kind]

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Return values [B, length] as networks see them; float32 [B, columns]."""
        encoded = np.zeros((len(values), self.columns), np.float32)
        unknown = np.isnan(values).any(axis=1)
        known = values[~unknown].astype(np.float64)
        if self.kind == "class":
            encoded[np.flatnonzero(~unknown), known[:, 0].astype(np.int64)] = 1
        else:
            normalized = self.kind in ("number", "vector")
            shift, scale = (self.mean if self.kind == "number" else 0.0, self.std) if normalized else (0.0, 1.0)
            encoded[~unknown, :-1] = (known - shift) / scale
        encoded[unknown, -1] = 1
        return encoded

    def accepts(self, values: np.ndarray) -> bool:
        """Return whether values [length] are possible; NaN is."""
        known = values[~np.isnan(values)]
        if self.kind == "class":
            return bool(((known >= 0) & (known < len(self.classes)) & (known == np.floor(known))).all())
        return bool(np.isin(known, (0, 1)).all()) if self.kind == "flag" else bool(np.isfinite(known).all())

    def text(self, values: np.ndarray) -> str:
        """Return values [length] as `parse` reads them."""
        if np.isnan(values).any():
            return "unknown"
        if self.kind == "class":
            return self.classes[int(values[0])]
        return ";".join(f"{value:.6g}" for value in values.tolist())

    def parse(self, text: str) -> np.ndarray:
        """Return the values [length] that a text means. Raises ValueError."""
        text = text.strip()
        if text.lower() in ("", "unknown") and text not in self.classes:
            return np.full(self.length, np.nan, np.float32)
        if self.kind == "class":
            if text in self.classes:
                return np.array([self.classes.index(text)], np.float32)
            shown = ", ".join(self.classes[:10]) + " ..." * (len(self.classes) > 10)
            if not (text.isdecimal() and int(text) < len(self.classes)):
                raise ValueError(f"{self.name}={text}: its classes are {shown}")
            return np.array([int(text)], np.float32)
        if self.kind == "flag" and text.lower() in ("true", "false", "yes", "no"):
            return np.array([text.lower() in ("true", "yes")], np.float32)
        try:
            if self.kind == "vector" and text.endswith(".npy"):
                array = np.load(text, allow_pickle=False)
                if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
                    raise ValueError
                with np.errstate(over="ignore"):  # infinite then, which no field accepts
                    values = array.astype(np.float32).ravel()
            else:
                values = np.array([float(word) for word in text.split(";")])
        except (OSError, EOFError, ValueError):
            raise ValueError(f"{self.name}={text}: not {self.described}") from None
        if np.isnan(values).any():
            raise ValueError(f"{self.name}={text}: not {self.described}")
        return self.checked(values)

    def checked(self, values: np.ndarray) -> np.ndarray:
        """Return values if they are of this kind. Raises ValueError."""
        with np.errstate(over="ignore"):  # infinite then, which no field accepts
            values = values.astype(np.float32)
        if values.shape != (self.length,):
            raise ValueError(f"{self.name}: {values.size} numbers, it has {self.length}")
        if not self.accepts(values):
            raise ValueError(f"{self.name}={self._shown(values)}: not {self.described}")
        return values

    def _shown(self, values: np.ndarray) -> str:
        return ";".join(f"{value:g}" for value in values.tolist()[:8])

    @property
    def described_fully(self) -> str:
        """Return name, kind and size, which networks are made for."""
        size = (
            f" of {self.length}" if self.kind == "vector" else f" of {', '.join(self.classes)}" if self.classes else ""
        )
        return f"{self.name} ({self.kind}{size})"

    @property
    def described(self) -> str:
        """Return what its values are, for messages."""
        return {
            "number": "a number",
            "flag": "0 or 1",
            "class": f"one of {len(self.classes)} classes",
            "vector": f"{self.length} numbers as 0.5;-1;... or the name of an .npy file",
        }[self.kind]


@dataclass(frozen=True)
class Conditions:
    """The fields that the networks of a run are given, in their order.

    Raises:
        ValueError: The fields do not go together.
    """

    fields: Sequence[Field]

    def __post_init__(self) -> None:
        names = [one.name for one in self.fields]
        if wrong := [one.name for one in self.fields if not one.is_sound]:
            raise ValueError(f"the condition {wrong[0]!r} is not one that `distgan pack` describes")
        if len(set(names)) < len(names):
            raise ValueError(f"several conditions of one name: {', '.join(names)}")
        if self.length > MAX_LENGTH:
            raise ValueError(f"conditions of {self.length:,} numbers, at most {MAX_LENGTH:,}")

    @property
    def names(self) -> list[str]:
        """Return the names of the fields."""
        return [one.name for one in self.fields]

    @property
    def num_values(self) -> int:
        """Return R, the number of an image's values."""
        return sum(one.length for one in self.fields)

    @property
    def length(self) -> int:
        """Return V, the length of the vectors that networks are given."""
        return sum(one.columns for one in self.fields)

    @property
    def input(self) -> VectorInput:
        """Return what networks need to know of the vectors."""
        return VectorInput(self.length, max(1e-6, sum(one.second_moment for one in self.fields)))

    def is_like(self, other: "Conditions") -> bool:
        """Return whether others have the same names, kinds and sizes, whatever their statistics."""
        return [one.described_fully for one in self.fields] == [one.described_fully for one in other.fields]

    def split(self, values: np.ndarray) -> list[np.ndarray]:
        """Split values [..., R] by fields."""
        return np.split(values, np.cumsum([one.length for one in self.fields])[:-1], axis=-1)

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Return values [B, R] as networks see them; float32 [B, V].

        The columns of each field are, in order: (x - mean) / std of a number; the flag itself; one-hot of a class;
        x / std of a vector; then one that is 1 where the field is unknown, whose other columns are 0 then. So a linear
        layer holds a learned vector for "unknown" of each field, and can tell it from the mean.
        """
        parts = zip(self.fields, self.split(np.asarray(values, np.float32)))
        return np.concatenate([one.encode(part) for one, part in parts], axis=1)

    def accepts(self, values: np.ndarray) -> bool:
        """Return whether the values [R] of one image are possible."""
        return all(one.accepts(part) for one, part in zip(self.fields, self.split(values)))

    def without(self, values: np.ndarray, dropped: np.ndarray) -> np.ndarray:
        """Return values [B, R] where the fields of bool [B, fields] are unknown."""
        lengths = [one.length for one in self.fields]
        return np.where(np.repeat(dropped, lengths, axis=1), np.float32(np.nan), values)

    def text(self, values: np.ndarray) -> str:
        """Return the values [R] of one image as text, "age=40, kind=cat"."""
        return ", ".join(f"{one.name}={one.text(part)}" for one, part in zip(self.fields, self.split(values)))

    def named(self, values: np.ndarray) -> dict[str, object]:
        """Return the values [R] of one image by name, for JSON: names of classes, numbers, None where unknown."""
        found: dict[str, object] = {}
        for one, part in zip(self.fields, self.split(values)):
            if np.isnan(part).any():
                found[one.name] = None
            else:
                found[one.name] = (
                    one.text(part) if one.kind == "class" else part.tolist() if one.kind == "vector" else float(part[0])
                )
        return found

    def values(self, given: str | Mapping[str, object], optional: str = "") -> np.ndarray:
        """Return the values [R] that "age=40,kind=cat" or {"age": 40, "kind": "cat"} means; fields may be missing.

        Args:
            optional: A field that may be missing in any case.

        Raises:
            ValueError: A name or value that does not exist, or a missing field that networks always had in training.
        """
        by_name = self._by_name(given) if isinstance(given, str) else dict(given)
        if unknown := [name for name in by_name if name not in self.names]:
            raise ValueError(f"no condition {unknown[0]!r}, only {', '.join(self.names)}")
        parts = []
        for one in self.fields:
            value = by_name.get(one.name, "unknown")
            if isinstance(value, str):
                part = one.parse(value)
            else:
                try:
                    numbers = np.atleast_1d(np.asarray(value, np.float64))
                except (TypeError, ValueError, OverflowError):
                    raise ValueError(f"{one.name}={str(value)[:60]}: not {one.described}") from None
                part = one.checked(numbers)
            if np.isnan(part).any() and not one.may_be_unknown and one.name != optional:
                raise ValueError(
                    f"{one.name} is missing, and it never was in training: name it, as {one.name}=..., or train with "
                    "model.condition_dropout"
                )
            parts.append(part)
        return np.concatenate(parts)

    def _by_name(self, text: str) -> dict[str, object]:
        pairs: list[tuple[str, str, str]] = []
        for part in text.split(","):
            if pairs and "=" not in part and part.strip():  # of a class whose name has a comma
                name, equals, before = pairs[-1]
                pairs[-1] = name, equals, f"{before},{part}"
            elif part.strip():
                pairs.append(part.partition("="))
        if wrong := [name for name, equals, _ in pairs if not equals]:
            raise ValueError(f"{wrong[0]!r}: write {self.names[0]}=VALUE, fields separated by commas")
        names = [name.strip() for name, _, _ in pairs]
        if len(set(names)) < len(names):
            raise ValueError(f"{text}: a condition is named twice")
        return {name: value for name, (_, _, value) in zip(names, pairs)}


def rows_of(values: np.ndarray) -> list[list[float | None]]:
    """Return values [N, R] for JSON; None is unknown."""
    return [[None if np.isnan(value) else float(value) for value in row] for row in values]


def values_of(rows: Sequence[Sequence[float | None]]) -> np.ndarray:
    """Return what `rows_of` returned as an array."""
    return np.array([[np.nan if value is None else value for value in row] for row in rows], np.float32)


def num_examples(num_values: int) -> int:
    """Return how many rows of so many values a generator keeps."""
    return max(1, min(MAX_EXAMPLES, MAX_EXAMPLE_VALUES // num_values))
