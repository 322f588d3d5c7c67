"""A virtual environment for each peer, made from its pinned requirements.

`NAME.txt` pins all packages, dependencies too, so that nothing is resolved anew. An environment
that is there already is used as it is, if it holds what is pinned.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent


def interpreter(name: str, folder: Path) -> Path:
    """Python of the environment of peer `name` in `folder`, which is made if it is not there.

    SystemExit if it holds other versions than those that are pinned.
    """
    python = folder.absolute() / name / "bin" / "python"
    if not python.exists():
        _make(name, python)
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"],
        check=True,
        capture_output=True,
        text=True,
    )
    installed = {package["name"]: package["version"] for package in json.loads(listed.stdout)}
    wrong = differences(pins(name), installed)
    if wrong:
        raise SystemExit(f"{python.parents[1]}: not what {name}.txt pins: {'; '.join(wrong)}")
    return python


def pins(name: str) -> dict[str, str]:
    """Package -> version of `NAME.txt`."""
    lines = (HERE / f"{name}.txt").read_text("utf-8").split()
    return dict(line.split("==") for line in lines)


def differences(pinned: Mapping[str, str], installed: Mapping[str, str]) -> list[str]:
    """What is not installed as pinned, a line each; `+cpu` and its like are no other version."""
    found = {_plain(name): version.partition("+")[0] for name, version in installed.items()}
    return [
        f"{name} {found.get(_plain(name), 'is missing')}, not {version}"
        for name, version in pinned.items()
        if found.get(_plain(name)) != version
    ]


def _plain(name: str) -> str:
    """A package's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _make(name: str, python: Path) -> None:
    print(f"making {python.parents[1]} ...", flush=True)
    subprocess.run([sys.executable, "-m", "venv", python.parents[1]], check=True)
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    listed = pins(name)
    if "torch" in listed:  # with what its build needs: that differs between builds
        subprocess.run([*install, f"torch=={listed['torch']}"], check=True)
    subprocess.run([*install, "--no-deps", "--requirement", HERE / f"{name}.txt"], check=True)
