"""Conditions as networks see them, against closed forms; texts and values there and back; what is refused."""

import dataclasses
import json

import numpy as np
import pytest

from distgan.condition_spec import Conditions, Field, rows_of, values_of
from distgan.storage.untrusted import parse

AGE = Field("age", "number", mean=40.0, std=10.0)
FLAG = Field("smiling", "flag", mean=0.25)
KIND = Field("kind", "class", classes=["cat", "dog", "eel"])
CODE = Field("code", "vector", length=2, std=0.5)
MIXED = Conditions([AGE, FLAG, KIND, CODE])
NAN = float("nan")


def test_vectors_are_normalized_and_say_what_is_unknown() -> None:
    values = np.array([[60, 1, 2, 1, -0.25], [NAN, NAN, NAN, NAN, 1]], np.float32)
    expected = [[2, 0, 1, 0, 0, 0, 1, 0, 2, -0.5, 0], [0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 1]]
    np.testing.assert_array_equal(MIXED.encode(values), np.array(expected, np.float32))
    assert (MIXED.num_values, MIXED.length) == (5, 11)
    assert MIXED.input == (11, 1 + 0.25 + 1 + 2)


def test_the_second_moment_is_that_of_the_vectors() -> None:
    rng, num = np.random.default_rng(0), 200_000
    values = np.stack(
        [rng.normal(40, 10, num), rng.random(num) < 0.25, rng.integers(0, 3, num), *rng.normal(0, 0.5, (2, num))], 1
    )
    measured = float((MIXED.encode(values.astype(np.float32)) ** 2).sum(1).mean())
    assert measured == pytest.approx(MIXED.input.second_moment, rel=0.01)


def test_dropped_fields_are_unknown_whole() -> None:
    dropped = MIXED.without(np.ones((1, 5), np.float32), np.array([[False, True, False, True]]))
    np.testing.assert_array_equal(dropped, np.array([[1, NAN, 1, NAN, NAN]], np.float32))


def test_texts_and_lists_come_back() -> None:
    unsure = Conditions([dataclasses.replace(one, may_be_unknown=True) for one in MIXED.fields])
    values = unsure.values("kind=eel, age=4.5e1,code=0.5;-1,smiling=yes")
    np.testing.assert_array_equal(values, np.array([45, 1, 2, 0.5, -1], np.float32))
    np.testing.assert_array_equal(unsure.values(unsure.text(values)), values)
    np.testing.assert_array_equal(unsure.values({"kind": "1", "code": [0.5, 2]})[2:], np.array([1, 0.5, 2], np.float32))
    part = unsure.values("kind=dog")
    assert np.isnan(part).tolist() == [True, True, False, True, True]
    np.testing.assert_array_equal(values_of(json.loads(json.dumps(rows_of(part[None]))))[0], part)
    assert parse(list[Field], [dataclasses.asdict(one) for one in MIXED.fields], "") == MIXED.fields


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("age=40,smiling=1,kind=cat,code=1;2,size=3", "no condition 'size', only age, smiling, kind, code"),
        ("age=40,smiling=1,kind=cat", "code is missing, and it never was in training"),
        ("age=old,smiling=1,kind=cat,code=1;2", "age=old: not a number"),
        ("age=nan,smiling=1,kind=cat,code=1;2", "age=nan: not a number"),
        ("age=1e99,smiling=1,kind=cat,code=1;2", "age=inf: not a number"),
        ("age=40,smiling=2,kind=cat,code=1;2", "smiling=2: not 0 or 1"),
        ("age=40,smiling=1,kind=fox,code=1;2", "kind=fox: its classes are cat, dog, eel"),
        ("age=40,smiling=1,kind=3,code=1;2", "kind=3: its classes"),
        ("age=40,smiling=1,kind=cat,code=1;2;3", "code: 3 numbers, it has 2"),
        ("age=40,age=41", "named twice"),
        ("old", "'old': write age=VALUE"),
    ],
)
def test_what_does_not_fit_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MIXED.values(text)


def test_fields_that_do_not_go_together_are_refused() -> None:
    for fields, message in (
        ([AGE, AGE], "several conditions of one name"),
        ([Field("kind", "class")], "is not one that"),
        ([Field("age", "number", length=2)], "is not one that"),
        ([Field("code", "vector", length=65_536)], "at most 65,536"),
    ):
        with pytest.raises(ValueError, match=message):
            Conditions(fields)
