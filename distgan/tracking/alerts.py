"""What in a run's lines of metrics a person should be told of, once."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Trouble:
    """A log key that stays above a bound for so many lines in a row. `{value}` and `{lines}` stand in the text."""

    key: str
    above: float
    lines: int
    title: str
    text: str


TROUBLES = (
    Trouble(
        "Perf/data_wait_pct",
        50.0,
        5,
        "Waiting for data",
        "training waits for images {value:.0f}% of the time, for {lines} lines of metrics now: raise "
        "data.decode_threads or data.prefetch, pack the images at data.resolution, or put the shards on a nearer disk",
    ),
    Trouble(
        "Logits/D_accuracy",
        0.99,
        20,
        "D too strong?",
        "D orders {value:.1%} of pairs correctly, for {lines} lines of metrics now: try augment.pipe=ada with "
        "augment.target=0.6, a larger loss.r1, or balance.adapt=d_lr",
    ),
)


class Alerts:
    """Told again only after it was well for a line."""

    def __init__(self) -> None:
        self._counts = dict.fromkeys(TROUBLES, 0)

    def look(self, row: dict[str, float]) -> list[tuple[str, str]]:
        """Titles and texts of what a line of metrics makes due."""
        due = []
        for trouble in TROUBLES:
            value = row.get(trouble.key, 0.0)
            self._counts[trouble] = self._counts[trouble] + 1 if value > trouble.above else 0
            if self._counts[trouble] == trouble.lines:
                due.append((trouble.title, trouble.text.format(value=value, lines=trouble.lines)))
        return due
