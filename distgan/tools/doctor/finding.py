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
