"""What comes from elsewhere is right, refused in one line, or passed over and counted, and starts nothing."""

from pathlib import Path

import hostile


def test_the_harness_sees_what_must_not_come(tmp_path: Path) -> None:
    found = hostile.outcomes("hostile_itself", tmp_path)
    for one in found:
        assert one.word == one.name.partition(" - ")[0], one
        assert one.good == (one.word.partition(" ")[0] in hostile.GOOD), one
    assert len(found) == 19
