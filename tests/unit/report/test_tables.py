"""Numbers and tables as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpack.report.tables import (
    describe_bytes,
    flatten,
    format_cell,
    format_shape,
    markdown_table,
    rows_table,
    text_table,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"), (True, "yes"), (False, "no"), (1234567, "1,234,567"), (0.0, "0"),
        (1.23456, "1.235"), (0.00001234, "1.234e-05"), (12345678.0, "1.235e+07"), ("x", "x"),
        (float("nan"), "nan"), (-0.5, "-0.5"),
    ],
)  # fmt: skip
def test_cells(value, text: str) -> None:
    assert format_cell(value) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (99_999, "99,999 B"),
        (400_000, "400,000 B (0.40 MB, 0.38 MiB)"),
        (11_996_482, "11,996,482 B (12.00 MB, 11.44 MiB)"),
    ],
)
def test_bytes(size: int, text: str) -> None:
    assert describe_bytes(size) == text


def test_shapes() -> None:
    assert format_shape([]) == "scalar"
    assert format_shape([1024, 3]) == "1,024 x 3"
    assert flatten([1, 2]) == "1 x 2"
    assert flatten(["a", "b"]) == "a, b"
    assert flatten({"a": 1}) == "{'a': 1}"


def test_text_table() -> None:
    assert text_table(["name", "bytes"], [("a", 1), ("long name", 20_000)]).splitlines() == [
        "name        bytes",
        "a               1",
        "long name  20,000",
    ]


def test_text_table_without_rows() -> None:
    assert text_table(["a", "b"], []) == "a  b"
    assert rows_table([]) == "(no rows)"


def test_markdown_table() -> None:
    assert markdown_table(["name", "n"], [("a|b\n", 1), ("c", None)]).splitlines() == [
        "| name | n |",
        "| --- | --: |",
        "| a\\|b  | 1 |",
        "| c | - |",
    ]


def test_rows_table() -> None:
    table = rows_table([{"peak_bytes": 5, "shape": [2, 2]}, {"peak_bytes": None, "shape": []}])
    assert table.splitlines() == ["peak bytes  shape", "         5  2 x 2", "         -  scalar"]


@given(st.lists(st.tuples(st.text(max_size=9), st.text(max_size=9)), max_size=9))
def test_no_text_adds_a_column_to_markdown(rows: list[tuple[str, str]]) -> None:
    for line in markdown_table(["a", "b"], rows).split("\n"):
        unescaped = line.replace("\\\\", "").replace("\\|", "")
        assert unescaped.count("|") == 3
