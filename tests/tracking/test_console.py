"""What a terminal shows, and what everything else does."""

import io
import logging
import time

import pytest

from distgan.distributed import watchdog
from distgan.distributed.watchdog import Watchdog
from distgan.tracking.alerts import ALERT_RULES, Alerts
from distgan.tracking.console import ERASE, LIVE, TICK, Console, has_colors


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "20")


def shown(stream: io.StringIO) -> str:
    """What is written after a story of all kinds of lines."""
    console, log = Console(stream), logging.Logger("test")
    log.addHandler(console)
    log.info("hello")
    log.info("kimg 1", extra=TICK)
    log.info("kimg 2, in many more words", extra=LIVE)
    log.warning("careful")
    log.info("", extra=LIVE)
    return stream.getvalue()


def test_a_terminal_has_one_live_line(monkeypatch: pytest.MonkeyPatch) -> None:
    live = "kimg 2, in many mor"  # one column less than there are: else it would wrap, and could not be erased
    expected = ["", "hello\n", "kimg 1", live, f"\x1b[33mcareful\x1b[0m\n{live}", ""]
    assert shown(Terminal()).split(ERASE) == expected
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[33m" not in shown(Terminal())


def test_elsewhere_lines_are_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(io.StringIO()) == "hello\nkimg 1\ncareful\n"
    monkeypatch.setenv("TERM", "dumb")
    assert shown(Terminal()) == "hello\nkimg 1\ncareful\n"


def test_colours_are_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_colors(Terminal())
    assert not has_colors(io.StringIO())
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert has_colors(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not has_colors(Terminal())


def test_a_long_phase_gives_signs_of_life(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Also one that reports again and again, as an evaluation does."""
    monkeypatch.setattr(watchdog, "HEARTBEAT_SEC", 0.2)
    with caplog.at_level("INFO", "distgan"):
        guard = Watchdog(0.4, lambda error: None)
        for _ in range(30):
            guard.phase("evaluating")
            time.sleep(0.02)
        guard.close()
    assert "still evaluating, for 0 s" in [record.message for record in caplog.records]


@pytest.mark.parametrize("trouble", ALERT_RULES.values(), ids=ALERT_RULES)
def test_a_trouble_is_told_once_until_it_was_gone(trouble: object) -> None:
    alerts, bad, good = Alerts(), {trouble.key: trouble.above * 1.005}, {trouble.key: trouble.above}
    told = [alerts.check(bad) for _ in range(3 * trouble.lines)]
    assert [i for i, found in enumerate(told, 1) if found] == [trouble.lines]
    assert told[trouble.lines - 1][0][0] == trouble.title
    assert not alerts.check(good)
    assert sum(bool(alerts.check(bad)) for _ in range(trouble.lines)) == 1
