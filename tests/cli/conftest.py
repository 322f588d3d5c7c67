"""Running the command line: in this process where that is enough, else in a fresh one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .given import Files, make_files

PROGRAM = "from qpack.cli.main import main; main()"


@dataclass(frozen=True)
class Outcome:
    """What one run of the command line left behind."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """stdout as the one JSON document that it must be."""
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        """The last line of stderr as a JSON error."""
        return json.loads(self.err.splitlines()[-1])


Runner = Callable[..., Outcome]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A model as somebody else wrote it, its tokenizer and its tokens."""
    return make_files(tmp_path_factory.mktemp("given"))


@pytest.fixture(scope="module")
def checkpoint(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That model, imported."""
    from qpack.checkpoint import write_checkpoint
    from qpack.importing import import_file

    path = tmp_path_factory.mktemp("imported") / "model.safetensors"
    write_checkpoint(path, import_file(files.foreign), force=False)
    return path


@pytest.fixture
def qpack(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Runner:
    """Run `qpack ARGUMENTS` in this process."""
    from qpack.cli.main import main

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["qpack", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return Outcome(stopped.value.code or 0, captured.out, captured.err)

    return run


def clean_environment(**changes: str) -> dict[str, str]:
    """Our environment without anything that changes what qpack prints."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("QPACK_") and key not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")
    }
    return {**kept, **changes}


@pytest.fixture
def fresh_qpack(tmp_path: Path) -> Runner:
    """Run `qpack ARGUMENTS` in a process of its own; `before` is Python to run first."""

    def run(*arguments: object, before: str = "", env: Mapping[str, str] | None = None) -> Outcome:
        done = subprocess.run(
            [sys.executable, "-c", f"{before}\n{PROGRAM}", *map(str, arguments)],
            cwd=tmp_path,
            env=clean_environment(**(env or {})),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(autouse=True)
def quiet_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the person who runs the tests may change what they see."""
    for key in set(os.environ) - set(clean_environment()):
        monkeypatch.delenv(key)
