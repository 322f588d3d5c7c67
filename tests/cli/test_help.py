"""The help of every command, and the options that scripts rely on, frozen.

A deliberate change: `pytest tests/cli/test_help.py --update-snapshots`, then read the diff.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.rich_utils

from qpack.cli.main import build

from .conftest import Runner

SNAPSHOTS = Path(__file__).parent / "snapshots"
COMMANDS = (
    "", "demo", "doctor", "presets", "run", "train", "import", "pack", "inspect", "verify",
    "unpack", "compress", "decompress", "generate", "eval", "sweep", "data",
    "data tokenize", "data fineweb", "data stats", "bench", "bench codecs", "bench bits",
    "study", "study hashed-ngram", "study byte-spread", "study train-first",
)  # fmt: skip


def leaves(command: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every command of the tree with its full name."""
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from leaves(child, f"{path} {name}".strip())


def surface() -> dict[str, list[str]]:
    """Command -> its arguments and options, with what a script must know of each."""
    return {
        path or "qpack": [describe(parameter) for parameter in command.params]
        for path, command in leaves(build())
    }


def describe(parameter: Any) -> str:
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    if parameter.param_type_name == "argument":
        names = parameter.metavar or names
    facts = [
        "required" if parameter.required else "",
        "flag" if getattr(parameter, "is_flag", False) else "",
        "repeatable" if parameter.multiple or getattr(parameter, "count", False) else "",
        f"default {parameter.default}" if is_telling(parameter.default) else "",
        f"variable {parameter.envvar}" if parameter.envvar else "",
    ]
    return "; ".join([names, *filter(None, facts)])


def is_telling(default: object) -> bool:
    return default is not None and default is not False and default != [] and default != ()


def compare(path: Path, text: str, config: pytest.Config) -> None:
    if config.getoption("--update-snapshots"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), "see the docstring of this file"


def test_the_list_of_commands_is_whole() -> None:
    assert tuple(path for path, _ in leaves(build())) == COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_help(
    qpack: Runner, name: str, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(typer.rich_utils, "MAX_WIDTH", 100)
    outcome = qpack(*name.split(), "--help")
    assert (outcome.code, outcome.err) == (0, "")
    text = "\n".join(line.rstrip() for line in outcome.out.splitlines()) + "\n"
    compare(SNAPSHOTS / f"help {name or 'qpack'}.txt".replace(" ", "-"), text, pytestconfig)


def test_surface(pytestconfig: pytest.Config) -> None:
    compare(SNAPSHOTS / "surface.json", json.dumps(surface(), indent=1) + "\n", pytestconfig)


def test_no_command_prints_the_help_and_is_a_usage_error(qpack: Runner) -> None:
    outcome = qpack()
    assert outcome.code == 2
    assert "Usage: qpack" in outcome.out
    assert outcome.err == ""


def test_version(qpack: Runner) -> None:
    outcome = qpack("--version")
    assert (outcome.code, outcome.out, outcome.err) == (0, "qpack 0.1.0\n", "")
