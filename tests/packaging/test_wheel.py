"""What `pip install` gives: one top-level name, and every folder of the three."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest

CACHES = ("__pycache__", ".*_cache")
FOLDERS = {"qpack": "qpack", "trainer": "qpack/trainer", "cli": "qpack/cli"}


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the sources, so that nothing is left in the repository."""
    copy = tmp_path_factory.mktemp("sources")
    for name in FOLDERS:
        shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns(*CACHES))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, copy)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist"]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (copy / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def test_one_top_level_name(names: set[str]) -> None:
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"qpack"}


def test_every_file_is_in_the_wheel(root: Path, names: set[str]) -> None:
    """A package missing from the list in pyproject.toml is left out without a word."""
    expected = {
        f"{installed}/{path.relative_to(root / folder)}"
        for folder, installed in FOLDERS.items()
        for path in (root / folder).rglob("*")
        if path.is_file()
        and not any(fnmatch(part, cache) for part in path.parts for cache in CACHES)
    }
    assert {name for name in names if ".dist-info/" not in name} == expected


def test_licence_and_entry_points(wheel: Path, names: set[str]) -> None:
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    (listed,) = (name for name in names if name.endswith("entry_points.txt"))
    text = zipfile.ZipFile(wheel).read(listed).decode()
    for line in (
        "qpack = qpack.cli.main:main",
        "[qpack.architectures]",
        "[qpack.importers]",
        "[qpack.trainers]",
    ):
        assert line in text


def test_the_wheel_runs(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    program = "import qpack; print(qpack.__file__); from qpack.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "--version"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    where, version = done.stdout.splitlines()
    assert Path(where).is_relative_to(tmp_path)
    assert version.startswith("qpack 0.")


@pytest.mark.parametrize("name", ["trainer", "cli"])
def test_the_folders_refuse_their_top_level_name(root: Path, name: str) -> None:
    """Else the same file could be loaded twice, under two names."""
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"ImportError: import qpack.{name}, not {name}" in done.stderr
