"""Numbers, sizes and tables as a person reads them."""

import pytest

from distgan.storage.formatting import one_line, one_of, short_number, size, table


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
