"""Packing any `torch.nn.Module` from Python: its weights, your batches, a byte budget.

report = qpack.pack(module, calibration=batches, budget=100_000, out="model.pyz")
qpack.load_into(fresh_module, "model.pyz")
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qpack.artifact.reader import read
from qpack.artifact.writer import form_of
from qpack.checkpoint import check_finite, fingerprint
from qpack.choose import Judge
from qpack.codec.registry import check_trellis, resolve
from qpack.errors import CheckpointError, ConfigError
from qpack.inputs import check_outputs
from qpack.produce import Product, Target, produce
from qpack.progress import SILENT, Progress
from qpack.quant.calibrate import Sensing, collect
from qpack.quant.fisher import Likelihood
from qpack.quant.plan import Plan, classify, make_plan, untied
from qpack.quant.tune import Tuning, check_tuning
from qpack.recipe import Recipe, default_recipe, read_recipe
from qpack.report.build import product_sections, run_sections
from qpack.stages import RunLog
from qpack.torch_tensors import check_dtypes, to_torch

HELD_OUT_SHARE = 8
"""One of so many calibration batches is held out."""


def pack(  # noqa: PLR0913  one parameter an option
    module: nn.Module,
    *,
    calibration: Iterable[Tensor],
    budget: int,
    out: str | Path,
    recipe: Recipe | str | Path | None = None,
    knob: str | None = None,
    validation: Iterable[Tensor] | None = None,
    likelihood: Likelihood = "gaussian",
    tune: int = 0,
    codecs: Sequence[str] | None = None,
    metadata: Mapping[str, str] | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Pack `module` into the file `out` of at most `budget` bytes; returns the report.

    `calibration` and `validation` are batches that the module takes as its one argument, first
    axis the examples; without `validation` the output error is measured on the calibration
    batches. `likelihood` says what outputs are: plain values (`gaussian`), whose squared error
    counts, or logits along the last axis (`categorical`), whose distribution counts; the report
    then has the mean KL of a place as well. `tune` is the number of steps for which row steps,
    column steps and small tensors are trained once the integers fit; the last eighth of the
    batches judges it, so give at least eight. Runs on the module's device and leaves the module as
    it was. `metadata` is stored.
    Raises `QpackError`: everything is checked before the first slow step.
    """
    log = RunLog(progress)
    path = Path(out)
    calibration = _as_batches("calibration", calibration)
    validation = calibration if validation is None else _as_batches("validation", validation)
    tensors, aliases = untied(module)
    _check_request(path, budget, force=force)
    plan = _make_plan(module, tensors, aliases, recipe, knob)
    chosen = resolve(codecs, stdlib_only=False)
    check_trellis(chosen, plan.recipe.trellis)
    for warning in plan.warnings_at(budget):
        log.warn(warning)
    device = next((tensor.device for tensor in tensors.values()), torch.device("cpu"))
    with log.measured("calibrate"):
        digest = fingerprint(tensors)
        # Few batches are all calibrated on; of many, the last are kept to judge by.
        apart = len(calibration) // HELD_OUT_SHARE
        fitted, held_out = (
            calibration[: len(calibration) - apart],
            calibration[-apart or len(calibration) :],
        )
        tuning = None
        if tune:
            tuning = Tuning(
                model=module, batches=fitted, held_out=held_out, steps=tune, likelihood=likelihood
            )
            check_tuning(tuning)
        statistics = collect(
            module,
            fitted,
            fingerprint=digest,
            sensing=Sensing(likelihood=likelihood),
            device=device,
            progress=log,
        )
    product = produce(
        tensors,
        plan,
        statistics,
        Target(out=path, form=form_of(path), budget_bytes=budget, codecs=chosen, force=force),
        aliases=aliases,
        metadata={"model_name": type(module).__name__, **(metadata or {})},
        device=device,
        log=log,
        judge=Judge(model=module, held_out=held_out, likelihood=likelihood),
        tuning=tuning,
    )
    with log.measured("score"):
        error = output_error(module, product, validation, device)
        kl = None
        if likelihood == "categorical":
            judge = Judge(model=module, held_out=validation, likelihood=likelihood)
            kl = judge.distances([product.fitted.contents])[0]
    return {
        **product_sections(product, budget, plan),
        "bpb_float": None,
        "bpb_decoded": None,
        "gap": None,
        "kl": kl,
        "quality": {"relative_output_error": error, "batches": len(validation)},
        "config": {"recipe": plan.recipe.describe()},
        "inputs": {"checkpoint": {"name": type(module).__name__, "tensors_sha256": digest}},
        **run_sections(device, "the module's device", log),
    }


def load_into(module: nn.Module, path: str | Path) -> nn.Module:
    """Load the decoded weights of an artifact into `module`, in place, and return it.

    Raises `ArtifactError` for a rejected file, `CheckpointError` with every missing, unexpected or
    mis-shaped tensor.
    """
    contents = read(Path(path))
    tensors = {tensor.name: to_torch(tensor) for tensor in contents.tensors}
    _load(module, tensors | {name: tensors[to] for name, to in contents.aliases.items()})
    return module


def output_error(
    module: nn.Module, product: Product, batches: Sequence[Tensor], device: torch.device
) -> float:
    """`sum |y - y'|^2 / sum |y|^2` of the decoded module's outputs y' over `batches`."""
    decoded = copy.deepcopy(module)
    aliases = product.fitted.contents.aliases
    _load(decoded, product.decoded | {n: product.decoded[to] for n, to in aliases.items()})
    wrong = total = 0.0
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        decoded.eval()
        with torch.no_grad():
            for batch in batches:
                y, other = (_first(m(batch.to(device))) for m in (module, decoded))
                wrong += float((y - other).double().square().sum())
                total += float(y.double().square().sum())
    finally:
        for part, training in modes:
            part.training = training
    return wrong / total if total else 0.0


def _as_batches(name: str, batches: Iterable[Tensor]) -> list[Tensor]:
    listed = [] if isinstance(batches, Tensor) else list(batches)
    if isinstance(batches, Tensor) or not all(isinstance(batch, Tensor) for batch in listed):
        raise ConfigError(
            f"{name} must be an iterable of tensors, one a batch",
            hint="of one batch [batch], of pairs [inputs for inputs, _ in batches]",
        )
    return listed


def _check_request(path: Path, budget: int, *, force: bool) -> None:
    form_of(path)
    if not isinstance(budget, int) or budget < 1:
        raise ConfigError(f"budget = {budget!r}: expected a whole number of bytes, at least 1")
    check_outputs([path], inputs=[], force=force)


def _make_plan(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    aliases: Mapping[str, str],
    recipe: Recipe | str | Path | None,
    knob: str | None,
) -> Plan:
    """The checked plan of `module` under a recipe given as a value, a file, or not at all."""
    check_dtypes(tensors)
    check_finite(tensors)
    if recipe is None:
        recipe = default_recipe()
    elif not isinstance(recipe, Recipe):
        recipe = read_recipe(recipe)
    return make_plan(tensors, classify(module), aliases, recipe.with_knob(knob) if knob else recipe)


def _load(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    expected = module.state_dict()
    problems = [f"{name}: missing" for name in expected.keys() - tensors.keys()]
    problems += [f"{name}: unexpected" for name in tensors.keys() - expected.keys()]
    problems += [
        f"{name}: shape {tuple(tensors[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if problems:
        raise CheckpointError("the tensors do not match the module", items=sorted(problems))
    module.load_state_dict(dict(tensors))


def _first(output: Any) -> Tensor:
    """A module's output, or the first of several."""
    while isinstance(output, tuple | list):
        output = output[0]
    if not isinstance(output, Tensor):
        raise ConfigError(f"the module returns {type(output).__name__}, not a tensor")
    return output
