"""Numbers and tables as text: one set of rules for the terminal and for Markdown.

Plain strings without colour or wrapping, so that a table can be piped, searched and pasted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Cell = str | int | float | bool | None
Row = Sequence[Cell]


def format_cell(value: Cell) -> str:
    """`1,234` for integers, four significant digits for the rest, `-` for nothing."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return format_float(value)
    return value


def format_float(value: float) -> str:
    """Four significant digits, without an exponent where that is short."""
    if value == 0:
        return "0"
    return f"{value:.4g}" if 1e-4 <= abs(value) < 1e6 else f"{value:.3e}"


def format_bytes(num_bytes: int) -> str:
    """`11,996,482 B`"""
    return f"{num_bytes:,} B"


def describe_bytes(num_bytes: int) -> str:
    """`11,996,482 B (12.00 MB, 11.44 MiB)`: bytes first, then both units by name if large."""
    if num_bytes < 100_000:
        return format_bytes(num_bytes)
    return f"{format_bytes(num_bytes)} ({num_bytes / 1e6:.2f} MB, {num_bytes / 2**20:.2f} MiB)"


def format_shape(shape: Iterable[int]) -> str:
    """`512 x 1,024`; `scalar` for no dimensions."""
    return " x ".join(f"{dim:,}" for dim in shape) or "scalar"


def text_table(headers: Sequence[str], rows: Iterable[Row]) -> str:
    """Columns parted by two spaces: numbers to the right, words to the left."""
    body = list(rows)
    cells = [list(headers), *([format_cell(value) for value in row] for row in body)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    right = [is_numeric(row[i] for row in body) for i in range(len(headers))]
    lines = [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    ]
    return "\n".join(lines)


def markdown_table(headers: Sequence[str], rows: Iterable[Row]) -> str:
    """The same as a Markdown table."""
    body = list(rows)
    rule = ["--:" if is_numeric(row[i] for row in body) else "---" for i in range(len(headers))]
    cells = [list(headers), rule, *([escape(format_cell(v)) for v in row] for row in body)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def escape(text: str) -> str:
    """Text that cannot break out of a Markdown table cell."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def is_numeric(values: Iterable[Cell]) -> bool:
    """Whether a column holds numbers (booleans are words), at least one."""
    present = [value for value in values if value is not None]
    numbers = [v for v in present if isinstance(v, (int, float)) and not isinstance(v, bool)]
    return bool(present) and len(numbers) == len(present)


def rows_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of mappings with the same keys; the keys are the headers."""
    if not rows:
        return "(no rows)"
    headers = list(rows[0])
    body = [[flatten(row.get(key)) for key in headers] for row in rows]
    return text_table([header.replace("_", " ") for header in headers], body)


def flatten(value: Any) -> Cell:
    """A value as one cell: shapes as `2 x 3`, other lists by commas."""
    if isinstance(value, (list, tuple)):
        if all(isinstance(item, int) for item in value):
            return format_shape(value)
        return ", ".join(str(item) for item in value)
    if value is None or isinstance(value, (str, int, float)):
        return value
    return str(value)
