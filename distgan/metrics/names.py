"""Names of metrics and of their values, and the direction in which they are better."""

import re
from collections.abc import Callable, Iterable
from typing import Literal

Direction = Literal["lower", "higher", ""]

# Names allowed in `eval.metrics`, and the direction by which the best checkpoint is chosen; "" where it should not be.
EVAL_METRICS: dict[str, Direction] = {
    "fd": "lower",
    "kid": "lower",
    "kid_full": "lower",
    "is": "higher",
    "pr": "",  # blur raises precision
    "dc": "",  # and density
}
# First word of a value's name -> direction in which it is better.
VALUES: dict[str, Direction] = {
    **dict.fromkeys(("fd", "fid", "kid"), "lower"),
    **dict.fromkeys(("is", "precision", "recall", "density", "coverage"), "higher"),
    **dict.fromkeys(("psnr", "ssim"), "higher"),
    **dict.fromkeys(("acc", "accuracy", "probe"), "higher"),
}
NOT_JUDGED = r"_(sec|std|err|num)(_|$)"


def better(value: str) -> Callable[[Iterable[float]], float] | None:
    """Return min or max, by the name of a value; None if it is neither good nor bad, such as a time.

    A name that is not in VALUES counts as that of a distance.
    """
    if re.search(NOT_JUDGED, value):
        return None
    word = re.match("[a-z]*", value)
    return {"lower": min, "higher": max, "": None}[VALUES.get(word.group() if word else "", "lower")]
