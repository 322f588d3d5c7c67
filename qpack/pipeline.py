"""The main line: checkpoint and budget in, verified artifact and report out.

read inputs -> calibrate -> quantize and fit to budget -> encode -> decode elsewhere -> score
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qpack import distributed
from qpack.artifact.estimate import tensor_entropy_bytes
from qpack.artifact.writer import write_atomic
from qpack.checkpoint import Checkpoint, build_model
from qpack.choose import Judge
from qpack.eval.bpb import Score, compare
from qpack.fit import Fitter
from qpack.generate import sample_tokens
from qpack.inputs import (
    Inputs,
    batch_rows,
    check_options,
    read_inputs,
    report_paths,
    split_held_out,
    token_batches,
)
from qpack.options import PackOptions
from qpack.produce import Product, Target, produce
from qpack.progress import SILENT, Progress
from qpack.quant.budget import search
from qpack.quant.calibrate import Sensing, collect
from qpack.quant.engine import Quantizer
from qpack.quant.frequencies import recounted
from qpack.quant.statistics import Statistics, save_statistics
from qpack.quant.tune import Tuning, check_tuning
from qpack.report import markdown
from qpack.report.build import build_report
from qpack.stages import RunLog

__all__ = ["PackOptions", "pack_checkpoint", "plan_checkpoint"]


def pack_checkpoint(options: PackOptions, *, progress: Progress = SILENT) -> dict[str, Any]:
    """Pack a checkpoint into `options.out` and return the report.

    Under `torchrun` all ranks calibrate together; rank 0 does the rest and the others return an
    empty report. Raises `QpackError`; on any error no file is left at `options.out`.
    """
    log = RunLog(progress)
    with distributed.session():
        with log.measured("read inputs"):
            check_options(options)
            inputs = read_inputs(options)
            log.note(f"device {inputs.device}: {inputs.device_reason}")
            for warning in inputs.plan.warnings_at(options.budget_bytes):
                log.warn(warning)
            uncalibrated_fitter(inputs, log).check_floor(options.budget_bytes)
        with log.measured("calibrate"):
            batches, held_out = calibration_batches(inputs, options, log)
            tuning = _tuning(inputs, tuning_batches(inputs, batches, options), held_out, options)
            statistics = calibrate(inputs, batches, options, log)
        if distributed.rank() != 0:
            return {}
        product = produce(
            inputs.checkpoint.tensors,
            inputs.plan,
            statistics,
            Target(
                out=options.out,
                form=inputs.form,
                budget_bytes=options.budget_bytes,
                codecs=inputs.codecs,
                force=options.force,
            ),
            aliases=inputs.checkpoint.aliases,
            metadata=artifact_metadata(inputs.checkpoint, inputs.tokenizer.sha256),
            files=inputs.files,
            device=inputs.device,
            log=log,
            judge=Judge(model=inputs.model, held_out=held_out) if held_out else None,
            tuning=tuning,
        )
        with log.measured("score"):
            scores = score_decoded(inputs, product, options, log)
        report = build_report(options, inputs, statistics, product, scores=scores, log=log)
    write_report(report, options.report, force=options.force)
    return report


def plan_checkpoint(options: PackOptions, *, progress: Progress = SILENT) -> dict[str, Any]:
    """What `pack_checkpoint` would do: each tensor's rule and predicted size. Writes nothing.

    Sizes come from the entropy of integers rounded to nearest, without calibration, with the knob
    solved for the budget on that estimate; the real file differs by a few percent.
    """
    log = RunLog(progress)
    check_options(options)
    inputs = read_inputs(options)
    fitter = uncalibrated_fitter(inputs, log)
    knob = inputs.plan.recipe.knob
    found = search(
        knob,
        options.budget_bytes,
        estimate=fitter.estimate,
        encode=fitter.estimate,
        largest=fitter.largest,
        start=inputs.plan.knob_start,
        num_weights=inputs.plan.turned_weights,
    )
    stored = {tensor.name: tensor for tensor in fitter.contents(found.value).tensors}
    rows = [
        {
            "name": entry.name,
            "shape": list(entry.shape),
            "kind": entry.kind,
            "rule": entry.rule.turned(knob.name, found.value).label(),
            "predicted_bytes": tensor_entropy_bytes(stored[entry.name]),
        }
        for entry in inputs.plan.tensors
    ]
    return {
        "schema": "qpack.plan/1",
        "tensors": rows,
        "knob": {"name": knob.name, "value": found.value},
        "predicted_bytes": found.num_bytes,
        "bits_per_weight": 8 * found.num_bytes / inputs.plan.num_weights,
        "budget_bytes": options.budget_bytes,
        "device": {"value": str(inputs.device), "reason": inputs.device_reason},
        "warnings": [
            *inputs.plan.warnings_at(options.budget_bytes),
            *_uncalibrated(inputs),
        ],
    }


def _uncalibrated(inputs: Inputs) -> list[str]:
    """What a plan without calibration cannot know."""
    knob = inputs.plan.recipe.knob.name
    rules = [e.rule.turned(knob, 1) for e in inputs.plan.tensors if e.rule.type == "int"]
    if not any(rule.scale == "rd" for rule in rules):
        return []
    return ["sizes of rd tensors are an estimate: their steps are equal relative ones here"]


def uncalibrated_fitter(inputs: Inputs, log: RunLog) -> Fitter:
    """Sizes by rounding to nearest: near enough for a plan, and for refusing what cannot be."""
    tensors = inputs.checkpoint.tensors
    return Fitter(
        Quantizer(tensors, inputs.plan, None, device=inputs.device),
        tensors,
        aliases=inputs.checkpoint.aliases,
        metadata=artifact_metadata(inputs.checkpoint, inputs.tokenizer.sha256),
        files=inputs.files,
        form=inputs.form,
        codecs=inputs.codecs,
        progress=log,
    )


def calibration_batches(
    inputs: Inputs, options: PackOptions, log: RunLog
) -> tuple[list[Tensor], list[Tensor]]:
    """(batches to calibrate on, batches held out from it): of a shard, or of the model's own text.

    Both empty where statistics are given without a shard.
    """
    if inputs.calibration is not None:
        batches = token_batches(inputs.calibration, options.window)
    elif inputs.statistics is not None:
        return [], []
    else:
        rows = sample_tokens(
            inputs.model,
            num_tokens=options.calib_tokens,
            sequence=options.window,
            seed=options.seed,
            progress=log,
        )
        batches = list(torch.split(rows, batch_rows(options.window)))
    return split_held_out(batches, options.window)


def tuning_batches(inputs: Inputs, batches: Sequence[Tensor], options: PackOptions) -> list[Tensor]:
    """Batches to tune on: those of calibration, and more of their shard."""
    return [*batches, *token_batches(inputs.tuning, options.window)]


def calibrate(
    inputs: Inputs, batches: Sequence[Tensor], options: PackOptions, log: RunLog
) -> Statistics:
    """Statistics from a file, or of `batches`; written where asked.

    Frequencies of tokens are those of this run's shard, and not in the file: another run may score
    what this one counts.
    """
    statistics = inputs.statistics
    if statistics is None:
        statistics = collect(
            inputs.model,
            batches,
            fingerprint=inputs.checkpoint_sha256,
            source={key: str(value) for key, value in inputs.sources["calibration"].items()},
            sensing=Sensing.of_tokens(batches, options.sens_tokens, seed=options.seed),
            device=inputs.device,
            progress=log,
        )
        if options.save_stats is not None and distributed.rank() == 0:
            save_statistics(options.save_stats, statistics, force=options.force)
            log.note(f"wrote {options.save_stats}")
    elif inputs.counts is not None:
        log.note(f"statistics of {options.stats}; how often tokens occur is counted in the shard")
    if inputs.counts is None:
        return statistics
    return recounted(statistics, torch.from_numpy(inputs.counts))


def _tuning(
    inputs: Inputs, batches: Sequence[Tensor], held_out: Sequence[Tensor], options: PackOptions
) -> Tuning | None:
    """What tuning is to do, if it is asked for."""
    if not options.tune:
        return None
    tuning = Tuning(
        model=inputs.model,
        batches=batches,
        held_out=held_out,
        steps=options.tune,
        seed=options.seed,
    )
    check_tuning(tuning)
    return tuning


def score_decoded(
    inputs: Inputs, product: Product, options: PackOptions, log: RunLog
) -> tuple[Score, Score]:
    """(float, decoded) scores on the held-out tokens; the decoded weights are the artifact's."""
    return compare(
        inputs.model,
        decoded_model(inputs.checkpoint, product, inputs),
        inputs.validation,
        inputs.tokenizer,
        window=options.window,
        device=inputs.device,
        progress=log,
    )


def decoded_model(checkpoint: Checkpoint, product: Product, inputs: Inputs) -> nn.Module:
    """The model with the tensors that the artifact's own decoder wrote."""
    return build_model(replace(checkpoint, tensors=product.decoded), device=inputs.device)


def artifact_metadata(checkpoint: Checkpoint, tokenizer_sha256: str) -> dict[str, str]:
    """What the artifact says about itself."""
    known = replace(checkpoint, tokenizer_sha256=tokenizer_sha256)
    return {**known.metadata, "model_name": checkpoint.name}


def write_report(report: dict[str, Any], path: Path | None, *, force: bool) -> None:
    """Write JSON and Markdown where asked."""
    for target in report_paths(path):
        text = (
            json.dumps(report, indent=1) + "\n"
            if target.suffix != ".md"
            else markdown.render(report)
        )
        write_atomic(target, text.encode(), force=force)
