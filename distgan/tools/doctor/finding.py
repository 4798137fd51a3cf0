"""The result of one check of the machine."""

from dataclasses import dataclass

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True)
class Finding:
    """One line: what was checked, ok, warn or fail, what was found, and the fix."""

    name: str
    state: str
    told: str
    cure: str = ""
