"""Names of metrics and of their values, and the direction in which they are better."""

import re
from collections.abc import Callable, Iterable, Mapping
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
# A value's name, or its first word -> direction in which it is better; a plugin's metrics add theirs.
VALUES: dict[str, Direction] = {
    **dict.fromkeys(("fd", "fid", "kid"), "lower"),
    **dict.fromkeys(("is", "precision", "recall", "density", "coverage"), "higher"),
    **dict.fromkeys(("psnr", "ssim"), "higher"),
    **dict.fromkeys(("acc", "accuracy", "probe"), "higher"),
}
NOT_JUDGED = r"_(sec|std|err|num)(_|$)"


def better(value: str, more: Mapping[str, str] = {}) -> Callable[[Iterable[float]], float] | None:
    """Return min or max, by the name of a value; None if it is neither good nor bad, such as a time.

    A name that is not in VALUES counts as that of a distance.

    Args:
        more: Directions of other values, as VALUES has them.
    """
    if re.search(NOT_JUDGED, value):
        return None
    known = {**VALUES, **more}
    word = re.match("[a-z]*", value)
    names = [name for name in known if value == name or value.startswith(f"{name}_")]  # the longest says most
    name = max(names, key=len, default=word.group() if word else "")
    return {"lower": min, "higher": max}.get(known.get(name, "lower"))
