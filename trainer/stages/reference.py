"""Stage `reference`: qpack's own trainer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from qpack.device import choose
from qpack.errors import ConfigError
from qpack.plugins import did_you_mean
from qpack.progress import Progress
from qpack.training import Checked, Trained, TrainRequest

from ..config import WORDS, TrainConfig
from ..data.documents import expand
from ..finish import TrainResult
from ..loop import train as train_model
from ..resume import saved_step, settings

TABLES = TrainConfig


def check(request: TrainRequest) -> Checked:
    """Raise `QpackError` naming every key that cannot be used and every file that is not there."""
    config = TrainConfig.from_mapping(request.config)
    choose(config.loop.device)
    files: dict[str, Path] = {}
    gone = []
    for key, patterns in _data(config):
        found = {
            pattern: [path for path in expand(pattern) if path.is_file()] for pattern in patterns
        }
        gone += [
            f"data.{key}: {pattern}{did_you_mean(pattern.name, WORDS)}"
            for pattern, paths in found.items()
            if not paths
        ]
        paths = [path for paths in found.values() for path in paths]
        files |= {f"data.{key}.{i}": path for i, path in enumerate(paths)}
    if gone:
        raise ConfigError(
            "no such file",
            items=gone,
            hint="get shards with qpack data fineweb or data tokenize",
        )
    return Checked(settings=settings(config), files=files)


def train(request: TrainRequest, *, progress: Progress) -> Trained:
    """Train; a run that was interrupted goes on from its last checkpoint, if it has one."""
    config = TrainConfig.from_mapping(request.config)
    resume = request.resume and saved_step(request.folder) is not None
    if request.resume and not resume:
        progress.note("no checkpoint was kept: training from the beginning")
    result = train_model(
        config,
        request.folder,
        resume=resume,
        force=request.force or (request.resume and not resume),
        progress=progress,
    )
    return Trained(
        checkpoint=result.checkpoint,
        tokenizer=result.tokenizer,
        calibration=result.train[0],
        validation=result.val[0] if result.val else None,
        sequence=config.loop.sequence,
        details=_details(result),
    )


def _data(config: TrainConfig) -> Iterator[tuple[str, Sequence[Path]]]:
    """Keys of `[data]` that name files, with what they name."""
    for key in ("train", "val", "tokenizer", "text", "val_text"):
        value = getattr(config.data, key)
        paths = (value,) if isinstance(value, Path) else value or ()
        yield key, [path for path in paths if str(path) not in WORDS]


def _details(result: TrainResult) -> dict[str, Any]:
    """Figures for the report."""
    return {
        "steps": result.steps,
        "tokens": result.tokens,
        "train_seconds": round(result.seconds, 3),
        "tokens_per_second": round(result.tokens_per_second, 1),
        "mfu": result.mfu,
        "loss": result.loss if math.isfinite(result.loss) else None,
        "shipped": result.shipped,
        "bpb": None if result.score is None else result.score.bpb,
        "device": result.device,
        "dtype": result.dtype,
    }
