"""The `[pack]` table of a run: checked before training, made into options after it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qpack.codec.registry import check_trellis, resolve
from qpack.device import choose
from qpack.errors import ConfigError
from qpack.options import PackOptions
from qpack.packing import PackSection
from qpack.progress import Progress
from qpack.recipe import read_recipe
from qpack.sections import Section, read_section
from qpack.tokens import read_shard
from qpack.training import Checked, Trained

NAME = "pack"
WINDOW = 1_024
"""Tokens of context where training does not say how long its sequences were."""


class _Packed(Section):
    """So that messages say `pack.budget`, as the trainers' own do."""

    pack: PackSection


def check_packing(tables: Mapping[str, Any]) -> PackSection:
    """The `[pack]` table of a configuration.

    Raises `ConfigError` where it is missing or cannot be used, naming everything that is wrong with
    its values, its recipe, its codecs and its files; `SetupError` for a missing codec or device.
    """
    if NAME not in tables:
        raise ConfigError(
            "pack: missing; it says how small the model has to be",
            hint="add [pack] with budget = 16_000_000, or --set pack.budget=16000000",
        )
    section = read_section(_Packed, {NAME: tables[NAME]}, what="[pack]").pack
    missing = [f"pack.code: {path}" for path in section.code if not path.is_file()]
    if missing:
        raise ConfigError("no such file", items=missing)
    recipe = read_recipe(section.recipe)
    recipe = recipe.with_knob(section.knob) if section.knob else recipe
    codecs = resolve(section.codecs, stdlib_only=section.stdlib_codecs)
    check_trellis(codecs, recipe.trellis)
    choose(section.device)
    return section


def decisive(section: PackSection, trained: Trained) -> Checked:
    """What decides the artifact and the report of a trained model."""
    settings = section.model_dump(mode="json", exclude={"recipe", "code", "device", "knob"})
    recipe = read_recipe(section.recipe)
    recipe = recipe.with_knob(section.knob) if section.knob else recipe
    shown = recipe.describe()
    shown.pop("name")
    files = {
        "checkpoint": trained.checkpoint,
        "tokenizer": trained.tokenizer,
        "calibration": trained.calibration,
    }
    if trained.validation is not None:
        files["validation"] = trained.validation
    files |= {f"pack.code.{i}": path for i, path in enumerate(section.code)}
    return Checked(
        settings={NAME: {**settings, "window": window(section, trained), "recipe": shown}},
        files=files,
    )


def window(section: PackSection, trained: Trained) -> int:
    """Tokens of context that the model is calibrated and scored with."""
    return section.window or trained.sequence or WINDOW


def pack_options(
    section: PackSection,
    trained: Trained,
    folder: Path,
    *,
    command: tuple[str, ...],
    progress: Progress,
) -> PackOptions:
    """Options of the pack of a trained model into `folder`, whose earlier artifact it replaces.

    No more tokens are asked for than there are; a note says so.
    """
    calib_tokens, val_tokens = section.calib_tokens, section.val_tokens
    there = len(read_shard(trained.calibration))
    if trained.validation is not None:
        calib_tokens = min(calib_tokens, there)
        left = len(read_shard(trained.validation)) - 1
    else:
        left = there - calib_tokens - 1
    if 0 < left < val_tokens:
        progress.note(f"{left:,} held-out targets are there: all are scored")
        val_tokens = left
    return PackOptions(
        checkpoint=trained.checkpoint,
        budget_bytes=section.budget,
        out=folder / f"model.{section.form}",
        tokenizer=trained.tokenizer,
        calib=trained.calibration,
        calib_tokens=calib_tokens,
        sens_tokens=section.sens_tokens,
        tune=section.tune,
        tune_tokens=section.tune_tokens,
        val=trained.validation,
        val_tokens=val_tokens,
        window=min(window(section, trained), calib_tokens),
        recipe=section.recipe,
        knob=section.knob,
        codecs=section.codecs,
        stdlib_codecs=section.stdlib_codecs,
        code=section.code,
        embed_tokenizer=section.embed_tokenizer,
        device=section.device,
        force=True,
        report=folder / "report.json",
        command=command,
    )
