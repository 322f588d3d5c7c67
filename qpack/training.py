"""What a training stage is: the plugins of group `qpack.trainers`.

A trainer is a module (or any object) with three names, which an installed package registers:

    [project.entry-points."qpack.trainers"]
    mine = "my_package.stage"

`TABLES` is the pydantic section that declares its part of a run's configuration, `check` finds what
is wrong before anything slow, and `train` makes a checkpoint. `qpack train` and `qpack run` work
with any of them; a configuration chooses one with `trainer = "mine"` at its top.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from qpack.errors import SetupError
from qpack.plugins import TRAINERS, load_plugin
from qpack.progress import Progress
from qpack.sections import Section

DEFAULT = "reference"
"""The trainer of a configuration that names none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainRequest:
    """What a trainer is asked to do."""

    config: Mapping[str, Any]
    """The whole configuration without `trainer`; relative paths are resolved."""
    folder: Path
    """The run's folder, which is there when `train` is called; everything is written inside."""
    resume: bool = False
    """Go on where an earlier `train` in this folder stopped, if there is anything to go on from."""
    force: bool = False
    """Overwrite what an earlier run left. Never given together with `resume`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """What decides the model that a request gives: two requests with equal ones can share it."""

    settings: Mapping[str, Any]
    """Every setting that matters, defaults filled in, as JSON values in tables. No paths: files
    count by content."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """Every file that is read, by the name that messages give it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """What training left behind."""

    checkpoint: Path
    """A checkpoint of qpack, in the run's folder."""
    tokenizer: Path
    """The SentencePiece model of its tokens."""
    calibration: Path
    """A token shard of training text."""
    validation: Path | None = None
    """A token shard of held-out text; none: the end of the calibration shard."""
    sequence: int | None = None
    """Tokens a training sequence, if that is known: what the model is scored at."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Figures for the report, as JSON values: steps, tokens, seconds."""


class Trainer(Protocol):
    """A plugin of group `qpack.trainers`."""

    TABLES: type[Section]
    """The configuration without `trainer`; has to have a field `pack`, for `qpack run`. Its fields
    of type `Path` say which values are paths."""

    def check(self, request: TrainRequest) -> Checked:
        """Raise `QpackError` that names everything that can be known to be wrong with a request.

        Quick, and writes nothing: the run's folder need not exist yet.
        """

    def train(self, request: TrainRequest, *, progress: Progress) -> Trained:
        """Train. Under `torchrun` every rank calls this together; rank 0 alone writes.

        On Ctrl-C raises `KeyboardInterrupt`, leaving what `resume` needs, if anything.
        """


def load_trainer(name: str) -> Trainer:
    """The trainer `name`.

    Raises `ConfigError` for an unknown name, `SetupError` where the plugin is no trainer or cannot
    be imported.
    """
    plugin = load_plugin(TRAINERS, name)
    missing = [part for part in ("TABLES", "check", "train") if not hasattr(plugin, part)]
    if missing:
        raise SetupError(
            f'the trainer "{name}" is not one: it lacks {", ".join(missing)}',
            hint="update or uninstall the package that provides it; see qpack.training",
        )
    trainer: Trainer = plugin
    return trainer
