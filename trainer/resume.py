"""Checkpoints that a run goes on from, bit for bit: `checkpoint/` in the run's folder.

`state.json` names the tensor file that belongs to it, with its SHA-256 and the run's fingerprint;
it is replaced in one step, after the tensors are on disk and before older ones go, so a crash at
any moment leaves a checkpoint whole. A run is resumed only with the configuration and the data that
it began with, but for how it is watched: every difference is named.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from torch import Tensor

from qpack.artifact.unpack import safetensors_pieces
from qpack.artifact.writer import write_atomic, write_pieces
from qpack.checkpoint import read_safetensors
from qpack.errors import CheckpointError, ConfigError
from qpack.recipe import read_recipe
from qpack.tensors import Contents
from qpack.tokens import sha256_file
from qpack.torch_tensors import to_raw

from .config import WORDS, TrainConfig

FOLDER, STATE = "checkpoint", "state.json"
SCHEMA = "qpack.training-state/1"
PATH_KEYS = ("train", "val", "tokenizer", "text", "val_text", "workers")
"""Keys of `[data]` that say where or how fast, not what: contents are compared instead."""
WATCHING_KEYS = (
    "log_every", "checkpoint_every", "validations", "val_tokens", "tensorboard", "accumulate",
)  # fmt: skip
"""Keys of `[loop]` that change how a run is watched or cut into passes, not what it computes."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Saved:
    """A checkpoint of training."""

    tensors: dict[str, Tensor]
    """Parameters, optimizer state, averages and losses not logged yet, by prefixed name."""
    record: dict[str, Any]
    """Steps, seconds, and what else is not a tensor."""


def settings(config: TrainConfig) -> dict[str, Any]:
    """What decides the weights, as tables of JSON values; files count by content, not by name. Of
    `[pack]` only the grid, and only where training uses it."""
    left_out: dict[str, Any] = {"data": set(PATH_KEYS), "loop": set(WATCHING_KEYS), "pack": True}
    tables = config.model_dump(mode="json", exclude=left_out)
    tables["model"] = config.model_config_of_gpt().to_dict()
    named = [str(path) for path in (*config.data.text, *config.data.val_text)]
    tables["data"]["text"] = [word for word in named if word in WORDS]
    if config.pack is not None and (config.qat.enabled or config.average.ship == "best"):
        recipe = read_recipe(config.pack.recipe)
        recipe = recipe.with_knob(config.pack.knob) if config.pack.knob else recipe
        shown = recipe.describe()
        shown.pop("name")
        used = {"calib_tokens", "window"}
        if config.average.ship == "best":
            used |= {"budget", "form", "embed_tokenizer"}
        tables["pack"] = config.pack.model_dump(mode="json", include=used) | {"recipe": shown}
    return tables


def fingerprint(config: TrainConfig, files: Iterable[Path]) -> dict[str, str]:
    """What must be equal to resume: every setting, and the SHA-256 of every data file, by name."""
    values = {key: json.dumps(value) for key, value in _flat(settings(config))}
    paths = list(files)
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(sha256_file, paths))
    data = {
        f"data file {i} ({path.name})": digest
        for i, (path, digest) in enumerate(zip(paths, digests, strict=True))
    }
    return values | data


def save(folder: Path, saved: Saved, known: Mapping[str, str]) -> None:
    """Write a checkpoint into `folder`, the run's, with the fingerprint `known`."""
    place = folder / FOLDER
    place.mkdir(exist_ok=True)
    path = _free(place, int(saved.record["steps"]))
    contents = Contents(
        tensors=tuple(to_raw(name, tensor) for name, tensor in sorted(saved.tensors.items())),
        aliases={},
        metadata={},
    )
    write_pieces(path, safetensors_pieces(contents), force=True)
    state = {
        "schema": SCHEMA,
        "tensors": path.name,
        "sha256": sha256_file(path),
        **saved.record,
        "fingerprint": dict(known),
    }
    write_atomic(place / STATE, (json.dumps(state, indent=1) + "\n").encode("ascii"), force=True)
    for old in place.glob("step_*.safetensors"):
        if old != path:
            old.unlink()


def _free(place: Path, steps: int) -> Path:
    """A name that no checkpoint has: the file that `state.json` names now must stay whole."""
    names = (place / f"step_{steps:09d}_{i}.safetensors" for i in count())
    return next(path for path in names if not path.exists())


def saved_step(folder: Path) -> int | None:
    """Steps done in the checkpoint of `folder`; None where there is none."""
    path = folder / FOLDER / STATE
    return int(_state(path)["steps"]) if path.exists() else None


def load(folder: Path, known: Mapping[str, str]) -> Saved:
    """The checkpoint of `folder`, which must have the fingerprint `known`.

    Raises `ConfigError` that names every setting and file that differs, `CheckpointError` where
    there is no checkpoint or it is damaged.
    """
    path = folder / FOLDER / STATE
    if not path.exists():
        raise CheckpointError(
            f"{folder}: no checkpoint to resume from", hint="start it without --resume"
        )
    state = _state(path)
    differences = list(_differences(state["fingerprint"], known))
    if differences:
        raise ConfigError(
            "this run was started with another configuration or other data",
            items=differences,
            hint="resume with what it was started with, or start anew in another folder",
        )
    tensors_path = path.parent / str(state["tensors"])
    if not tensors_path.exists() or sha256_file(tensors_path) != state["sha256"]:
        raise CheckpointError(
            f"{tensors_path}: missing or damaged", hint="start anew without --resume, with --force"
        )
    tensors, _ = read_safetensors(tensors_path)
    return Saved(tensors=tensors, record=state)


def _state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text("ascii"))
        texts, numbers = ("tensors", "sha256"), ("steps", "seconds")
        if (
            state["schema"] == SCHEMA
            and isinstance(state["fingerprint"], dict)
            and all(isinstance(state[key], str) for key in texts)
            and all(isinstance(state[key], int | float) for key in numbers)
            and "loss" in state
        ):
            return dict(state)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise CheckpointError(f"{path}: not the state of a run", hint="start anew, with --force")


def _differences(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    for key in dict.fromkeys([*old, *new]):
        if old.get(key) != new.get(key):
            yield f"{key}: {_short(old.get(key))} -> {_short(new.get(key))}"


def _short(value: str | None) -> str:
    if value is None:
        return "absent"
    return f"{value[:12]}..." if len(value) == 64 else value


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
