"""A whole run in one folder: train -> pack -> report, with any trainer.

`run.json` records every stage that is done, and what it was done from; a resumed run goes on after
the last one. Under `torchrun` all ranks call `run` together: they train together and calibrate
together, and rank 0 decides, writes and packs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qpack import distributed
from qpack.artifact.writer import write_atomic
from qpack.errors import ConfigError, OutputExistsError, QpackError, ResourceError
from qpack.pipeline import pack_checkpoint, write_report
from qpack.progress import SILENT, Progress
from qpack.runs.document import Document
from qpack.runs.packing import check_packing, decisive, pack_options
from qpack.runs.record import FILE, Decision, Identity, Record, identify
from qpack.training import Checked, Trained, TrainRequest

TRAIN, PACK, REPORT = "train", "pack", "report"
"""The stages, in order."""
KEPT = (FILE, "data")
"""Nothing of a run that has begun: the record, and data that another run could use."""
ARTIFACTS = ("model.pyz", "model.qpk", "report.json", "report.md")
"""What is made of the model; stale once training begins again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a run came to."""

    trained: Trained
    training: dict[str, Any] | None
    """The training stage as a document (`qpack.trained/1`); None on ranks other than the first."""
    report: dict[str, Any] | None
    """Of the pack, with a section `training`; None after training alone, and on other ranks."""


@dataclass(slots=True)
class _Job:
    """A run under way."""

    document: Document
    folder: Path
    resume: bool
    force: bool
    command: tuple[str, ...]
    progress: Progress
    record: Record | None = None
    """on rank 0 alone"""
    before: bytes | None = None
    """what `run.json` was; None: not there"""

    @property
    def recorded(self) -> Record:
        """The record; only rank 0 may ask."""
        assert self.record is not None
        return self.record


def run(
    document: Document,
    folder: Path,
    *,
    pack: bool = True,
    resume: bool = False,
    force: bool = False,
    command: tuple[str, ...] = (),
    progress: Progress = SILENT,
) -> Outcome:
    """Train as `document` says in `folder` and, unless `pack` is False, pack and report.

    Makes `model.safetensors`, `model.pyz` (or `.qpk`), `report.json`, `report.md` and `run.json`.
    `resume` goes on where an earlier run in the folder stopped: finished stages are skipped, and a
    configuration or data that has changed is refused with every difference named. `force` starts
    anew; with `resume` it runs again only what has changed. Raises `QpackError`, for everything
    that can be known before training before it.
    """
    job = _Job(document, folder, resume, force, command, progress)
    with distributed.session():
        start: Decision
        start, identity = distributed.on_first(lambda: _begin(job, pack=pack))
        trained = _train(job, start, identity)
        if pack:
            _pack(job, trained)
        if distributed.rank() != 0:
            return Outcome(trained=trained, training=None, report=None)
        report = _report(job, trained) if pack else None
        return Outcome(trained=trained, training=_described(job, trained), report=report)


def _begin(job: _Job, *, pack: bool) -> tuple[Decision, Identity]:
    """Check everything, make the folder, decide how training starts. Rank 0 alone."""
    document = job.document
    request = TrainRequest(config=document.tables, folder=job.folder)
    checks: list[Callable[[], Any]] = [lambda: document.trainer.check(request)]
    if pack:
        checks.append(lambda: check_packing(document.tables))
    checked: Checked = _together(checks)[0]
    anew = not (job.resume and (job.folder / FILE).exists())
    if anew:
        _check_folder(job)
    if not pack and PACK in document.tables:
        job.progress.note("[pack] is for `qpack run`: training alone does not pack")
    identity = identify({"trainer": document.name, **checked.settings}, checked.files)
    about = {"source": document.source, "trainer": document.name, "config": document.tables}
    job.record = Record(job.folder, about) if anew else Record.read(job.folder, about)
    decision = job.record.decide(TRAIN, identity, force=job.force)
    if job.resume:
        job.progress.note(_told(job.folder, decision, anew=anew))
    if decision != "skip":
        path = job.folder / FILE
        job.before = path.read_bytes() if path.exists() else None
        job.record.begin(TRAIN, identity)
    return decision, identity


def _together(checks: list[Callable[[], Any]]) -> list[Any]:
    """Results of all checks, or one error with the problems of all that fail."""
    results, failures = [], []
    for check in checks:
        try:
            results.append(check())
        except QpackError as error:
            failures.append(error)
    if len(failures) > 1:
        lines = {line: None for error in failures for line in (error.items or (error.message,))}
        raise ConfigError(
            "the run cannot start",
            items=lines,
            hint="; ".join(dict.fromkeys(error.hint for error in failures if error.hint)) or None,
        )
    if failures:
        raise failures[0]
    return results


def _check_folder(job: _Job) -> None:
    """Make the folder of a new run, or raise because it holds one already."""
    names = (FILE, "model.safetensors", *ARTIFACTS)
    there = [str(job.folder / name) for name in names if (job.folder / name).exists()]
    if there and not job.force:
        raise OutputExistsError(
            "the folder holds a run already",
            items=there,
            hint="--resume goes on with it, --force starts anew, or choose another folder",
        )
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"cannot make the folder {job.folder}: {error.strerror}") from error


def _told(folder: Path, decision: Decision, *, anew: bool) -> str:
    """What resuming comes to, in words."""
    if anew:
        return f"{folder} holds no run to go on with: starting one"
    return {
        "skip": "training is done already",
        "resume": "going on with training",
        "run": "training again",
    }[decision]


def _train(job: _Job, start: Decision, identity: Identity) -> Trained:
    """The trained model, made now or earlier."""
    if start == "skip":
        result = distributed.on_first(lambda: job.recorded.stages[TRAIN]["result"])
        return _trained(job.folder, result)
    request = TrainRequest(
        config=job.document.tables,
        folder=job.folder,
        resume=start == "resume",
        force=job.force and start == "run",
    )
    began, files = time.monotonic(), _files(job.folder)
    try:
        trained = job.document.trainer.train(request, progress=job.progress)
    except QpackError:
        if distributed.rank() == 0 and _files(job.folder) == files:
            _put_back(job)
        raise

    def finish() -> None:
        for name in ARTIFACTS:
            (job.folder / name).unlink(missing_ok=True)
        products = {
            "checkpoint": trained.checkpoint,
            "tokenizer": trained.tokenizer,
            "calibration": trained.calibration,
        }
        if trained.validation is not None:
            products["validation"] = trained.validation
        record = job.recorded
        result: dict[str, Any] = {key: record.relative(path) for key, path in products.items()}
        result |= {"sequence": trained.sequence, "details": dict(trained.details)}
        seconds = time.monotonic() - began
        record.finish(TRAIN, identity, products=products, result=result, seconds=seconds)

    distributed.on_first(finish)
    return trained


def _files(folder: Path) -> dict[str, int]:
    """What a trainer has written: top-level names and when; not the record, nor made data."""
    return {
        path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name not in KEPT
    }


def _put_back(job: _Job) -> None:
    """A run that was refused before it wrote anything was never begun."""
    path = job.folder / FILE
    if job.before is None:
        path.unlink(missing_ok=True)
    else:
        write_atomic(path, job.before, force=True)


def _trained(folder: Path, result: Mapping[str, Any]) -> Trained:
    """What a finished training stage left, from its record."""
    names = ("checkpoint", "tokenizer", "calibration", "validation")
    paths = {name: folder / result[name] for name in names if name in result}
    return Trained(**paths, sequence=result["sequence"], details=result["details"])


def _described(job: _Job, trained: Trained) -> dict[str, Any]:
    """The training stage as one document. Rank 0 alone."""
    stage = job.recorded.stages[TRAIN]
    return {
        "schema": "qpack.trained/1",
        "checkpoint": str(trained.checkpoint),
        "sha256": stage["products"]["checkpoint"]["sha256"],
        "tokenizer": str(trained.tokenizer),
        "calibration": str(trained.calibration),
        "validation": None if trained.validation is None else str(trained.validation),
        "trainer": job.document.name,
        "fingerprint": stage["fingerprint"],
        "seconds": stage["seconds"],
        "details": dict(trained.details),
    }


def _pack(job: _Job, trained: Trained) -> None:
    """Make the artifact and its report, unless that is done. Every rank calls this."""
    section = check_packing(job.document.tables)
    report_path = job.folder / "report.json"

    def decide() -> tuple[Decision, Identity]:
        checked = decisive(section, trained)
        identity = identify(checked.settings, checked.files)
        decision = job.recorded.decide(PACK, identity, force=job.force)
        if decision == "skip" and not report_path.is_file():
            decision = "run"
        return decision, identity

    decision, identity = distributed.on_first(decide)
    if decision == "skip":
        job.progress.note("the artifact is made already")
        return
    options = pack_options(section, trained, job.folder, command=job.command, progress=job.progress)
    began = time.monotonic()
    report = pack_checkpoint(options, progress=job.progress)
    if distributed.rank() == 0:
        job.recorded.finish(
            PACK,
            identity,
            products={"artifact": options.out},
            result={"sha256": report["sha256"], "artifact_bytes": report["artifact_bytes"]},
            seconds=time.monotonic() - began,
        )


def _report(job: _Job, trained: Trained) -> dict[str, Any]:
    """Complete the report with what is known of training. Rank 0 alone."""
    path, record = job.folder / "report.json", job.recorded
    try:
        report: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: cannot be read: {error}", hint="--resume --force makes it again"
        ) from error
    stage = record.stages[TRAIN]
    described = _described(job, trained)
    report["training"] = {
        "source": Path(job.document.source).name,
        **{key: described[key] for key in ("trainer", "fingerprint", "seconds", "details")},
    }
    began = time.monotonic()
    write_report(report, path, force=True)
    products = {"json": path, "markdown": path.with_suffix(".md")}
    identity = {"artifact": record.stages[PACK]["fingerprint"], TRAIN: stage["fingerprint"]}
    seconds = time.monotonic() - began
    record.finish(REPORT, identity, products=products, result={}, seconds=seconds)
    return report
