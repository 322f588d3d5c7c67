"""The rate-distortion curve of a checkpoint: what each recipe loses at each budget.

Every point is a whole artifact, encoded and counted; nothing is written but the curve. What is slow
is done once: the checkpoint is calibrated once for all recipes, its Hessians are factored once a
recipe, and the float model is scored once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from qpack.checkpoint import build_model
from qpack.choose import Judge, choose, concerns
from qpack.environment import provenance
from qpack.errors import BudgetError, ConfigError
from qpack.eval.bpb import Score, compare
from qpack.eval.remember import Remembering
from qpack.fit import Fitter
from qpack.inputs import Inputs, read_inputs
from qpack.options import PackOptions
from qpack.pipeline import (
    artifact_metadata,
    calibrate,
    calibration_batches,
    uncalibrated_fitter,
)
from qpack.progress import SILENT, Progress
from qpack.quant.engine import Quantizer
from qpack.quant.plan import make_plan
from qpack.quant.statistics import Statistics
from qpack.recipe import Recipe, read_recipe
from qpack.stages import RunLog
from qpack.tensors import Contents
from qpack.torch_tensors import to_torch

RECIPES = ("default", "record")
"""Ours and the field's."""


def sweep(
    options: PackOptions,
    budgets: Sequence[int],
    *,
    recipes: Sequence[str | Path] = RECIPES,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Fit the checkpoint of `options` to each of `budgets` (bytes) under each recipe, and score it.

    `options` say what to pack and what to calibrate and score it on, and by the suffix of `out`
    what kind of file to count; its budget, recipe and knob are not used. Budgets that a recipe
    cannot reach are in `skipped`, with the reason. Returns a `qpack.sweep/1` document.
    Raises `ConfigError` for requests that make no sense, `BudgetError` if nothing can be reached.
    """
    wanted = _check_request(budgets, recipes)
    log = RunLog(progress)
    inputs = read_inputs(replace(options, budget_bytes=min(budgets), recipe=None, knob=None))
    curves = {name: planned(inputs, recipe) for name, recipe in wanted.items()}
    skipped = _unreachable(curves, budgets, log)
    batches, held_out = calibration_batches(inputs, options, log)
    statistics = calibrate(inputs, batches, options, log)
    judge = Judge(model=inputs.model, held_out=held_out) if held_out else None
    reference = Remembering(inputs.model)
    points: list[dict[str, Any]] = []
    reachable = {
        name: sorted(
            set(budgets) - {row["budget_bytes"] for row in skipped if row["recipe"] == name}
        )
        for name in curves
    }
    choices: dict[str, dict[str, Any] | None] = {}
    total = sum(map(len, reachable.values()))
    with log.stage("sweep", total=total, unit="points") as task:
        for name, own in reachable.items():
            if not own:
                continue
            quantizer = make_quantizer(curves[name], statistics, log)
            fitter, choices[name] = _chosen(curves[name], quantizer, judge, own, log)
            for budget in own:
                task.advance(0, note=f"{name}, {budget:,} B")
                try:
                    point = _point(
                        curves[name], fitter, budget, reference, window=options.window, log=log
                    )
                except BudgetError as error:
                    skipped.append(_skip(name, budget, error, log))
                else:
                    points.append({"recipe": name, "budget_bytes": budget, **point})
                task.advance()
    return {
        "schema": "qpack.sweep/1",
        "model": inputs.checkpoint.name,
        "form": inputs.form,
        "weights": inputs.plan.num_weights,
        "tokens": options.val_tokens,
        "window": options.window,
        "points": points,
        "skipped": skipped,
        "recipes": {name: recipe.describe() for name, recipe in wanted.items()},
        "choices": choices,
        "inputs": inputs.sources,
        "notes": log.notes,
        "warnings": log.warnings,
        **provenance(inputs.device),
    }


def planned(inputs: Inputs, recipe: Recipe) -> Inputs:
    """The same inputs under another recipe."""
    kinds = {entry.name: entry.kind for entry in inputs.plan.tensors}
    tensors, aliases = inputs.checkpoint.tensors, inputs.checkpoint.aliases
    return replace(inputs, plan=make_plan(tensors, kinds, aliases, recipe))


def make_quantizer(inputs: Inputs, statistics: Statistics, log: RunLog) -> Quantizer:
    """The quantizer of the plan of `inputs`: its Hessians are factored here."""
    tensors = inputs.checkpoint.tensors
    return Quantizer(tensors, inputs.plan, statistics, device=inputs.device, progress=log)


def make_fitter(inputs: Inputs, quantizer: Quantizer, log: RunLog) -> Fitter:
    """What fits `quantizer` to any budget, as a file of the kind that `inputs` ask for."""
    return Fitter(
        quantizer,
        inputs.checkpoint.tensors,
        aliases=inputs.checkpoint.aliases,
        metadata=artifact_metadata(inputs.checkpoint, inputs.tokenizer.sha256),
        files=inputs.files,
        form=inputs.form,
        codecs=inputs.codecs,
        progress=log,
    )


def score_contents(
    inputs: Inputs, contents: Contents, reference: nn.Module, *, window: int, log: RunLog
) -> tuple[Score, Score]:
    """(float, decoded) scores of `contents` on the validation tokens; `reference` is the float
    model, or one that remembers it."""
    tensors = {tensor.name: to_torch(tensor) for tensor in contents.tensors}
    decoded = build_model(replace(inputs.checkpoint, tensors=tensors), device=inputs.device)
    return compare(
        reference,
        decoded,
        inputs.validation,
        inputs.tokenizer,
        window=window,
        device=inputs.device,
        progress=log,
    )


def _check_request(budgets: Sequence[int], recipes: Sequence[str | Path]) -> dict[str, Recipe]:
    """Recipes by name."""
    if not budgets or min(budgets) < 1:
        raise ConfigError("a sweep needs budgets, each of at least 1 byte")
    if not recipes:
        raise ConfigError("a sweep needs at least one recipe")
    found = [read_recipe(recipe) for recipe in recipes]
    named = {recipe.name: recipe for recipe in found}
    if len(named) < len(found):
        names = sorted(recipe.name for recipe in found)
        raise ConfigError("recipes with the same name", items=names, hint="rename their files")
    return named


def _unreachable(
    curves: Mapping[str, Inputs], budgets: Sequence[int], log: RunLog
) -> list[dict[str, Any]]:
    """Points that are clearly out of reach, found before anything slow; BudgetError if all are."""
    skipped = []
    last: BudgetError | None = None
    for name, inputs in curves.items():
        for warning in inputs.plan.warnings:
            log.warn(f"{name}: {warning}")
        fitter = uncalibrated_fitter(inputs, log)
        for budget in sorted(set(budgets)):
            try:
                fitter.check_floor(budget)
            except BudgetError as error:
                last = error
                skipped.append(_skip(name, budget, error, log))
    if last is not None and len(skipped) == len(curves) * len(set(budgets)):
        raise last
    return skipped


def _chosen(
    inputs: Inputs,
    quantizer: Quantizer,
    judge: Judge | None,
    budgets: Sequence[int],
    log: RunLog,
) -> tuple[Fitter, dict[str, Any] | None]:
    """The recipe's fitter. Between steps by sensitivity and equal ones, where a recipe leaves that
    open, held-out tokens decide once, at the middle budget."""
    if judge is None or not concerns(inputs.plan):
        return make_fitter(inputs, quantizer, log), None
    middle = budgets[len(budgets) // 2]
    fitter, _, choice = choose(
        quantizer, lambda chosen: make_fitter(inputs, chosen, log), judge, middle, log
    )
    return fitter, choice.describe()


def _skip(name: str, budget: int, error: BudgetError, log: RunLog) -> dict[str, Any]:
    log.warn(f"{name} at {budget:,} B: {error.message}")
    return {"recipe": name, "budget_bytes": budget, "reason": error.message}


def _point(
    inputs: Inputs,
    fitter: Fitter,
    budget: int,
    reference: nn.Module,
    *,
    window: int,
    log: RunLog,
) -> dict[str, Any]:
    """One artifact: how large, and what it loses."""
    begin = time.perf_counter()
    fitted = fitter.fit(budget)
    seconds = time.perf_counter() - begin
    size = fitted.search.num_bytes
    before, after = score_contents(inputs, fitted.contents, reference, window=window, log=log)
    return {
        "bytes": size,
        "bits_per_weight": 8 * size / inputs.plan.num_weights,
        "bpb_float": before.bpb,
        "bpb": after.bpb,
        "gap": after.bpb - before.bpb,
        "kl": after.kl,
        "knob": inputs.plan.recipe.knob.name,
        "value": fitted.search.value,
        "fit_seconds": seconds,
    }
