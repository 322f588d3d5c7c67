from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import pytest

from qpack.runs.paths import resolve_paths
from qpack.sections import NotPaths, Section
from qpack.trainer.config import TrainConfig


class Inner(Section):
    """Fields in which a path can hide."""

    one: Path | None = None
    listed: tuple[Path, ...] = ()
    named: Annotated[tuple[Path, ...], NotPaths(("a-word",))] = ()
    either: Path | Mapping[str, Any] | None = None
    text: str = ""
    texts: tuple[str, ...] = ()


class Outer(Section):
    """Sections in sections."""

    inner: Inner | None = None
    many: tuple[Inner, ...] = ()
    also: tuple[Path, ...] | None = None


FOLDER = Path("conf")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"one": "x.bin"}, {"one": "conf/x.bin"}),
        ({"one": "../x.bin"}, {"one": "conf/../x.bin"}),
        ({"one": "/abs/x.bin"}, {"one": "/abs/x.bin"}),
        ({"listed": ["a", "/b", "c/*.bin"]}, {"listed": ["conf/a", "/b", "conf/c/*.bin"]}),
        ({"listed": "a"}, {"listed": "conf/a"}),
        ({"named": "a-word"}, {"named": "a-word"}),
        ({"named": ["a-word", "a-file"]}, {"named": ["a-word", "conf/a-file"]}),
        ({"either": "r.toml"}, {"either": "conf/r.toml"}),
        ({"either": {"rule": [{"match": "x"}]}}, {"either": {"rule": [{"match": "x"}]}}),
        ({"text": "x", "texts": ["y"]}, {"text": "x", "texts": ["y"]}),
        ({"one": 3, "listed": [4], "unknown": "z"}, {"one": 3, "listed": [4], "unknown": "z"}),
    ],
)
def test_paths_are_joined_and_nothing_else(given, expected) -> None:
    tables = {"inner": given, "many": [given], "alien": {"one": "x"}}
    assert resolve_paths(Outer, tables, FOLDER) == {
        "inner": expected, "many": [expected], "alien": {"one": "x"},
    }  # fmt: skip


def test_optional_lists() -> None:
    assert resolve_paths(Outer, {"also": ["a"]}, FOLDER) == {"also": ["conf/a"]}
    assert resolve_paths(Outer, {"also": "a"}, FOLDER) == {"also": "conf/a"}


def test_home_and_folders_with_brackets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    tables = {"inner": {"listed": ["~/x", "*.bin", "y.bin", "~nobody-of-this-name/x"]}}
    resolved = resolve_paths(Outer, tables, Path("run[1]"))
    assert resolved["inner"]["listed"] == [
        "/home/me/x", "run[[]1]/*.bin", "run[1]/y.bin", "~nobody-of-this-name/x",
    ]  # fmt: skip


def test_every_path_of_the_reference_trainer() -> None:
    tables = {
        "model": {"vocab_size": "not-a-path"},
        "data": {
            "train": "a", "val": ["b"], "tokenizer": "c", "text": ["d", "standard-library"],
            "val_text": "e", "order": "easy",
        },
        "loop": {"device": "cpu"},
        "pack": {"recipe": "f", "code": ["g"], "codecs": ["xz"]},
    }  # fmt: skip
    assert resolve_paths(TrainConfig, tables, FOLDER) == {
        "model": {"vocab_size": "not-a-path"},
        "data": {
            "train": "conf/a", "val": ["conf/b"], "tokenizer": "conf/c",
            "text": ["conf/d", "standard-library"], "val_text": "conf/e", "order": "easy",
        },
        "loop": {"device": "cpu"},
        "pack": {"recipe": "conf/f", "code": ["conf/g"], "codecs": ["xz"]},
    }  # fmt: skip
