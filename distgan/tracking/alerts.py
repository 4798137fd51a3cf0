"""Rules on the lines of metrics, and a warning once when one is broken."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AlertRule:
    """Warn where a log key stays above a bound for `lines` lines in a row. The text may use `{value}` and `{lines}`."""

    key: str
    above: float
    lines: int
    title: str
    text: str


ALERT_RULES: dict[str, AlertRule] = {
    "data-wait": AlertRule(
        "Perf/data_wait_pct",
        50.0,
        5,
        "Waiting for data",
        "training waits for images {value:.0f}% of the time, for {lines} lines of metrics now: raise "
        "data.decode_threads or data.prefetch, pack the images at data.resolution, or put the shards on a nearer disk",
    ),
    "strong-D": AlertRule(
        "Logits/D_accuracy",
        0.99,
        20,
        "D too strong?",
        "D orders {value:.1%} of pairs correctly, for {lines} lines of metrics now: try augment.pipe=ada with "
        "augment.target=0.6, a larger loss.r1, or balance.adapt=d_lr",
    ),
}


class Alerts:
    """Counts broken rules; a rule warns again only after a line that kept it."""

    def __init__(self) -> None:
        self._counts = dict.fromkeys(ALERT_RULES, 0)

    def check(self, row: dict[str, float]) -> list[tuple[str, str]]:
        """Return titles and texts of the warnings that this line of metrics makes due."""
        due = []
        for name, rule in ALERT_RULES.items():
            value = row.get(rule.key, 0.0)
            self._counts[name] = self._counts[name] + 1 if value > rule.above else 0
            if self._counts[name] == rule.lines:
                due.append((rule.title, rule.text.format(value=value, lines=rule.lines)))
        return due
