"""What comes from elsewhere is right, refused in one line, or passed over and counted, and starts nothing."""

from pathlib import Path

import hostile
import pytest


def test_the_harness_sees_what_must_not_come(tmp_path: Path) -> None:
    found = hostile.outcomes("hostile_itself", tmp_path)
    for one in found:
        assert one.word == one.name.partition(" - ")[0], one
        assert one.good == (one.word.partition(" ")[0] in hostile.GOOD), one
    assert len(found) == 19


@pytest.mark.parametrize("corpus", ["hostile_archives", "hostile_http", "hostile_config", "hostile_images"])
def test_what_is_large_costs_little(corpus: str, tmp_path: Path) -> None:
    found = hostile.outcomes(corpus, tmp_path)
    assert hostile.bad(found) == ""
    assert len(found) > 20
