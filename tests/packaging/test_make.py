"""The two commands of the Makefile, without installing anything."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def make(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Under `make test` our own make's flags are in the environment, and would be inherited.
    env = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(
        command, cwd=root, env={**env, "MFLAGS": ""}, capture_output=True, text=True, check=False
    )


def test_help_names_two_commands(root: Path) -> None:
    lines = make(root).stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [["make", "demo"], ["make", "test"]]


def test_torch_is_installed_first_and_everything_under_constraints(
    root: Path, tmp_path: Path
) -> None:
    lines = make(root, "-n", "demo", f"VENV={tmp_path / 'venv'}").stdout.splitlines()
    installs = [line for line in lines if "pip install" in line]
    assert all("--constraint constraints.txt" in line for line in installs)
    targets = [line.rpartition("--constraint constraints.txt ")[2] for line in installs]
    assert [target.split()[-1] for target in targets] == ["wheel", "torch", "'.[pack]'"]
    assert f"{tmp_path / 'venv/bin/qpack'} demo --out runs/demo --force" in lines


def test_an_old_python_is_named(root: Path, tmp_path: Path) -> None:
    python = tmp_path / "python3.10"
    python.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.10.4"\nexit 1\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    done = make(root, "demo", f"VENV={tmp_path / 'venv'}", f"PYTHON={python}")
    assert done.returncode != 0
    assert f"qpack needs Python 3.11 or newer; {python} is Python 3.10.4" in done.stdout
    assert "fix: make demo PYTHON=/path/to/python3.11" in done.stdout
    assert not (tmp_path / "venv").exists()


def test_ci_runs_make_test(root: Path) -> None:
    script = root / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().splitlines()[-1] == "exec make test"
