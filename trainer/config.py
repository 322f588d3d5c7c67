"""Everything that decides a training run. The same config, data and machine give the same model
(with a step budget; a time budget gives as many steps as the machine takes)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from qpack.errors import ConfigError
from qpack.plugins import did_you_mean

REQUIRED_PATHS = ("train", "tokenizer", "out")
PATHS = (*REQUIRED_PATHS, "val", "metrics")
DTYPES = ("auto", "float32", "bfloat16")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """What to train, on what, how, for how long. Learning rates are for AdamW."""

    model: Mapping[str, Any]
    """Configuration of the architecture `gpt`."""
    train: Path
    """Token shard to train on."""
    tokenizer: Path
    """SentencePiece model of the shards."""
    text: str | None = None
    """A source of text (`standard-library`): `tokenizer`, `train` and `val` are made from it."""
    out: Path
    """Checkpoint to write."""
    val: Path | None = None
    """Token shard to validate on, by bits per byte."""
    val_tokens: int = 32_768
    """Targets scored in each validation."""
    validations: int = 1
    """How many, evenly spread over the run; the last is of the final model."""
    metrics: Path | None = None
    """JSONL file: one object for every logged step and validation."""
    log_every: int = 10
    """Steps between logged losses."""

    max_steps: int | None = None
    """Step budget."""
    max_seconds: float | None = None
    """Budget of wall clock, validation not counted. The run ends with the first budget reached."""
    sequence: int = 256
    """Tokens a sequence."""
    batch: int = 8
    """Sequences a step."""
    warmup_steps: int = 20
    """Steps over which the learning rates rise from 0."""
    warmdown: float = 0.6
    """Last part of the budget, over which the learning rates fall linearly to 0."""

    matrix_lr: float = 0.004
    """Of the matrices inside the blocks."""
    embedding_lr: float = 0.02
    """Of token and hash tables."""
    scalar_lr: float = 0.005
    """Of gains, gates and scales."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    weight_decay: float = 0.1
    """Decoupled, on matrices and tables."""
    clip: float = 1.0
    """Largest global norm of the gradient."""

    seed: int = 0
    """Of the starting weights and of the order of the data."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:N` or `mps`."""
    dtype: str = "auto"
    """Of activations: bfloat16 by autocast, or float32. `auto`: bfloat16 on CUDA alone (a CPU with
    AVX512-BF16 trains 1.3 times as fast with it, one without it far slower)."""
    force: bool = False
    """Overwrite `out` and `metrics`."""

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise ConfigError("the training configuration cannot be used", items=problems)

    @classmethod
    def from_mapping(cls, config: Mapping[str, Any]) -> TrainConfig:
        """The configuration of a TOML table or JSON object; paths may be strings.

        Raises `ConfigError` naming every unknown key (with the likely one) and missing key.
        """
        known = {item.name: item for item in fields(cls)}
        problems = [
            f"{key}: unknown{did_you_mean(key, known)}" for key in config if key not in known
        ]
        problems += [
            f"{name}: missing"
            for name, item in known.items()
            if item.default is MISSING and name not in config
        ]
        if problems:
            raise ConfigError("the training configuration has wrong keys", items=problems)
        paths = {name: Path(config[name]) for name in PATHS if isinstance(config.get(name), str)}
        return cls(**{**config, **paths})

    @property
    def outputs(self) -> tuple[Path, ...]:
        """Every file that the run writes."""
        made = (self.tokenizer, self.train, self.val) if self.text else ()
        return tuple(path for path in (*made, self.out, self.metrics) if path is not None)


def _problems(config: TrainConfig) -> Iterator[str]:
    for name in PATHS:
        value = getattr(config, name)
        if not isinstance(value, Path) and (value is not None or name in REQUIRED_PATHS):
            yield f"{name} = {value!r}: must be a path"
    if not isinstance(config.model, Mapping):
        yield f"model = {config.model!r}: must be a table"
    for fits, wanted, names in RULES:
        for name in names:
            value = getattr(config, name)
            if value is not None and not fits(value):
                yield f"{name} = {value!r}: must be {wanted}"
    if config.max_steps is None and config.max_seconds is None:
        yield "max_steps, max_seconds: give at least one"
    if config.text is not None and config.val is None:
        yield f"text = {config.text!r}: give val too, it is made from the held-out documents"


def _number(value: Any, low: float, high: float = math.inf) -> bool:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return real and math.isfinite(value) and low <= value <= high


def _integer(value: Any, low: int) -> bool:
    return _number(value, low) and isinstance(value, int)


RULES: tuple[tuple[Callable[[Any], bool], str, tuple[str, ...]], ...] = (
    (
        lambda x: _integer(x, 1),
        "an integer of at least 1",
        ("val_tokens", "validations", "log_every", "max_steps", "sequence", "batch"),
    ),
    (lambda x: _integer(x, 0), "an integer of at least 0", ("warmup_steps", "seed")),
    (
        lambda x: _number(x, 0) and x > 0,
        "a number above 0",
        ("max_seconds", "matrix_lr", "embedding_lr", "scalar_lr", "clip"),
    ),
    (lambda x: _number(x, 0) and x < 1, "at least 0 and below 1", ("beta1", "beta2")),
    (lambda x: _number(x, 0), "a number of at least 0", ("weight_decay",)),
    (lambda x: _number(x, 0, 1), "0 to 1", ("warmdown",)),
    (lambda x: x in DTYPES, f"one of {', '.join(DTYPES)}", ("dtype",)),
    (lambda x: isinstance(x, str), "a name", ("text", "device")),
    (lambda x: isinstance(x, bool), "true or false", ("force",)),
)
"""What a value must be, in words, and the settings that must be so."""
