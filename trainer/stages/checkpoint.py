"""Stage `checkpoint`: no training. Weights that exist go on to be packed.

trainer = "checkpoint"

[checkpoint]
path = "final_model.pt"
tokenizer = "fineweb_1024_bpe.model"
calibration = "fineweb_train_000000.bin"
"""

from __future__ import annotations

from qpack.distributed import on_first
from qpack.errors import ConfigError
from qpack.packing import PackSection
from qpack.progress import Progress
from qpack.sections import Section, read_section
from qpack.training import Checked, Trained, TrainRequest

from .given import (
    MODEL,
    AnyPath,
    GivenFiles,
    check_data,
    data_settings,
    keep_model,
    missing,
    trained,
)

NAME = "checkpoint"


class CheckpointSection(GivenFiles):
    """Weights that are there already, in place of training."""

    path: AnyPath
    """A checkpoint or artifact of qpack, or foreign weights (.pt, .pth, .safetensors)."""


class CheckpointConfig(Section):
    """The whole configuration."""

    checkpoint: CheckpointSection
    pack: PackSection | None = None


TABLES = CheckpointConfig


def check(request: TrainRequest) -> Checked:
    """Raise `QpackError` unless every file is there and the shards are the tokenizer's."""
    given = _section(request)
    files = {"path": given.path, **given.files}
    gone = missing(NAME, files)
    if gone:
        raise ConfigError("no such file", items=gone)
    check_data(given)
    if given.path.resolve() == (request.folder / MODEL).resolve():
        raise ConfigError(
            f"{NAME}.path: {given.path} is what the run writes", hint="choose another folder"
        )
    return Checked(
        settings={NAME: data_settings(given)},
        files={f"{NAME}.{key}": path for key, path in files.items()},
    )


def train(request: TrainRequest, *, progress: Progress) -> Trained:
    """Take the weights over. Rank 0 works, the others wait."""
    given = _section(request)
    with progress.stage("import", total=1, unit="models") as task:
        sequence = on_first(lambda: keep_model(given.path, given, request.folder))
        task.advance()
    return trained(given, request.folder, sequence=sequence, details={"weights": given.path.name})


def _section(request: TrainRequest) -> CheckpointSection:
    what = "the configuration of the checkpoint stage"
    return read_section(CheckpointConfig, request.config, what=what).checkpoint
