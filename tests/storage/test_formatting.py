"""Numbers, sizes and tables as a person reads them."""

import pytest

from distgan.storage.formatting import interval, one_line, one_of, rounded_by_distance, short_number, size, table


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0.25, "0.25"),
        (2e-5, "2e-5"),
        (1.999e-4, "1.999e-4"),
        (81600, "81.6k"),
        (1e6, "1M"),
        (25_000_000, "25M"),
        (512, "512"),
    ],
)
def test_numbers_in_few_characters(value: float, told: str) -> None:
    assert short_number(value) == told


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        (1013249, 1013251, "1013249 to 1013251"),
        (0.1234567, 0.2, "0.1234567 to 0.2"),
        (0, 0.123456789, "0 to 0.123457"),
        (-1e30, 1e30, "-1e+30 to 1e+30"),
        (5, 5, "5 to 5"),
        (float("-inf"), 3, "-inf to 3"),
    ],
)
def test_an_interval_has_the_digits_by_which_its_ends_differ(low: float, high: float, told: str) -> None:
    assert interval(low, high) == told
    near, far = rounded_by_distance(low, high)
    assert (near, far) == (low, high) or far - near == pytest.approx(high - low, rel=1e-5)


def test_sizes_change_their_unit_before_they_have_four_digits() -> None:
    assert [size(n) for n in (0, 3.14e6, 99.9e6, 1e8, 1.25e12)] == [
        "0.0 MB",
        "3.1 MB",
        "99.9 MB",
        "0.1 GB",
        "1,250.0 GB",
    ]


def test_alternatives_end_with_or() -> None:
    assert [one_of(values) for values in ([1], [1, 2], "abc")] == ["1", "1 or 2", "a, b or c"]


def test_an_error_is_one_line_of_bounded_length() -> None:
    assert one_line(ValueError("two\n  lines")) == "ValueError: two lines"
    assert len(one_line(ValueError("x" * 10_000))) < 300


def test_the_cells_of_a_column_stand_below_one_another() -> None:
    assert table([("a", "1", "x"), ("long", "100", "")], "<>") == ["a       1  x", "long  100"]
