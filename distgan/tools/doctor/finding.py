"""What a look at the machine gives."""

from dataclasses import dataclass

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, ok, warn or fail, what was found, and the cure."""

    name: str
    state: str
    told: str
    cure: str = ""


def short(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
