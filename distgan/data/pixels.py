"""Report what becomes of a data set's pixels: the values that are stored, and how much is cut away."""

import math
import re
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from distgan.data import dataset_card
from distgan.data.dataset import Dataset
from distgan.data.decode import DecodeOptions, decode
from distgan.data.image_format import CorruptImage, Range
from distgan.data.resize import cropped
from distgan.errors import DataError
from distgan.image_spec import DType
from distgan.storage.formatting import interval, rounded_by_distance, whole_number

LARGEST = 65535  # white in images of more than 8 bits, where no range is given
MAX_SAMPLED = 2**14  # images whose values are kept for quantiles
MANY_CLIPPED = 0.01  # share of clipped values that is probably not meant
LITTLE_USED = 0.1  # share of a range that values fill, below which it is probably not meant
NUM_SAMPLED = 32  # images that are looked at where there are too many to read all


@dataclass
class Pixels:
    """Facts about some images, added up.

    Attributes:
        values: Lowest and highest value stored, of images of more than 8 bits; None without such images.
        num: Images whose crop is known; `sum_cut_away` of their shares that are cropped, `most_cut_away` of one.
        needs_range: Whether some cannot be used without a range.
        bad: Why images cannot be used, and how many.
        sampled: Some values of deeper images, from which quantiles are taken.
    """

    values: Range | None = None
    num: int = 0
    sum_cut_away: float = 0.0
    most_cut_away: float = 0.0
    needs_range: bool = False
    bad: Counter[str] = field(default_factory=Counter)
    sampled: list[np.ndarray] = field(default_factory=list)
    _every: int = 1  # only each so many images are sampled, more than MAX_SAMPLED are halved
    _offered: int = 0

    @property
    def quantiles(self) -> Range | None:
        """Return the values below which 0.1 % and 99.9 % of a deeper set's values are, from some of each image."""
        if not self.sampled:
            return None
        values = np.concatenate(self.sampled)
        low, high = np.quantile(values.astype(np.float64), (0.001, 0.999)).tolist()
        if values.dtype.kind == "u":
            return math.floor(low), math.ceil(high)
        return rounded_by_distance(low, high)

    def add_sampled(self, values: np.ndarray | None) -> None:
        """Take in some values of one image; of many images, those of each second, fourth ... are kept."""
        if values is None:
            return
        if self._offered % self._every == 0:
            self.sampled.append(values)
        self._offered += 1
        if len(self.sampled) > MAX_SAMPLED:
            self.sampled, self._every = self.sampled[::2], 2 * self._every

    def clipped(self, value_range: Range) -> tuple[float, float]:
        """Return the shares of the sampled values that are below and above a range."""
        values = np.concatenate(self.sampled)
        return float((values < value_range[0]).mean()), float((values > value_range[1]).mean())

    @property
    def cut_away(self) -> float:
        """Return the mean share of the area that is cropped."""
        return self.sum_cut_away / max(1, self.num)

    def add_values(self, values: Range | None, is_usable: bool = True) -> None:
        """Take in one image's lowest and highest value, and whether it can be used as it is."""
        if values is not None:
            low, high = self.values or values
            self.values = min(low, values[0]), max(high, values[1])
            self.needs_range |= not is_usable

    def add_crop(self, share: float) -> None:
        """Take in how much of one image is cut away."""
        self.num += 1
        self.sum_cut_away += share
        self.most_cut_away = max(self.most_cut_away, share)

    def facts(self, value_range: Range | None = None, dtype: DType = "uint8") -> list[str]:
        """Return readable lines about images whose numbers become `dtype`, by a range or without one."""
        lines = []
        if dtype != "uint8":
            lines += self._deep_facts(value_range)
        elif self.values is not None and not self.needs_range:
            lines.append(describe_range(self.values, value_range))
        if self.most_cut_away >= 0.005:
            lines.append(
                f"crop: {self.cut_away:.1%} of the images' area is cut away, at most {self.most_cut_away:.0%} of an "
                "image (crop=stretch and crop=pad keep all)"
            )
        return lines

    def _deep_facts(self, value_range: Range | None) -> list[str]:
        if self.quantiles is None:
            return []
        low, high = self.quantiles
        stored = interval(*self.values) if self.values else "8-bit levels"
        line = f"values are {stored}; 99.8 % of them are between {interval(low, high, ' and ')}"
        if value_range is None:
            return [f"{line}, so train with {_setting(low, high)} or another range" if low < high else line]
        below, above = self.clipped(value_range)
        black, white = value_range
        return [f"{line}; of the range {interval(black, white)}, {below:.2%} are below and {above:.2%} above"]

    def warnings(self, value_range: Range | None = None, dtype: DType = "uint8") -> list[str]:
        """Return what is probably not meant, and what to do about it."""
        if dtype != "uint8":
            return self._deep_warnings(value_range)
        if self.values is None:
            return []
        if self.needs_range:
            what = f"images of floating-point numbers, {interval(*self.values)}, cannot be used without a range"
            return [f"{what}. {_advice(self.values)}, or keep the numbers: --dtype float32, then data.dtype=float32"]
        return range_warnings(self.values, value_range)

    def _deep_warnings(self, value_range: Range | None) -> list[str]:
        if value_range is None or self.quantiles is None:
            return []
        below, above = self.clipped(value_range)
        low, high = self.quantiles
        used = (high - low) / (value_range[1] - value_range[0])
        between = interval(low, high, " and ")
        mend = _setting(low, high) if low < high else "choose another range"
        if below + above <= MANY_CLIPPED:
            few = f"99.8 % of the values are between {between}, {used:.1%} of the range"
            return [] if used >= LITTLE_USED else [f"{few}: the contrast is low; {mend}"]
        share = "all" if below + above == 1 else f"{below + above:.1%}"
        line = (
            f"{share} of the values are beyond the range {interval(*value_range)} and are clipped; "
            f"99.8 % of them are between {between}: {mend}"
        )
        return [line]


def describe_range(values: Range, value_range: Range | None) -> str:
    """Return which values are stored, and what becomes of them."""
    (low, high), (black, white) = values, value_range or (0, LARGEST)
    clipped = low < black or high > white
    return (
        f"stored values are {interval(low, high)}; {whole_number(black)} becomes black and {whole_number(white)} white"
        f"{', values beyond are clipped' if clipped else ''}"
    )


def range_warnings(values: Range, value_range: Range | None) -> list[str]:
    """Return what is wrong with a range, or with none, for the values that are stored."""
    (low, high), (black, white) = values, value_range or (0, LARGEST)
    wrong = []
    if high <= black or low >= white:
        wrong = [f"all stored values ({interval(low, high)}) are {'black' if high <= black else 'white'}"]
    elif value_range is None:
        if high < LARGEST / 2:
            wrong.append(
                f"the brightest value is {high:g} of {LARGEST}: the images are dark, {255 * high / white:.0f} of "
                "255 at most"
            )
        if low < 0 or high > LARGEST:
            wrong.append(f"values are {interval(low, high)}: those outside of 0 to {LARGEST} are clipped")
    return [f"{'; '.join(wrong)}. {_advice(values)}"] if wrong else []


def _advice(values: Range) -> str:
    low, high = values
    if low >= 0 and high > 1 and high == math.floor(high) <= LARGEST:
        low, high = 0, 2 ** math.ceil(math.log2(high + 1)) - 1
    elif low >= 0 and high <= 1:
        low, high = 0, 1
    return f"Say which values are black and white: `distgan pack SOURCE OUT --range {interval(low, high, ' ')}`"


def _setting(low: float, high: float) -> str:
    return f"data.range=[{interval(low, high, ',')}]"


def look(dataset: Dataset, options: DecodeOptions) -> Pixels:
    """Read a few images of a data set, always the same, as they are stored.

    Raises:
        DataError: none of them can be used.
    """
    pixels = Pixels()
    numbers = sorted(set(dataset.fixed_samples(NUM_SAMPLED, seed=0)))
    for number in numbers:
        try:
            for data in dataset.stored(number):
                image = decode(data, image=options.image, max_pixels=options.max_pixels, measure=True)
                pixels.add_values(image.values)
                height, width = image.pixels.shape[:2]
                pixels.add_crop(cropped(width, height, options.image, options.crop))
                if not options.image.has_all_levels or options.image.dtype != "uint8":
                    pixels.add_sampled(image.pixels[..., : options.image.num_colors].reshape(-1))
        except CorruptImage as reason:
            pixels.bad[str(reason)] += 1
            pixels.add_values(reason.values, is_usable=False)
    if not pixels.num:
        reasons = ", ".join(pixels.bad)
        raise DataError(
            f"data.shards: none of {len(numbers)} images that were checked can be used: "
            f"{'; '.join([reasons, *_channels_to_set(pixels), *pixels.warnings()])}"
        )
    return pixels


def report(dataset: Dataset, options: DecodeOptions) -> tuple[list[str], list[str]]:
    """Return what was done to the pixels of a data set when it was packed, and what would be done in training.

    Returns:
        Readable lines, and warnings.
    """
    lines: list[str] = []
    warnings: list[str] = []
    image = options.image
    cards = dataset_card.by_folder(dataset.urls)
    for folder, card in cards.items():
        packed_lines, packed_warnings = _as_packed(card)
        lines += [f"packed: {folder}: {line}" for line in packed_lines]
        warnings += [f"{folder}: {line}" for line in [*packed_warnings, *dataset_card.mismatches(card, image)]]
    is_plain = image.is_rgb8
    if is_plain and all(card.get("resolution") and "dtype" not in card for card in cards.values()):
        return lines, warnings  # images of 8 bits and of one size
    try:
        pixels = look(dataset, options)
    except DataError as error:
        raise DataError("; ".join([str(error), *warnings])) from None
    value_range = None if image.dtype == "uint8" and image.has_all_levels else (image.low, image.high)
    sampled = f"of {pixels.num + pixels.bad.total()} images that were checked"
    lines += [f"pixels {sampled}: {line}" for line in pixels.facts(value_range, image.dtype)]
    warnings += [f"{sampled}: {line}" for line in pixels.warnings(value_range, image.dtype)]
    if pixels.bad:
        warnings.append(f"{sampled}, {', '.join(f'{num} cannot be used ({why})' for why, num in pixels.bad.items())}")
    return lines, warnings


def _as_packed(card: dataset_card.Card) -> tuple[list[str], list[str]]:
    """Return what a card says was done to the pixels of 8-bit images, and what is wrong with that."""
    lines: list[str] = []
    warnings: list[str] = []
    try:
        if (stored := card.get("values")) and card.get("dtype", "uint8") == "uint8":
            given = card.get("range")
            low, high = stored
            values, value_range = (low, high), (given[0], given[1]) if given else None
            lines.append(describe_range(values, value_range))
            warnings += range_warnings(values, value_range)
        if share := card.get("cut_away"):
            lines.append(f"{card.get('crop', 'center')} crop, {share:.1%} of the images' area was cut away")
    except (ValueError, IndexError, ZeroDivisionError):  # a card that something else wrote
        pass
    return lines, warnings


def _channels_to_set(pixels: Pixels) -> list[str]:
    """Return the channels to train with where all images have the same, other ones."""
    found = re.fullmatch(r"(\d+) channels?( and alpha)?, data\.channels is (\d+)", next(iter(pixels.bad), ""))
    if found and len(pixels.bad) == 1 and found[1] != found[3]:
        return [f"set data.channels={found[1]}{', which leaves alpha out' * bool(found[2])}"]
    return []
