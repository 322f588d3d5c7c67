"""`run.json`: which stages of a run are done, and from what.

Each stage has an identity: every setting and the SHA-256 of every file that decides its result, as
flat strings, so that two of them can be compared and each difference named. A resumed run skips a
stage that is done and whose products are still what it made; it never mixes two configurations.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from qpack.artifact.writer import write_atomic
from qpack.errors import ConfigError
from qpack.tokens import sha256_file

FILE = "run.json"
SCHEMA = "qpack.run/1"
ABSENT = "(not there)"
AGAIN = "give what it was made with, choose another folder, or --resume --force runs it again"

Identity = dict[str, str]
Decision = Literal["skip", "resume", "run"]


class Record:
    """The record of a run's folder; every change is on disk when the method returns."""

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        """A new record, not yet written. `about`: what the run is, as JSON values."""
        self.folder = folder
        self.about = dict(about)
        self.stages: dict[str, dict[str, Any]] = {}

    @classmethod
    def read(cls, folder: Path, about: Mapping[str, Any]) -> Record:
        """The record in `folder`, or a new one. Raises `ConfigError` for a damaged one."""
        record = cls(folder, about)
        path = folder / FILE
        if path.exists():
            try:
                document = json.loads(path.read_text("utf-8"))
                record.stages = {name: dict(stage) for name, stage in document["stages"].items()}
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise ConfigError(
                    f"{path}: not the record of a run", hint="start anew with --force"
                ) from error
        return record

    def begin(self, name: str, identity: Identity) -> None:
        """`name` is under way; what was made from its earlier result counts no more."""
        names = list(self.stages)
        for later in names[names.index(name) :] if name in names else ():
            del self.stages[later]
        self.stages[name] = {
            "done": False,
            "fingerprint": fingerprint(identity),
            "identity": identity,
        }
        self._write()

    def finish(
        self,
        name: str,
        identity: Identity,
        *,
        products: Mapping[str, Path],
        result: Mapping[str, Any],
        seconds: float,
    ) -> None:
        """`name` is done: `result` is what a resumed run needs of it, as JSON values."""
        self.stages[name] = {
            "done": True,
            "seconds": round(seconds, 3),
            "products": {
                key: {"file": self.relative(path), "sha256": sha256_file(path)}
                for key, path in products.items()
            },
            "result": dict(result),
            "fingerprint": fingerprint(identity),
            "identity": identity,
        }
        self._write()

    def decide(self, name: str, identity: Identity, *, force: bool) -> Decision:
        """What a resumed run does with a stage: skip it, go on with it, or run it.

        Raises `ConfigError` that names every setting and file that differs from the recorded stage,
        or every product that somebody changed; with `force` such a stage runs again instead.
        """
        stage = self.stages.get(name)
        if stage is None:
            return "run"
        differences = list(compare(stage["identity"], identity))
        lost: list[str] = []
        changed: list[str] = []
        if stage["done"] and not differences:
            lost, changed = self._products(name)
        if (differences or changed) and force:
            return "run"
        if differences:
            raise ConfigError(
                f"{self.folder}: {name} was begun with another configuration or other data",
                items=differences,
                hint=AGAIN,
            )
        if changed:
            raise ConfigError(
                f"{self.folder}: files that {name} made have changed since",
                items=changed,
                hint="--resume --force makes them again",
            )
        return "skip" if stage["done"] and not lost else "resume"

    def _products(self, name: str) -> tuple[list[str], list[str]]:
        """Products that are gone, and those with other bytes."""
        lost, changed = [], []
        for row in self.stages[name]["products"].values():
            path = self.absolute(row["file"])
            if not path.is_file():
                lost.append(row["file"])
            elif sha256_file(path) != row["sha256"]:
                changed.append(row["file"])
        return lost, changed

    def relative(self, path: Path) -> str:
        """How the record names a file: from the run's folder where it is inside."""
        place, home = path.resolve(), self.folder.resolve()
        return place.relative_to(home).as_posix() if place.is_relative_to(home) else str(place)

    def absolute(self, name: str) -> Path:
        """The file that the record calls `name`."""
        return self.folder / name

    def _write(self) -> None:
        document = {"schema": SCHEMA, **self.about, "stages": self.stages}
        text = json.dumps(document, indent=1, default=str) + "\n"  # TOML has dates
        write_atomic(self.folder / FILE, text.encode("ascii"), force=True)


def identify(settings: Mapping[str, Any], files: Mapping[str, Path]) -> Identity:
    """The identity of a stage: `settings` flattened to dotted keys, `files` by content.

    Raises `DataError` for a file that cannot be read.
    """
    flat = {key: json.dumps(value) for key, value in flatten(settings)}
    with ThreadPoolExecutor() as pool:  # hashing lets other threads run
        digests = pool.map(sha256_file, files.values())
        return flat | {
            f"{name} ({path.name})": f"sha256 {digest}"
            for (name, path), digest in zip(files.items(), digests, strict=True)
        }


def compare(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    """One line for each difference of two identities: `key: old -> new`."""
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key, ABSENT), now.get(key, ABSENT)
        if old != new:
            yield f"{key}: {old} -> {new}"


def flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`section.key` and value of every entry; lists of tables count through."""
    for key, value in table.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, f"{name}.")
        elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
            yield from flatten(dict(enumerate(value)), f"{name}.")  # type: ignore[arg-type]
        else:
            yield name, value


def fingerprint(identity: Identity) -> str:
    """SHA-256, hexadecimal, of an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
