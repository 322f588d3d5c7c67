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
from qpack.choose import Choice, Judge, choose, concerns
from qpack.codec.base import Codec
from qpack.errors import VerifyError
from qpack.fit import Fitted, Fitter
from qpack.proof import check_decoded, decode_elsewhere
from qpack.quant.engine import Quantizer
from qpack.quant.plan import Plan
from qpack.quant.statistics import Statistics
from qpack.quant.tune import Tuning
from qpack.stages import RunLog
from qpack.tensors import EmbeddedFile
from qpack.tuned import TuningRecord, fit_tuned


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
    choice: Choice | None
    """None: there was nothing to choose, or nothing to judge by"""
    tuning: TuningRecord | None
    """None: it was not asked for"""
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
    judge: Judge | None = None,
    tuning: Tuning | None = None,
) -> Product:
    """Pack `tensors` under `plan` into `target.out`, at most `target.budget_bytes` long.

    A `judge` decides between steps by sensitivity and equal ones, where the recipe lets it.
    With `tuning` steps and float tensors are trained once the integers fit.
    The file is decoded by its own decoder in a fresh process and compared bit by bit before it
    takes its name, so nothing unverified is ever left there.
    Raises `BudgetError`, `CalibrationError`, `VerifyError`, `OutputExistsError`, `ResourceError`.
    """
    with log.measured("prepare"):
        quantizer = Quantizer(tensors, plan, statistics, device=device, progress=log)
        _tell_oddities(quantizer, log)
    with log.measured("fit to budget"):

        def make_fitter(chosen: Quantizer) -> Fitter:
            return Fitter(
                chosen,
                tensors,
                aliases=aliases,
                metadata=metadata,
                files=files,
                form=target.form,
                codecs=target.codecs,
                progress=log,
            )

        choice = None
        if judge is not None and judge.held_out and concerns(plan):
            fitter, quantizer, choice = choose(
                quantizer, make_fitter, judge, target.budget_bytes, log
            )
        else:
            fitter = make_fitter(quantizer)
        fitted = fitter.fit(target.budget_bytes)
    tuned = None
    if tuning is not None:
        with log.measured("tune"):
            budget_bytes, form, codecs = target.budget_bytes, target.form, target.codecs
            fitted, tuned = fit_tuned(
                fitter, fitted, tuning, budget_bytes, form=form, codecs=codecs, progress=log
            )
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
        choice=choice,
        tuning=tuned,
        ledger=tuple(ledger(fitted.encoded, target.form)),
        decoded=decoded,
        decoded_sha256=decoded_sha256,
    )


def _tell_oddities(quantizer: Quantizer, log: RunLog) -> None:
    """What the user should know of tensors that were not treated as their rule says."""
    kinds = {entry.name: entry.kind for entry in quantizer.plan.tensors}
    for name, reason in quantizer.fallbacks.items():
        tell = log.note if kinds[name] == "embedding" else log.warn
        tell(f"{name}: {reason}")
    for name, factor in quantizer.factors.items():
        if factor.U is not None and factor.retries:
            log.note(f"{name}: not positive definite; damped by {factor.damping:g} instead")
    dead = sum(factor.num_dead for factor in quantizer.factors.values())
    if dead:
        log.note(f"{dead:,} input columns were zero throughout the calibration")
    floored = sum(quantizer.floored.values())
    if floored:
        log.note(f"{floored:,} rows that hardly matter keep a share of their tensor's sensitivity")
