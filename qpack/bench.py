"""Benchmark tables of a checkpoint: codecs on its symbols, and bit widths on its quality."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from qpack.artifact.contents import Group, all_integers, integers_by_role
from qpack.artifact.encode import encode
from qpack.artifact.integers import matrices
from qpack.artifact.reader import read
from qpack.artifact.writer import file_bytes
from qpack.checkpoint import Checkpoint, build_model, check_finite, read_model
from qpack.codec import filters
from qpack.codec.base import ByteCodec
from qpack.codec.entropy import zero_order_bits
from qpack.codec.integers import Rans
from qpack.codec.registry import integer_codec, resolve
from qpack.codec.select import Choices
from qpack.environment import provenance
from qpack.errors import ArtifactError, BudgetError, CheckpointError
from qpack.eval.bpb import compare
from qpack.fit import Fitter
from qpack.inputs import Inputs, read_inputs
from qpack.options import PackOptions
from qpack.pipeline import artifact_metadata, calibrate, calibration_batches
from qpack.progress import SILENT, Progress
from qpack.quant.engine import Quantizer
from qpack.quant.plan import classify, make_plan
from qpack.quant.statistics import Statistics
from qpack.recipe import Recipe, builtin_recipe
from qpack.stages import RunLog
from qpack.tensors import Contents
from qpack.torch_tensors import to_torch

RECORD_K = 12.85
"""The record systems' clip: the rate at which codecs are compared."""

SAMPLE_BYTES = 2 << 20
"""A stream's best filter for a codec is chosen on this much of it."""


def bench_codecs(
    path: Path, *, codecs: Sequence[str] | None = None, progress: Progress = SILENT
) -> dict[str, Any]:
    """Every codec on every integer stream, one at a time: bytes and speed.

    The codec of integers is measured on all of them, as it is used: in one stream.
    An artifact is measured on the integers that it holds; a checkpoint on int6 integers at
    k = 12.85, rounded to nearest (no calibration: the entropy differs from GPTQ's by about 1 %).
    """
    contents, origin = _integers_of(path)
    parts = integers_by_role(contents)
    if not any(part.stream.array.size for part in parts):
        raise CheckpointError(f"{path}: holds no integers to try codecs on")
    resolved = resolve(codecs, stdlib_only=False)
    chosen = [codec for codec in resolved if isinstance(codec, ByteCodec)]
    total = sum(part.stream.array.nbytes for part in parts) * len(chosen)
    rows: list[dict[str, Any]] = []
    with progress.stage("codecs", total=total, unit="B") as task:
        for part in parts:
            for codec in chosen:
                rows.append(_codec_row(part, codec))
                task.advance(part.stream.array.nbytes, note=f"{codec.name} {part.stream.key}")
    totals = _totals(rows)
    coder = integer_codec(resolved)
    if coder is not None:
        totals.append(_integer_row(all_integers(contents), coder))
    return {
        "schema": "qpack.bench-codecs/1",
        "model": path.name,
        "integers": origin,
        "rows": rows + totals,
        "entropy_bits_per_weight": math.fsum(zero_order_bits(p.stream.array) for p in parts)
        / sum(p.stream.array.size for p in parts),
        **provenance(torch.device("cpu")),
    }


def bench_bits(
    checkpoint: Path,
    *,
    calib: Path,
    tokenizer: Path,
    calib_tokens: int = 65_536,
    val: Path | None = None,
    val_tokens: int = 32_768,
    budget_bytes: int | None = None,
    device: str = "auto",
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """int5, int6 and int8 rows (absmax), the record recipe, and both knobs at a budget if given.

    Matrices change; embeddings and small tensors stay as that recipe has them. Every row is
    really encoded as a `.qpk`.
    """
    options = PackOptions(
        checkpoint=checkpoint,
        budget_bytes=budget_bytes or 1,
        out=Path("bench.qpk"),
        tokenizer=tokenizer,
        calib=calib,
        calib_tokens=calib_tokens,
        val=val,
        val_tokens=val_tokens,
        recipe="record",
        device=device,
    )
    log = RunLog(progress)
    inputs = read_inputs(options)
    batches, _ = calibration_batches(inputs, options, log)
    statistics = calibrate(inputs, batches, options, log)
    table = _BitsTable(inputs, statistics, log)
    rows = [table.row(f"int{b}", "qmax", 2 ** (b - 1) - 1) for b in (5, 6, 8)]
    rows.append(table.row(f"int6, k = {RECORD_K}", "k", RECORD_K))
    skipped = []
    for knob in ("qmax", "k") if budget_bytes is not None else ():
        try:
            rows.append(table.fitted(knob, budget_bytes or 0))
        except BudgetError as error:  # most models are above a tight budget at qmax 31 already
            log.warn(f"no row for the knob {knob}: {error.message}")
            skipped.append({"knob": knob, "reason": error.message})
    return {
        "schema": "qpack.bench-bits/1",
        "model": checkpoint.name,
        "rows": rows,
        "skipped": skipped,
        "inputs": inputs.sources,
        **provenance(inputs.device),
    }


def _integers_of(path: Path) -> tuple[Contents, str]:
    try:
        return read(path), "of the artifact"
    except ArtifactError:
        checkpoint = read_model(path)
    check_finite(checkpoint.tensors)
    quantizer = round_to_nearest(checkpoint, builtin_recipe("record"))
    integers = quantizer.quantize(RECORD_K)
    contents = Contents(tensors=tuple(integers.values()), aliases={}, metadata={})
    return contents, f"int6, k = {RECORD_K}, rounded to nearest"


def round_to_nearest(checkpoint: Checkpoint, recipe: Recipe) -> Quantizer:
    """A quantizer of `checkpoint` that needs no calibration."""
    kinds = classify(build_model(checkpoint))
    plan = make_plan(checkpoint.tensors, kinds, checkpoint.aliases, recipe)
    return Quantizer(checkpoint.tensors, plan, None)


def _integer_row(whole: Group, coder: Rans) -> dict[str, Any]:
    """The codec of integers on all of them, on one core."""
    stream = whole.stream
    members = matrices(stream)
    begin = time.perf_counter()
    coded = coder.encode_matrices(members, stream.trellis)
    middle = time.perf_counter()
    decoded, _ = coder.decode_matrices(coded, stream.matrices, members[0].dtype)
    end = time.perf_counter()
    assert all((d == m).all() for d, m in zip(decoded, members, strict=True))
    return {
        "stream": "all",
        "codec": coder.name,
        "filter": "",
        "elements": int(stream.array.size),
        "bytes": len(coded),
        "bits_per_weight": 8 * len(coded) / stream.array.size,
        "encode_mb_s": stream.array.nbytes / 1e6 / max(middle - begin, 1e-9),
        "decode_mb_s": stream.array.nbytes / 1e6 / max(end - middle, 1e-9),
    }


def _codec_row(part: Group, codec: ByteCodec) -> dict[str, Any]:
    """One codec with its best filter on one stream, on one core."""
    stream = part.stream
    forms = {f: filters.forward(stream.array, f, stream.matrices) for f in stream.filters}
    best = min(forms, key=lambda f: (len(codec.encode(forms[f][:SAMPLE_BYTES])), f))
    data = forms[best]
    begin = time.perf_counter()
    coded = codec.encode(data)
    middle = time.perf_counter()
    decoded = codec.decode(coded, decoded_bytes=len(data))
    end = time.perf_counter()
    assert decoded == data
    return {
        "stream": stream.key,
        "codec": codec.name,
        "filter": filters.NAMES[best],
        "elements": int(stream.array.size),
        "bytes": len(coded),
        "bits_per_weight": 8 * len(coded) / stream.array.size,
        "encode_mb_s": len(data) / 1e6 / max(middle - begin, 1e-9),
        "decode_mb_s": len(data) / 1e6 / max(end - middle, 1e-9),
    }


def _totals(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """All streams together, a row a codec."""
    totals = []
    for codec in dict.fromkeys(row["codec"] for row in rows):
        own = [row for row in rows if row["codec"] == codec]
        elements, size = (sum(row[key] for row in own) for key in ("elements", "bytes"))
        speeds = {
            key: sum(row["elements"] for row in own)
            / sum(row["elements"] / row[key] for row in own)
            for key in ("encode_mb_s", "decode_mb_s")
        }
        totals.append(
            {
                "stream": "all",
                "codec": codec,
                "filter": "",
                "elements": elements,
                "bytes": size,
                "bits_per_weight": 8 * size / elements,
                **speeds,
            }
        )
    return totals


@dataclass
class _BitsTable:
    """Quantize, encode and score one setting after another on the same statistics."""

    inputs: Inputs
    statistics: Statistics
    log: RunLog
    choices: Choices | None = None
    fitters: dict[str, Fitter] = field(default_factory=dict)
    """by knob: factors are kept from row to row"""

    def row(self, name: str, knob: str, value: float) -> dict[str, Any]:
        """The matrices at one knob value."""
        contents = self._fitter(knob).contents(value)
        encoded = encode(
            contents, codecs=self.inputs.codecs, choices=self.choices, progress=self.log
        )
        self.choices = encoded.choices
        return self._score(name, knob, value, contents, file_bytes(encoded, "qpk"))

    def fitted(self, knob: str, budget_bytes: int) -> dict[str, Any]:
        """The matrices at the knob value that a search finds for the budget."""
        found = self._fitter(knob).fit(budget_bytes)
        value, size = found.search.value, file_bytes(found.encoded, "qpk")
        name = f"Auto-QMax: {knob} = {value:.4g} for {budget_bytes:,} B"
        return self._score(name, knob, value, found.contents, size)

    def _fitter(self, knob: str) -> Fitter:
        if knob in self.fitters:
            return self.fitters[knob]
        inputs = self.inputs
        recipe = inputs.plan.recipe.with_knob(knob)
        tensors = inputs.checkpoint.tensors
        kinds = {entry.name: entry.kind for entry in inputs.plan.tensors}
        plan = make_plan(tensors, kinds, inputs.checkpoint.aliases, recipe)
        self.fitters[knob] = Fitter(
            Quantizer(tensors, plan, self.statistics, device=inputs.device),
            tensors,
            aliases=inputs.checkpoint.aliases,
            metadata=artifact_metadata(inputs.checkpoint, inputs.tokenizer.sha256),
            files=(),
            form="qpk",
            codecs=inputs.codecs,
            progress=self.log,
        )
        return self.fitters[knob]

    def _score(
        self, name: str, knob: str, value: float, contents: Contents, size: int
    ) -> dict[str, Any]:
        inputs = self.inputs
        decoded = replace(
            inputs.checkpoint, tensors={t.name: to_torch(t) for t in contents.tensors}
        )
        reference, score = compare(
            inputs.model,
            build_model(decoded, device=inputs.device),
            inputs.validation,
            inputs.tokenizer,
            device=inputs.device,
            progress=self.log,
        )
        return {
            "name": name,
            "knob": knob,
            "qmax": int(value) if knob == "qmax" else 31,
            "value": value,
            "bytes": size,
            "bits_per_weight": 8 * size / inputs.plan.num_weights,
            "bpb": score.bpb,
            "gap": score.bpb - reference.bpb,
            "kl": score.kl,
        }
