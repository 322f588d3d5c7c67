"""A run's configuration: a TOML file or a preset, with changes from the command line.

One document configures everything. `trainer` at its top names the training stage; the tables of the
stage, and `[pack]` for what becomes of the model, follow.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qpack.errors import ConfigError
from qpack.plugins import did_you_mean
from qpack.presets import presets, read_preset
from qpack.runs.overrides import apply_overrides, parse_overrides
from qpack.runs.paths import resolve_paths
from qpack.training import DEFAULT, Trainer, load_trainer

TRAINER = "trainer"
"""The one key that is not the trainer's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """What a run is to do."""

    source: str
    """The file or preset, as asked for."""
    name: str
    """Name of the trainer."""
    trainer: Trainer
    tables: dict[str, Any]
    """The configuration without `trainer`; paths resolved, not yet checked."""


def read_document(source: str | Path, *, overrides: Iterable[str] = ()) -> Document:
    """The configuration in the TOML file `source`, or the preset of that name.

    `overrides` are `section.key=value`, as `qpack.runs.overrides` reads them. Relative paths in a
    file are relative to its folder; those in a preset and in overrides, to the current one. Raises
    `ConfigError` or `SetupError`; what the tables hold is checked by the trainer.
    """
    changes = parse_overrides(overrides)
    text, folder = _find(str(source))
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not valid TOML ({error})") from None
    name = apply_overrides(tables, changes).get(TRAINER, DEFAULT)
    if not isinstance(name, str):
        raise ConfigError(f"{source}: trainer = {name!r}: expected the name of a trainer")
    trainer = load_trainer(name)
    tables = apply_overrides(resolve_paths(trainer.TABLES, tables, folder), changes)
    tables.pop(TRAINER, None)
    return Document(source=str(source), name=name, trainer=trainer, tables=tables)


def _find(source: str) -> tuple[str, Path]:
    """Text of the file or preset `source`, and the folder of its relative paths."""
    path = Path(source)
    if not path.is_file():
        if path.suffix == ".toml" or len(path.parts) != 1:
            raise ConfigError(f"{source}: no such file", hint=_preset_hint(path))
        return read_preset(source).text, Path()
    try:
        return path.read_text("utf-8"), path.parent
    except OSError as error:
        raise ConfigError(f"{source}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source}: not a text file: {error}") from error


def _preset_hint(path: Path) -> str:
    """What may have been meant by a file that is not there."""
    known = [preset.name for preset in presets()]
    if path.stem in known:
        return f"the preset is called {path.stem}, without a suffix"
    return f"give a TOML file, or a preset{did_you_mean(path.stem, known)}: {', '.join(known)}"
