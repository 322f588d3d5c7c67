"""Documents do not go stale: their links lead somewhere, their commands exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qpack.cli.main import build

from .sources import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
CODE = re.compile(r"`([^`\n]+)`")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def broken_links(document: Path, text: str) -> list[str]:
    """Links to files that are not there; addresses on the web are not followed."""
    targets = [target for target in LINK.findall(text) if "://" not in target]
    return [target for target in targets if not (document.parent / target).exists()]


def commands(text: str) -> Iterator[str]:
    """What the document tells its reader to type: lines of code blocks, and inline code."""
    blocks = [block.replace("\\\n", " ") for block in FENCE.findall(text)]
    lines = [line for block in blocks for line in block.splitlines()]
    candidates = [*lines, *CODE.findall(FENCE.sub("", text))]
    for line in candidates:
        command = line.strip().removeprefix("$ ")
        if re.match(r"qpack [a-z-]", command):
            yield command


def complaint(line: str) -> str | None:
    """What is wrong with a command line, as far as its words tell."""
    words = shlex.split(line, comments=True)[1:]
    command: Any = build()
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    if getattr(command, "commands", {}) and words and not words[0].startswith("-"):
        return f"no command {words[0]}"
    known = {name for parameter in command.params for name in parameter.opts} | {"--help", "-h"}
    options = [word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)]
    unknown = [option for option in options if option not in known]
    return f"no option {', '.join(unknown)}" if unknown else None


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    assert broken_links(document, document.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_exist(document: Path) -> None:
    found = {line: complaint(line) for line in commands(document.read_text(encoding="utf-8"))}
    assert {line: text for line, text in found.items() if text} == {}


def test_the_link_test_can_fail() -> None:
    text = "[a](gone.md) [b](sources.py) [c](https://example.org/x)"
    assert broken_links(Path(__file__), text) == ["gone.md"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("qpack pack m.safetensors --budget 16MB -o m.pyz  # comment", None),
        ("qpack bench codecs MODEL -o t.json", None),
        ("qpack --version", None),
        ("qpack quantize m", "no command quantize"),
        ("qpack bench bytes", "no command bytes"),
        ("qpack inspect m.qpk --deep", "no option --deep"),
    ],
)
def test_complaints(line: str, expected: str | None) -> None:
    assert complaint(line) == expected


def test_commands_are_found_in_code_alone() -> None:
    text = "qpack is a tool.\n`qpack doctor` and `qpack.load`\n```\n$ qpack pack \\\n  m\nls\n```\n"
    assert list(commands(text)) == ["qpack pack    m", "qpack doctor"]


PYTHON = re.compile(r"^```python\n(import torch.*?)^```", re.MULTILINE | re.DOTALL)


def test_whole_python_examples_run(tmp_path: Path) -> None:
    """Examples that begin with their imports are programs."""
    programs = [
        program
        for document in DOCUMENTS
        for program in PYTHON.findall(document.read_text(encoding="utf-8"))
    ]
    assert len(programs) == 1
    for program in programs:
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "model.pyz").is_file()
