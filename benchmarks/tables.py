"""The tables of the documents, made from `results/*.json`.

    python benchmarks/tables.py           checks that every document is up to date
    python benchmarks/tables.py --write   rewrites the tables between their markers

A document marks a table with `<!-- table: NAME -->` and `<!-- end -->`; nothing in between is
written by hand. The tables themselves are in `tables_*.py`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable

import tables_evaluation
import tables_quantization
import tables_training
from tabulate_results import ROOT

DOCUMENTS = ("README.md", "docs/TRAINING.md", "docs/QUANTIZATION.md", "docs/EVALUATION.md")
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

TABLES: dict[str, Callable[[], str]] = {
    **tables_quantization.TABLES,
    **tables_training.TABLES,
    **tables_evaluation.TABLES,
}


def refreshed(text: str) -> str:
    """`text` with every marked table made anew."""
    return MARKED.sub(lambda found: found[1] + TABLES[found[2]]() + found[3], text)


def main() -> int:
    """Check or rewrite every document."""
    parser = argparse.ArgumentParser(description="Tables of the documents.")
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    stale = 0
    for name in DOCUMENTS:
        path = ROOT / name
        text = path.read_text("utf-8")
        if refreshed(text) == text:
            continue
        if write:
            path.write_text(refreshed(text), "utf-8")
        else:
            stale += 1
            print(f"{name}: tables differ from the results", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
