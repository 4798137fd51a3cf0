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


CORPORA = {"hostile_archives": 21, "hostile_http": 21, "hostile_config": 21, "hostile_images": 21, "hostile_files": 900}


@pytest.mark.parametrize("corpus", CORPORA)
def test_a_corpus_is_read_within_bounds(corpus: str, tmp_path: Path) -> None:
    found = hostile.outcomes(corpus, tmp_path)
    assert hostile.bad(found) == ""
    assert len(found) >= CORPORA[corpus]
