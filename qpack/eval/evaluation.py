"""A model's whole evaluation: its score, the rows of what is built on it, probes and proofs.

The first figures are those of the model itself in the windows that were asked for. Everything else
is a row on the same tokens, each beside its control (`rows.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qpack.checkpoint import build_model, load, read_model
from qpack.errors import ConfigError, DataError
from qpack.eval.bpb import score
from qpack.eval.checks import CheckSettings
from qpack.eval.coder import Setup
from qpack.eval.network import Network
from qpack.eval.prove import prove
from qpack.eval.registry import contenders, section_of
from qpack.eval.rows import Row, evaluate_rows
from qpack.progress import SILENT, Progress
from qpack.tokenizer import Tokenizer
from qpack.tokens import read_shard


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """The files of an evaluation."""

    model: Path
    """A checkpoint or an artifact."""
    tokens: Path
    tokenizer: Path
    against: Path | None = None
    """The float model, for the KL divergence to it."""

    @property
    def paths(self) -> dict[str, Path]:
        """Those that there are, by role."""
        roles = ("model", "tokens", "tokenizer", "against")
        found = {role: getattr(self, role) for role in roles}
        return {role: path for role, path in found.items() if path is not None}


def evaluate_file(
    inputs: Inputs,
    *,
    window: int = 1024,
    stride: int | None = None,
    isolate: bool = False,
    max_tokens: int | None = None,
    names: Sequence[str] = (),
    tables: Mapping[str, Mapping[str, Any]] | None = None,
    checks: CheckSettings | None = None,
    prove_bytes: int | None = None,
    device: str = "cpu",
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """The score of a model as plain values, and under `rows` that of every predictor of `names`.

    `isolate` begins contexts anew at BOS; `max_tokens` limits the targets; `tables` are settings of
    the names as of `registry.settings_tables`; with `checks` all are probed first; `prove_bytes` of
    the text are written as a file by each and decoded elsewhere, under `proofs`. Raises as
    `read_model`, `registry.build`, `evaluate_rows` and `prove`; `ConfigError` for a KL divergence
    of isolated documents, `DataError` for a text shorter than a window.
    """
    if isolate and inputs.against is not None:
        raise ConfigError(
            "the KL divergence is that of contexts over documents",
            hint="give --against without --isolate-documents",
        )
    tables = tables or {}
    shard, tokenizer = read_shard(inputs.tokens), Tokenizer.load(inputs.tokenizer)
    tokens = shard if max_tokens is None else shard[: max_tokens + 1]
    if len(tokens) <= window:
        raise DataError(
            f"{len(tokens) - 1:,} tokens to score are fewer than a window of {window:,}",
            hint="give a longer text, or a smaller --window",
        )
    checkpoint = read_model(inputs.model)
    checkpoint.check_tokenizer(tokenizer.sha256, inputs.tokenizer)
    network = Network(
        build_model(checkpoint, device=device),
        window=window,
        stride=stride,
        isolate=tokenizer.bos if isolate else None,
    )
    chosen = contenders(network, tokenizer, names, tables, checks=checks)
    rows = list(evaluate_rows(chosen, tokens, tokenizer, checks=checks, progress=progress))
    found = _first_figures(next(row for row in rows if row.name == network.name), network)
    if inputs.against is not None:
        found["kl"] = score(
            network.model,
            np.asarray(tokens),
            tokenizer,
            window=window,
            stride=stride,
            against=load(inputs.against, device=device),
            progress=progress,
        ).kl
    found["rows"] = [row.to_dict() for row in rows]
    if prove_bytes is not None:
        found["proofs"] = [
            _proof(inputs, np.asarray(tokens), setup, prove_bytes, progress)
            for setup in _setups(network, names, tables)
        ]
    return found


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


def _setups(
    network: Network, names: Sequence[str], tables: Mapping[str, Mapping[str, Any]]
) -> Iterator[Setup]:
    """The network, then what each name makes of it, as files record them."""
    for name in (None, *names):
        yield Setup(
            window=network.window,
            stride=network.stride,
            isolate=network.isolate is not None,
            name=name,
            settings={} if name is None else dict(tables.get(section_of(name), {})),
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
