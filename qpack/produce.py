"""From weights and statistics to a verified file: quantize, fit, encode, decode elsewhere, write.

The part of the pipeline that checkpoints and bare modules share.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qpack.artifact.writer import ledger, render, write_atomic
from qpack.codec.base import Codec
from qpack.errors import VerifyError
from qpack.fit import Fitted, Fitter
from qpack.proof import check_decoded, decode_elsewhere
from qpack.quant.engine import Quantizer
from qpack.quant.plan import Plan
from qpack.quant.statistics import Statistics
from qpack.stages import RunLog
from qpack.tensors import EmbeddedFile


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Product:
    """A written artifact and everything known about how it came to be."""

    path: Path
    form: str
    num_bytes: int
    """`stat` of the written file"""
    sha256: str
    fitted: Fitted
    quantizer: Quantizer
    ledger: tuple[tuple[str, int], ...]
    decoded: dict[str, Tensor]
    """what the file's own decoder gave in a fresh process"""
    decoded_sha256: str
    """of the safetensors file that it wrote"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """The file to write."""

    out: Path
    form: str
    """`qpk` or `pyz`"""
    budget_bytes: int
    codecs: Sequence[Codec]
    force: bool = False


def produce(
    tensors: Mapping[str, Tensor],
    plan: Plan,
    statistics: Statistics | None,
    target: Target,
    *,
    aliases: Mapping[str, str],
    metadata: Mapping[str, str],
    files: Sequence[EmbeddedFile] = (),
    device: torch.device | str,
    log: RunLog,
) -> Product:
    """Pack `tensors` under `plan` into `target.out`, at most `target.budget_bytes` long.

    The file is decoded by its own decoder in a fresh process and compared bit by bit before it
    takes its name, so nothing unverified is ever left there.
    Raises `BudgetError`, `VerifyError`, `OutputExistsError`, `ResourceError`.
    """
    with log.measured("prepare"):
        quantizer = Quantizer(tensors, plan, statistics, device=device, progress=log)
        kinds = {entry.name: entry.kind for entry in plan.tensors}
        for name, reason in quantizer.fallbacks.items():
            tell = log.note if kinds[name] == "embedding" else log.warn
            tell(f"{name}: {reason}")
        for name, factor in quantizer.factors.items():
            if factor.U is not None and factor.retries:
                log.note(f"{name}: not positive definite; damped by {factor.damping:g} instead")
        dead = sum(factor.num_dead for factor in quantizer.factors.values())
        if dead:
            log.note(f"{dead:,} input columns were zero throughout the calibration")
    with log.measured("fit to budget"):
        fitter = Fitter(
            quantizer,
            tensors,
            aliases=aliases,
            metadata=metadata,
            files=files,
            form=target.form,
            codecs=target.codecs,
            progress=log,
        )
        fitted = fitter.fit(target.budget_bytes)
        data = render(fitted.encoded, form=target.form)
    with log.measured("decode elsewhere"), tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / f"model.{target.form}"
        trial.write_bytes(data)
        decoded, decoded_sha256 = decode_elsewhere(trial)
        check_decoded(decoded, fitted.contents)
    if len(data) != fitted.search.num_bytes or len(data) > target.budget_bytes:
        raise VerifyError(
            f"{target.out.name}: {len(data):,} B rendered, {fitted.search.num_bytes:,} B measured, "
            f"{target.budget_bytes:,} B allowed"
        )
    write_atomic(target.out, data, force=target.force)
    num_bytes = target.out.stat().st_size
    return Product(
        path=target.out,
        form=target.form,
        num_bytes=num_bytes,
        sha256=hashlib.sha256(data).hexdigest(),
        fitted=fitted,
        quantizer=quantizer,
        ledger=tuple(ledger(fitted.encoded, target.form)),
        decoded=decoded,
        decoded_sha256=decoded_sha256,
    )
