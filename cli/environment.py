"""What `qpack doctor` finds: packages, devices, codecs and plugins of this machine."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from qpack import __version__
from qpack.errors import QpackError

DISTRIBUTION = "qpack-lm"
DEVICES = ("cpu", "cuda", "mps")
GROUPS = (
    "qpack.architectures", "qpack.codecs", "qpack.data", "qpack.importers", "qpack.predictors",
    "qpack.presets", "qpack.trainers",
)  # fmt: skip


def examine() -> dict[str, Any]:
    """Everything that `qpack doctor` prints, as plain values."""
    packages = list(examine_packages())
    problems = [
        f"{row['name']} {row['needs']} is required, found {row['version'] or 'none'}"
        for row in packages
        if row["required"] and not row["ok"]
    ]
    return {
        "schema": "qpack.doctor/1",
        "qpack": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "usable": not problems,
        "problems": problems,
        "packages": packages,
        "devices": [examine_device(name) for name in DEVICES],
        "codecs": examine_codecs(),
        "plugins": list(examine_plugins()),
    }


def examine_packages() -> Iterator[dict[str, Any]]:
    """A row for each run-time dependency: what the package's own metadata asks for."""
    for requirement in metadata.requires(DISTRIBUTION) or ():
        spec, _, marker = requirement.partition(";")
        extra = re.search(r"extra\s*==\s*['\"](\w+)", marker)
        if extra and extra[1] != "pack":
            continue
        name, needs = re.match(r"\s*([\w.-]+)\s*(.*?)\s*$", spec).groups()  # type: ignore[union-attr]
        version = installed_version(name)
        yield {
            "name": name,
            "needs": needs,
            "version": version,
            "required": extra is None,
            "ok": version is not None and satisfies(version, needs),
        }


def installed_version(name: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def satisfies(version: str, needs: str) -> bool:
    """Whether `version` meets a plain lower bound such as `>=1.2`; qpack declares no other."""
    bound = needs.removeprefix(">=")
    return release(version) >= release(bound)


def release(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: `2.13.0+cpu` is (2, 13, 0)."""
    head = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in head[0].split(".")) if head else ()


def examine_device(name: str) -> dict[str, Any]:
    """Whether a device can be used, and the reason."""
    try:
        from qpack.device import choose

        _, reason = choose(name)
    except QpackError as error:
        return {"name": name, "available": False, "reason": error.message}
    return {"name": name, "available": True, "reason": reason}


def examine_codecs() -> list[dict[str, Any]]:
    """A row for each codec: does a round trip work here?"""
    from qpack.codec.registry import codecs, round_trip_works

    rows = []
    for codec in codecs().values():
        try:
            works = round_trip_works(codec)
            reason = "" if works else "its round trip fails"
        except QpackError as error:
            works, reason = False, error.message
        rows.append({"id": codec.id, "name": codec.name, "available": works, "reason": reason})
    return rows


def examine_plugins() -> Iterator[dict[str, Any]]:
    """A row for each plugin; a broken one is a row too, never an error."""
    from qpack.plugins import load_plugin, names

    for group in GROUPS:
        for name in names(group):
            try:
                load_plugin(group, name)
            except QpackError as error:
                yield {"group": group, "name": name, "works": False, "reason": error.message}
            else:
                yield {"group": group, "name": name, "works": True, "reason": ""}
