"""The report as one JSON-able document, `qpack.report/1`: everything a run knows about its file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qpack.artifact.encode import Encoded
from qpack.artifact.layout import MAJOR, MINOR
from qpack.codec import filters
from qpack.codec.registry import codecs
from qpack.codec.select import Trial
from qpack.environment import provenance
from qpack.eval.bpb import Score
from qpack.inputs import Inputs
from qpack.options import PackOptions
from qpack.produce import Product
from qpack.quant import grid
from qpack.quant.candidates import symbol_limit
from qpack.quant.engine import Quantizer
from qpack.quant.plan import Plan, TensorPlan
from qpack.quant.statistics import Statistics
from qpack.rule import Rule
from qpack.stages import RunLog
from qpack.tensors import QuantizedTensor, StoredTensor, decode_steps

SCHEMA = "qpack.report/1"


def build_report(
    options: PackOptions,
    inputs: Inputs,
    statistics: Statistics,
    product: Product,
    *,
    scores: tuple[Score, Score],
    log: RunLog,
) -> dict[str, Any]:
    """The report of one pack; every number in it was measured in this run."""
    reference, decoded = scores
    with log.measured("report"):
        body = product_sections(product, options.budget_bytes, inputs.plan)
    sources = dict(inputs.sources)
    sources["validation"] = {**sources["validation"], "tokens": decoded.tokens}
    sources["calibration"] = {**sources["calibration"], "inputs_seen": _most(statistics)}
    return {
        **body,
        "bpb_float": reference.bpb,
        "bpb_decoded": decoded.bpb,
        "gap": decoded.bpb - reference.bpb,
        "kl": decoded.kl,
        "quality": {
            "tokens": decoded.tokens,
            "bytes": decoded.bytes,
            "window": decoded.window,
            "stride": decoded.stride,
            "float": {"nats": reference.nats, "bpb": reference.bpb},
            "decoded": {"nats": decoded.nats, "bpb": decoded.bpb},
            "gap": decoded.bpb - reference.bpb,
            "kl": decoded.kl,
        },
        "command": list(options.command),
        "config": _config(options, inputs.plan),
        "seed": options.seed,
        "inputs": sources,
        "code": list(inputs.code_rows),
        **run_sections(inputs.device, inputs.device_reason, log),
    }


def product_sections(product: Product, budget_bytes: int, plan: Plan) -> dict[str, Any]:
    """What is known of the file alone, whatever it was scored on."""
    total = plan.num_weights
    quantized = sum(e.num_weights for e in plan.tensors if e.rule.type == "int")
    found, knob = product.fitted.search, plan.recipe.knob
    low, high = knob.bounds
    return {
        "schema": SCHEMA,
        "path": str(product.path),
        "artifact_bytes": product.num_bytes,
        "budget_bytes": budget_bytes,
        "budget_use": product.num_bytes / budget_bytes,
        "bits_per_weight": 8 * product.num_bytes / total,
        "sha256": product.sha256,
        "weights": {
            "total": total,
            "quantized": quantized,
            "turned": plan.turned_weights,
        },
        "knob": {
            "name": knob.name,
            "value": found.value,
            "low": low,
            "high": high,
            "reason": found.reason,
        },
        "probes": [
            {
                "knob": knob.name,
                "value": probe.value,
                "kind": probe.kind,
                "bytes": probe.num_bytes,
                "fits": probe.fits,
                "seconds": probe.seconds,
            }
            for probe in found.probes
        ],
        "choice": None if product.choice is None else product.choice.describe(),
        "tuning": None if product.tuning is None else product.tuning.describe(),
        "ledger": [{"part": part, "bytes": size} for part, size in product.ledger],
        "tensors": tensor_rows(product, plan),
        "streams": stream_rows(product.fitted.encoded, product.fitted.trials),
        "fallbacks": [
            {"tensor": name, "reason": reason}
            for name, reason in sorted(product.quantizer.fallbacks.items())
        ],
        "decoder": {
            "form": product.form,
            "verified": True,
            "process": "fresh",
            "sha256_weights": product.decoded_sha256,
        },
    }


def run_sections(device: torch.device, reason: str, log: RunLog) -> dict[str, Any]:
    """Versions, machine, stages and warnings of a run."""
    return {
        **provenance(device),
        "format_version": f"{MAJOR}.{MINOR}",
        "device": {"value": str(device), "reason": reason},
        "stages": [asdict(row) for row in log.rows],
        "notes": list(log.notes),
        "warnings": list(log.warnings),
    }


def stream_rows(encoded: Encoded, trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """One row a stream: the codec that won, and every trial that decided it."""
    tried: dict[str, list[dict[str, Any]]] = {}
    for trial in trials:
        row = {"codec": trial.codec, "filter": trial.filter, "input_bytes": trial.input_bytes}
        row |= {"bytes": trial.bytes, "seconds": trial.seconds, "screened": trial.screened}
        tried.setdefault(trial.stream, []).append(row)
    names = {codec.id: name for name, codec in codecs().items()}
    return [
        {
            "name": part.stream.key,
            "elements": int(part.stream.array.size),
            "dtype": part.dtype,
            "codec": names[info.codec],
            "filter": filters.NAMES[info.filter],
            "raw_bytes": info.decoded_bytes,
            "bytes": info.stored_bytes,
            "trials": tried.get(part.stream.key, []),
        }
        for part, info in zip(encoded.groups, encoded.layout.streams, strict=True)
    ]


def tensor_rows(product: Product, plan: Plan) -> list[dict[str, Any]]:
    """One row a tensor: its rule, its bytes, its error beside round-to-nearest's."""
    sizes = dict(product.ledger)
    stored = {tensor.name: tensor for tensor in product.fitted.contents.tensors}
    return [
        _tensor_row(entry, stored[entry.name], sizes.get(entry.name, 0), product)
        for entry in plan.tensors
    ]


def _tensor_row(
    entry: TensorPlan, stored: StoredTensor, size: int, product: Product
) -> dict[str, Any]:
    quantizer = product.quantizer
    rule = quantizer.rule_at(entry, product.fitted.search.value)
    row: dict[str, Any] = {
        "name": entry.name,
        "shape": list(entry.shape),
        "kind": entry.kind,
        "rule": rule.label(),
        "bytes": size,
        "bits_per_weight": 8 * size / max(1, entry.num_weights),
    }
    if isinstance(stored, QuantizedTensor):
        row |= _quantized_columns(entry.name, stored, rule, quantizer)
    return row


def _quantized_columns(
    name: str, stored: QuantizedTensor, rule: Rule, quantizer: Quantizer
) -> dict[str, Any]:
    W = quantizer.weights[name]
    steps = steps_of(stored).to(W.device)  # (rows, cols) or (rows, 1)
    limit = symbol_limit(rule)
    # A trellis has half the step that scalar integers of the same rate would have.
    scalar = 2.0 * steps if stored.trellis else steps
    nearest = (W / scalar).round_().clamp_(-limit, limit).mul_(scalar)
    decoded = torch.from_numpy(stored.dequantize()).to(W.device).reshape(W.shape)
    factor = quantizer.factors.get(name)
    return {
        "qmax": rule.qmax if rule.clips else None,
        "trellis": stored.trellis,
        "mean_step": float(torch.exp2(grid.precise(steps).log2().mean())),
        "max_abs": int(abs(stored.integers.astype(np.int32)).max()),
        "clipped": int((W.abs() > (limit + 0.5) * steps).sum()),
        "error": float(grid.precise(quantizer.errors(name, decoded)).sum()),
        "error_rtn": float(grid.precise(quantizer.errors(name, nearest)).sum()),
        "predicted_nats": quantizer.predicted_nats(name, decoded),
        "floored_rows": quantizer.floored.get(name),
        "damping": factor.damping if factor else None,
        "damping_retries": factor.retries if factor else None,
        "dead_columns": factor.num_dead if factor else None,
        "fallback": quantizer.fallbacks.get(name),
    }


def steps_of(stored: QuantizedTensor) -> Tensor:
    """Every weight's step: (rows, cols), or (rows, 1) where columns have none of their own."""
    rows = decode_steps(stored.row_codes, stored.octave)[:, None]
    if stored.col_codes is None:
        return torch.from_numpy(rows)
    return torch.from_numpy(rows * decode_steps(stored.col_codes, stored.octave)[None, :])


def _most(statistics: Statistics) -> int:
    """Input vectors behind the best-fed Hessian."""
    counts: Iterable[int] = statistics.counts.values()
    return max(counts, default=0)


def _config(options: PackOptions, plan: Plan) -> dict[str, Any]:
    """The resolved options and the recipe with every default filled in."""

    return {
        "recipe": plan.recipe.describe(),
        "calib_tokens": options.calib_tokens,
        "val_tokens": options.val_tokens,
        "window": options.window,
        "codecs": list(options.codecs) if options.codecs else None,
        "stdlib_codecs": options.stdlib_codecs,
        "code": [path.name for path in options.code],
        "embed_tokenizer": options.embed_tokenizer,
        "device": options.device,
    }
