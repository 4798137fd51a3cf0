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


CORPORA = {  # how many cases there are at least: in the share, and in all
    "hostile_archives": (100, 103),
    "hostile_http": (21, 21),
    "hostile_config": (85, 140),
    "hostile_images": (44, 50),
    "hostile_files": (300, 1200),
}


@pytest.mark.multi
@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["share", "whole"])
@pytest.mark.parametrize("corpus", CORPORA)
def test_a_corpus_is_read_within_bounds(corpus: str, whole: bool, tmp_path: Path) -> None:
    found = hostile.outcomes(corpus, tmp_path, whole)
    assert hostile.bad(found) == ""
    assert len(found) >= CORPORA[corpus][whole]
