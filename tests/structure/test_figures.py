"""Every table of the documents is made from a committed measurement, and is up to date."""

import importlib
import json
import sys
import tomllib
from pathlib import Path

import pytest

from tests.structure.sources import ROOT

sys.path.append(str(ROOT / "benchmarks"))  # its scripts import each other
tables = importlib.import_module("tables")


@pytest.mark.parametrize("name", tables.DOCUMENTS)
def test_documents_match_the_results(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    assert tables.refreshed(text) == text, "run python benchmarks/tables.py --write"


def test_every_table_is_used_and_filled() -> None:
    texts = "".join((ROOT / name).read_text("utf-8") for name in tables.DOCUMENTS)
    found = {match[2]: match[0] for match in tables.MARKED.finditer(texts)}
    assert found.keys() == tables.TABLES.keys()
    assert all(block.count("\n|") >= 3 for block in found.values())


def test_the_readme_shows_the_default_recipe() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    shown = text[text.index("[qpack/recipes/default.toml]") :]
    shown = shown[shown.index("```toml\n") + 8 :].partition("```")[0]
    recipe = (ROOT / "qpack" / "recipes" / "default.toml").read_text("utf-8")
    assert tomllib.loads(shown) == tomllib.loads(recipe)


def test_a_changed_figure_is_noticed() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    start = text.index("<!-- table: headline -->")
    digit = next(i for i in range(start, len(text)) if text[i].isdigit())
    other = "1" if text[digit] != "1" else "2"
    changed = text[:digit] + other + text[digit + 1 :]
    assert tables.refreshed(changed) == text


@pytest.mark.parametrize(
    "path", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda path: path.name
)
def test_results_say_where_they_come_from(path: Path) -> None:
    result = json.loads(path.read_text("utf-8"))
    assert '"/' not in path.read_text("utf-8"), "absolute paths belong to a machine"
    assert result["commit"]
    assert not result["commit"].endswith("+"), "measured on an uncommitted tree"
    assert result["hardware"]["processor"]
    assert result["packages"]["torch"]


def test_the_options_are_those_of_the_declarations() -> None:
    spec = importlib.util.spec_from_file_location("options", ROOT / "docs" / "options.py")
    assert spec is not None
    assert spec.loader is not None
    options = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(options)
    assert options.OUT.read_text("ascii") == options.render(), "run python docs/options.py --write"
