"""Everything a pack needs, read and checked together before the first slow step."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qpack.artifact.contents import description_problems
from qpack.artifact.minify import pack_code
from qpack.artifact.writer import form_of
from qpack.checkpoint import Checkpoint, build_model, check_finite, fingerprint, read_model
from qpack.codec.base import Codec
from qpack.codec.registry import check_trellis, resolve
from qpack.device import choose
from qpack.errors import (
    CalibrationError,
    CheckpointError,
    ConfigError,
    DataError,
    OutputExistsError,
)
from qpack.options import PackOptions
from qpack.quant.plan import Plan, classify, make_plan
from qpack.quant.statistics import Statistics, load_statistics
from qpack.recipe import read_recipe, recipe_path
from qpack.tensors import EmbeddedFile
from qpack.tokenizer import Tokenizer
from qpack.tokens import check_vocab, count_tokens, read_shard, sha256_file

HELD_OUT_TOKENS = 8_192
"""Most calibration tokens that nothing is fitted to: they judge what was."""

BATCH_TOKENS = 4_096
"""Tokens a calibration batch: large enough for matrix products; larger ones make the allocator
return every activation to the system and fetch it again, page by page."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Inputs:
    """Checked inputs of one pack."""

    checkpoint: Checkpoint
    checkpoint_sha256: str
    """of the tensors, not of the file around them"""
    model: nn.Module
    plan: Plan
    tokenizer: Tokenizer
    statistics: Statistics | None
    """given ready-made"""
    calibration: NDArray[np.uint16] | None
    """None: the model writes its own text, or statistics are given without a shard"""
    tuning: NDArray[np.uint16]
    """tokens of the calibration shard that tuning uses as well: neither calibrated on nor scored;
    none where it is not asked for"""
    validation: NDArray[np.uint16]
    """targets + 1 tokens"""
    counts: NDArray[np.int64] | None
    """(vocabulary,): tokens of the calibration shard, but for those that are scored"""
    codecs: tuple[Codec, ...]
    form: str
    files: tuple[EmbeddedFile, ...]
    code_rows: tuple[dict[str, object], ...]
    device: torch.device
    device_reason: str
    sources: dict[str, dict[str, object]]
    """name, SHA-256 and counts of each input, for the report"""


def read_inputs(options: PackOptions) -> Inputs:
    """Read and check every input of `options`, outputs apart; nothing slow, nothing written.

    Raises the `QpackError` of the first kind of trouble found, naming all its offenders.
    """
    form = form_of(options.out)
    codecs = resolve(options.codecs, stdlib_only=options.stdlib_codecs)
    device, reason = choose(options.device)
    recipe = read_recipe(options.recipe)
    recipe = recipe.with_knob(options.knob) if options.knob else recipe
    check_trellis(codecs, recipe.trellis)
    checkpoint = read_model(options.checkpoint)
    check_finite(checkpoint.tensors)
    tokenizer = Tokenizer.load(options.tokenizer)
    checkpoint.check_tokenizer(tokenizer.sha256, options.tokenizer)
    model = build_model(checkpoint, device=device)
    tokenizer.check_model(int(model.vocab_size))  # type: ignore[arg-type]
    plan = make_plan(checkpoint.tensors, classify(model), checkpoint.aliases, recipe)
    digest = fingerprint(checkpoint.tensors)
    statistics = None
    if options.stats is not None:
        statistics = load_statistics(options.stats, fingerprint=digest, device=device)
    tokens = _tokens(options, tokenizer, statistics)
    files, code_rows = pack_code(options.code)
    if options.embed_tokenizer:
        name = options.tokenizer.name
        data = options.tokenizer.read_bytes()
        files = (*files, EmbeddedFile(name=name, role="tokenizer", data=data))
    _check_description(checkpoint, files)
    return Inputs(
        checkpoint=checkpoint,
        checkpoint_sha256=digest,
        model=model,
        plan=plan,
        tokenizer=tokenizer,
        statistics=statistics,
        calibration=tokens.calibration,
        tuning=tokens.tuning,
        validation=tokens.validation,
        counts=tokens.counts,
        codecs=codecs,
        form=form,
        files=files,
        code_rows=tuple(code_rows),
        device=device,
        device_reason=reason,
        sources=_sources(options, digest, tokenizer, statistics, tokens.first),
    )


def check_options(options: PackOptions) -> None:
    """Raise for numbers out of range, and for outputs that exist or have no folder to go to."""
    problems = [
        f"{name} = {value}: expected at least {least}"
        for name, value, least in (
            ("budget", options.budget_bytes, 1),
            ("calib-tokens", options.calib_tokens, 1),
            ("sens-tokens", options.sens_tokens, 1),
            ("tune", options.tune, 0),
            ("tune-tokens", options.tune_tokens, 1),
            ("val-tokens", options.val_tokens, 1),
            ("window", options.window, 1),
        )
        if value < least
    ]
    if options.stats is not None and options.save_stats is not None:
        problems.append("give --stats or --save-stats, not both")
    if problems:
        raise ConfigError("options out of range", items=problems)
    if options.report is not None and options.report.suffix == ".md":
        raise ConfigError(
            f"--report {options.report}: give the JSON file; the Markdown is written beside it",
            hint=f"--report {options.report.with_suffix('.json')}",
        )
    asked = (options.out, options.save_stats, *report_paths(options.report))
    recipe = recipe_path(options.recipe) if isinstance(options.recipe, str | Path) else None
    inputs = (options.checkpoint, options.tokenizer, options.calib, options.val, recipe)
    check_outputs(
        [path for path in asked if path is not None],
        inputs=[path for path in (*inputs, options.stats, *options.code) if path is not None],
        force=options.force,
    )


def check_outputs(outputs: Sequence[Path], *, inputs: Sequence[Path], force: bool) -> None:
    """Raise unless every output can be written and none takes the place of another file in use."""
    places = [path.resolve() for path in outputs]
    taken = {path.resolve() for path in inputs}
    clashes = [
        str(path) for i, path in enumerate(outputs) if places[i] in taken or places[i] in places[:i]
    ]
    if clashes:
        raise ConfigError("outputs that are inputs too, or given twice", items=clashes)
    folders = {path.parent for path in outputs}
    missing = sorted(str(folder) for folder in folders if not folder.is_dir())
    if missing:
        raise ConfigError("no such folder to write to", items=missing, hint="create it first")
    closed = sorted(str(folder) for folder in folders if not os.access(folder, os.W_OK))
    if closed:
        raise ConfigError("folders that cannot be written to", items=closed)
    existing = [str(path) for path in outputs if os.path.lexists(path)]
    if existing and not force:
        raise OutputExistsError("the output exists", items=existing, hint="--force overwrites")


def report_paths(report: Path | None) -> tuple[Path, ...]:
    """The JSON report and the Markdown beside it."""
    return () if report is None else (report, report.with_suffix(".md"))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tokens:
    calibration: NDArray[np.uint16] | None
    tuning: NDArray[np.uint16]
    validation: NDArray[np.uint16]
    counts: NDArray[np.int64] | None
    first: int
    """index of the first validation token in its shard"""


def _tokens(options: PackOptions, tokenizer: Tokenizer, statistics: Statistics | None) -> _Tokens:
    """The parts of the shards that are used, for one thing each; and how often each token is in
    what is not scored.

    Disjoint even when they come from one shard, also when that was calibrated on earlier.
    """
    shard = None
    if options.calib is not None:
        shard = read_shard(options.calib)
        check_vocab(shard, tokenizer.vocab_size, options.calib)
        _check_length(shard, options)
    calibration = None if shard is None else shard[: options.calib_tokens]
    source = options.val if options.val is not None else options.calib
    if source is None:
        raise DataError(
            "self-calibration reads no text, so there is none to score",
            hint="give a validation shard with --val",
        )
    tokens = read_shard(source)
    check_vocab(tokens, tokenizer.vocab_size, source)
    first = 0
    digest = sha256_file(source)
    same = options.calib is not None and digest == sha256_file(options.calib)
    if same:
        first = options.calib_tokens
    if statistics is not None and statistics.source.get("sha256") == digest:
        first = max(first, int(statistics.source.get("tokens", 0)))
    needed = options.val_tokens + 1
    held_out = tokens[first:]
    if len(held_out) < needed:
        raise DataError(
            f"{source}: {len(held_out):,} tokens left to score, {needed:,} needed",
            hint="lower --val-tokens, or give another shard with --val",
        )
    tuning = np.empty(0, np.uint16)
    if shard is not None and options.tune:
        start = first + needed if same else options.calib_tokens
        tuning = shard[start : start + max(0, options.tune_tokens - options.calib_tokens)]
    counts = None
    if shard is not None:
        counts = count_tokens(shard, tokenizer.vocab_size)
        if same:
            counts -= count_tokens(held_out[:needed], tokenizer.vocab_size)
    return _Tokens(
        calibration=calibration,
        tuning=tuning,
        validation=held_out[:needed],
        counts=counts,
        first=first,
    )


def _check_description(checkpoint: Checkpoint, files: Sequence[EmbeddedFile]) -> None:
    """Raise for names that the artifact could not hold."""
    problems = description_problems(
        list(checkpoint.tensors),
        aliases=checkpoint.aliases,
        metadata=checkpoint.metadata,
        files=files,
    )
    if problems:
        raise CheckpointError("contents that an artifact cannot hold", items=problems)


def _check_length(shard: NDArray[np.uint16], options: PackOptions) -> None:
    if len(shard) < options.calib_tokens:
        raise CalibrationError(
            f"{options.calib}: {len(shard):,} tokens, {options.calib_tokens:,} needed",
            hint="lower --calib-tokens, or give a longer shard",
        )
    if options.calib_tokens < options.window:
        raise CalibrationError(
            f"{options.calib_tokens:,} calibration tokens are less than one window of "
            f"{options.window:,}",
            hint="raise --calib-tokens or lower --window",
        )


def batch_rows(window: int) -> int:
    """Windows a calibration batch."""
    return max(1, BATCH_TOKENS // window)


def split_held_out(batches: Sequence[Tensor], window: int) -> tuple[list[Tensor], list[Tensor]]:
    """(calibration batches, held-out ones): the last eighth of the windows is held out.

    At most `HELD_OUT_TOKENS`; nothing where there are fewer than two windows.
    """
    rows = [row[None] for batch in batches for row in batch]
    wanted = min(HELD_OUT_TOKENS, sum(row.numel() for row in rows) // 8)
    count = min(max(1, wanted // window), len(rows) - 1)
    kept, held_out = rows[: len(rows) - count], rows[len(rows) - count :]
    return _joined(kept), _joined(held_out)


def _joined(rows: Sequence[Tensor]) -> list[Tensor]:
    """Batches of rows of one length, in order."""
    batches: list[Tensor] = []
    for length, same in groupby(rows, key=lambda row: row.shape[1]):
        batches += torch.split(torch.cat(list(same)), batch_rows(length))
    return batches


def token_batches(tokens: NDArray[np.uint16], window: int) -> list[Tensor]:
    """Calibration batches (B, window) int64: consecutive windows; the rest is one short row."""
    whole = len(tokens) // window * window
    data = torch.from_numpy(tokens.astype(np.int64))
    windows = torch.split(data[:whole].reshape(-1, window), batch_rows(window))
    batches = [batch for batch in windows if len(batch)]
    if whole < len(tokens):
        batches.append(data[whole:][None])
    return batches


def _sources(
    options: PackOptions,
    digest: str,
    tokenizer: Tokenizer,
    statistics: Statistics | None,
    first: int,
) -> dict[str, dict[str, object]]:
    sources: dict[str, dict[str, object]] = {
        "checkpoint": {"name": options.checkpoint.name, "tensors_sha256": digest},
        "tokenizer": {"name": options.tokenizer.name, "sha256": tokenizer.sha256},
    }
    if statistics is not None:
        sources["calibration"] = {**statistics.source, "statistics": str(options.stats)}
    elif options.calib is None:
        sources["calibration"] = {"name": "self", "tokens": options.calib_tokens}
    else:
        sources["calibration"] = {
            "name": options.calib.name,
            "sha256": sha256_file(options.calib),
            "tokens": options.calib_tokens,
        }
    source = options.val if options.val is not None else options.calib
    if source is not None:
        sources["validation"] = {
            "name": source.name,
            "sha256": sha256_file(source),
            "first_token": first,
        }
    return sources
