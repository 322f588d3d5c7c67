"""A model's whole evaluation: its score, the rows of what is built on it, probes and proofs.

The first figures are those of the model itself in the windows that were asked for. Everything else
is a row on the same tokens, each beside its control (`rows.py`). The float model, where there is
one, is a row beside the model: its gain is what packing has lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qpack.checkpoint import build_model, load, read_model
from qpack.distributed import rank, session, world_size
from qpack.errors import ConfigError, DataError, OtherRankError, QpackError
from qpack.eval.checks import CheckSettings
from qpack.eval.coder import WINDOW_MAX, Setup
from qpack.eval.network import Network
from qpack.eval.prove import prove
from qpack.eval.reference import Reference
from qpack.eval.registry import (
    ADAPTATIONS,
    MIXTURES,
    beside,
    check_settings,
    contenders,
    section_of,
)
from qpack.eval.rows import Row, evaluate_rows
from qpack.progress import SILENT, Progress
from qpack.tokenizer import Tokenizer
from qpack.tokens import read_shard

IDLE_NATS = 1e-4
"""Scores nearer than that differ by rounding alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """The files of an evaluation."""

    model: Path
    """A checkpoint or an artifact."""
    tokens: Path
    tokenizer: Path
    against: Path | None = None
    """The float model, for its row and the KL divergence to it."""

    @property
    def paths(self) -> dict[str, Path]:
        """Those that there are, by role."""
        roles = ("model", "tokens", "tokenizer", "against")
        found = {role: getattr(self, role) for role in roles}
        return {role: path for role, path in found.items() if path is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What an evaluation is to find out."""

    window: int = 1024
    stride: int | None = None
    """Tokens between windows; None: the window."""
    isolate: bool = False
    """Contexts begin anew at BOS."""
    max_tokens: int | None = None
    """Targets to score; None: all."""
    names: Sequence[str] = ()
    """Mixtures and adaptations, as of `registry.py`: a row each."""
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Their settings, as of `registry.settings_tables`."""
    checks: CheckSettings | None = None
    """Probe every predictor first."""
    prove_bytes: int | None = None
    """Of the text, to be written as a file by each predictor and decoded elsewhere."""

    def problems(self) -> Iterator[str]:
        """What contradicts itself."""
        if self.stride is not None and self.stride > self.window:
            yield (
                f"a stride of {self.stride:,} would leave out tokens between windows of"
                f" {self.window:,}"
            )
        if self.prove_bytes is not None and self.window > WINDOW_MAX:
            yield f"a file is read in windows of at most {WINDOW_MAX:,}: prove in smaller ones"
        if self.prove_bytes is not None and world_size() > 1:
            yield "a file is written by one process: prove it without torchrun"


def evaluate_file(
    inputs: Inputs, wanted: Wanted, *, device: str = "cpu", progress: Progress = SILENT
) -> dict[str, Any] | None:
    """The score of a model as plain values, `rows` of all predictors, and `proofs` if wanted.

    Under `torchrun` ranks share windows and training, and all but the first return None. Raises as
    `read_model`, `registry.build`, `evaluate_rows` and `prove`; `ConfigError` for what contradicts
    itself, `DataError` for a text shorter than a window.
    """
    with session():
        try:
            found = _evaluate(inputs, wanted, device, progress if rank() == 0 else SILENT)
        except QpackError as error:
            if rank() == 0:
                raise
            raise OtherRankError(error.exit_code) from error  # the first one tells it
        return found if rank() == 0 else None


def _evaluate(inputs: Inputs, wanted: Wanted, device: str, progress: Progress) -> dict[str, Any]:
    problems = list(wanted.problems())
    if problems:
        raise ConfigError("this cannot be evaluated together", items=problems)
    check_settings(wanted.names, wanted.tables)
    shard, tokenizer = read_shard(inputs.tokens), Tokenizer.load(inputs.tokenizer)
    tokens = shard if wanted.max_tokens is None else shard[: wanted.max_tokens + 1]
    if len(tokens) <= wanted.window:
        raise DataError(
            f"{len(tokens) - 1:,} tokens to score are fewer than a window of {wanted.window:,}",
            hint="give a longer text, or a smaller --window",
        )
    checkpoint = read_model(inputs.model)
    checkpoint.check_tokenizer(tokenizer.sha256, inputs.tokenizer)
    network = Network(
        build_model(checkpoint, device=device),
        window=wanted.window,
        stride=wanted.stride,
        isolate=tokenizer.bos if wanted.isolate else None,
    )
    chosen = contenders(network, tokenizer, wanted.names, wanted.tables, checks=wanted.checks)
    reference = None
    if inputs.against is not None:
        reference = Reference(load(inputs.against, device=device), network)
        chosen.insert(1, beside(network, reference))
    rows = list(evaluate_rows(chosen, tokens, tokenizer, checks=wanted.checks, progress=progress))
    found = _first_figures(next(row for row in rows if row.name == network.name), network)
    if reference is not None:
        found["kl"] = reference.kl
    found["rows"] = [row.to_dict() for row in rows]
    found["probed_tokens"] = (
        None if wanted.checks is None else min(len(tokens), wanted.checks.num_tokens)
    )
    found["warnings"] = [*_unprobed(wanted), *_idle(rows)]
    for warning in found["warnings"]:
        progress.warn(warning)
    if wanted.prove_bytes is not None:
        found["proofs"] = [
            _proof(inputs, np.asarray(tokens), setup, wanted.prove_bytes, progress)
            for setup in _setups(wanted)
        ]
    return found


def _unprobed(wanted: Wanted) -> Iterator[str]:
    """Of each predictor of another package that is believed unseen."""
    for name in wanted.names:
        if wanted.checks is None and name not in (*MIXTURES, *ADAPTATIONS):
            yield (
                f"{name}: of another package, and not probed; --check looks whether its score is "
                "that of a code"
            )


def _idle(rows: Sequence[Row]) -> Iterator[str]:
    """Of each row that is its control's again."""
    known = {row.name: row.scores for row in rows}
    for row in rows:
        if row.control is not None:
            gap = float(np.abs(row.scores - known[row.control.name]).max())
            if gap < IDLE_NATS:
                yield (
                    f"{row.name}: no score differs from that of {row.control.name} by {IDLE_NATS:g}"
                    " nats; what learns in chunks learns nothing from a text shorter than one"
                )


def _first_figures(row: Row, network: Network) -> dict[str, Any]:
    """What the document says of the model itself."""
    return {
        "nats": row.nats,
        "bytes": row.bytes,
        "tokens": row.tokens,
        "bpb": row.bpb,
        "kl": None,
        "window": network.window,
        "stride": network.stride,
        "seconds": row.seconds,
    }


def _setups(wanted: Wanted) -> Iterator[Setup]:
    """The network, then what each name makes of it, as files record them."""
    for name in (None, *wanted.names):
        yield Setup(
            window=wanted.window,
            stride=wanted.stride,
            isolate=wanted.isolate,
            name=name,
            settings={} if name is None else dict(wanted.tables.get(section_of(name), {})),
        )


def _proof(
    inputs: Inputs,
    tokens: NDArray[np.uint16],
    setup: Setup,
    num_bytes: int,
    progress: Progress,
) -> dict[str, Any]:
    """What a file written by the predictor of `setup` shows. Raises where it does not agree."""
    proof = prove(
        inputs.model,
        tokens,
        setup,
        tokenizer=inputs.tokenizer,
        num_bytes=num_bytes,
        progress=progress,
    )
    proof.check()
    return {**asdict(proof), "agrees": proof.agrees}
