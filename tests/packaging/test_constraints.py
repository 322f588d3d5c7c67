"""constraints.txt pins everything that `make test` installs, at the versions under test."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

BUILD_TOOLS = ("pip", "setuptools", "wheel")
OTHER_PLATFORMS = {"colorama"}
"""Pinned for Windows, not installed elsewhere."""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def required(distribution: str, extras: tuple[str, ...]) -> set[str]:
    """Every distribution that `distribution` needs on this platform, directly or not."""
    found: set[str] = set()
    waiting = [(distribution, extras)]
    while waiting:
        name, wanted = waiting.pop()
        for line in metadata.requires(name) or ():
            requirement = Requirement(line)
            environments = [{"extra": extra} for extra in wanted] or [{"extra": ""}]
            marker = requirement.marker
            if marker is not None and not any(marker.evaluate(env) for env in environments):
                continue
            if normal(requirement.name) not in found:
                found.add(normal(requirement.name))
                waiting.append((requirement.name, tuple(requirement.extras)))
    return found


@pytest.fixture(scope="module")
def pins(root: Path) -> dict[str, str]:
    lines = (root / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {normal(name): version for name, version in pairs}


def test_torch_comes_first(pins: dict[str, str]) -> None:
    assert next(iter(pins.items())) == ("torch", "2.13.0")


def test_every_requirement_is_pinned(pins: dict[str, str]) -> None:
    needed = required("qpack-lm", ("pack", "dev")) | set(BUILD_TOOLS)
    assert needed - set(pins) == set()


def test_nothing_else_is_pinned(pins: dict[str, str]) -> None:
    needed = required("qpack-lm", ("pack", "dev")) | set(BUILD_TOOLS)
    assert set(pins) - needed == OTHER_PLATFORMS


def test_the_pinned_versions_are_under_test(pins: dict[str, str]) -> None:
    installed = {
        name: metadata.version(name).partition("+")[0] for name in pins.keys() - OTHER_PLATFORMS
    }
    assert installed == {name: pins[name] for name in installed}
