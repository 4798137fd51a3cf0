"""Which images of a generator a set holds: every image once, groups by themselves, the best, equally many."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distgan.errors import ConfigError
from distgan.inference.selection import GeneratedImage, SampleSelection

CHOICES = st.builds(
    lambda num, size, classes, share, balance: SampleSelection(
        num * max(1, classes) if balance else num, size, tuple(range(classes)), share, balance and classes > 0
    ),
    num=st.integers(1, 300),
    size=st.integers(1, 100),
    classes=st.integers(0, 7),
    share=st.floats(0.05, 1),
    balance=st.booleans(),
)


@given(CHOICES)
def test_groups_follow_one_another_and_hold_all_images(choice: SampleSelection) -> None:
    groups = range(choice.num_groups)
    assert sum(choice.size(group) for group in groups) == choice.num
    numbers = [number for group in groups for number in choice.candidates(group)]
    assert numbers == list(range(choice.num_candidates))
    for group in groups:
        num = len(choice.candidates(group))
        assert choice.size(group) <= num * choice.share + 1e-6
        step = len(choice.classes) if choice.balance else 1
        assert (num - step) * choice.share < choice.size(group)  # and not more than it takes


@given(CHOICES, st.integers(0, 2**32 - 1), st.integers(1, 50))
def test_the_best_of_a_group_are_kept_in_whatever_portions_they_come(
    choice: SampleSelection, seed: int, portion: int
) -> None:
    numbers = choice.candidates(choice.num_groups - 1)
    scores = np.random.default_rng(seed).integers(0, 40, len(numbers)).tolist()  # with equal ones among them
    picture = np.zeros((1, 1, 3), np.uint8)
    drawn = [GeneratedImage(i, choice.label(i), picture, score) for i, score in zip(numbers, scores)]
    held: list[GeneratedImage] = []
    for start in range(0, len(drawn), portion):
        held = choice.best(choice.num_groups - 1, held + drawn[start : start + portion])
    size = choice.size(choice.num_groups - 1)
    assert len(held) == size
    assert [one.number for one in held] == sorted(one.number for one in held)
    ranks = {label: sorted(one.score for one in drawn if one.label == label) for label in (*choice.classes, None)}
    if choice.balance:
        each = size // len(choice.classes)
        assert Counter(one.label for one in held) == dict.fromkeys(choice.classes, each)
        for label in choice.classes:
            assert sorted(one.score for one in held if one.label == label) == ranks[label][-each:]
    else:
        assert sorted(one.score for one in held) == sorted(scores)[-size:]


def test_classes_are_taken_in_turn() -> None:
    choice = SampleSelection(7, 4, classes=(3, 8, 9))
    assert choice.labels(range(7)) == [3, 8, 9, 3, 8, 9, 3]
    assert [choice.label(i) for i in range(7)] == choice.labels(range(7))
    assert SampleSelection(7, 4).labels(range(7)) is None


def test_shares_that_floats_miss_take_no_image_more() -> None:
    assert len(SampleSelection(7, 7, share=0.7).candidates(0)) == 10
    assert len(SampleSelection(3, 3, share=0.1).candidates(0)) == 30


def test_equally_many_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="10 images cannot be spread evenly over 3 classes: choose --num 9 or 12"):
        SampleSelection(10, 4, classes=(0, 1, 2), balance=True)
    with pytest.raises(ConfigError, match=r"choose --num 3$"):
        SampleSelection(2, 4, classes=(0, 1, 2), balance=True)
    with pytest.raises(ConfigError, match="trained without classes"):
        SampleSelection(10, 4, balance=True)
