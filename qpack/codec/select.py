"""Try codecs and filters on each stream and keep the smallest result.

A stream above `SAMPLE_BYTES` is screened: every candidate encodes a fixed sample of it, and only
those near the sample's best are tried on the whole. Trials run in threads (the codecs release the
GIL), largest streams first so that the last one running is short. The outcome does not depend on
the number of threads: sizes decide, ties go to the lower codec id, then the lower filter id.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qpack.codec import filters
from qpack.codec.base import ByteCodec
from qpack.codec.store import Store
from qpack.progress import SILENT, Progress

SAMPLE_BYTES = 1 << 20
SAMPLE_PIECES = 16
SCREEN_MARGIN = 0.002
"""Candidates within this of the sample's best go on to the full trial: a sample ranks codecs
roughly, and near-equal losers are not worth a pass over the whole."""

Choices = Mapping[str, tuple[int, int]]
"""Stream key -> (codec id, filter id) that won before."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TypedStream:
    """One stream to encode."""

    key: str
    """names the stream in choices and trials"""
    array: NDArray[np.generic]
    """(elements,), little-endian"""
    filters: tuple[int, ...]
    """filter ids that make sense for it; the first is the default"""
    matrices: tuple[tuple[int, int], ...] = ()
    """(rows, cols) of its members, for the transposing filters"""
    trellis: tuple[int, ...] = ()
    """states of the trellis of each member, 0 for none: for the codec of integers"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One candidate measured on one stream."""

    stream: str
    codec: str
    filter: str
    input_bytes: int
    """bytes given to the codec: the stream, or its sample where `screened`"""
    bytes: int
    seconds: float
    screened: bool
    """True: tried on the sample alone and left out"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Coded:
    """The winner of one stream."""

    data: bytes
    codec: int
    filter: int
    seconds: float


@dataclass(frozen=True, slots=True)
class _Job:
    index: int
    codec: ByteCodec
    filter: int
    sample: bool = False


@dataclass(frozen=True, slots=True)
class _Result:
    job: _Job
    data: bytes
    input_bytes: int
    seconds: float

    @property
    def order(self) -> tuple[int, int, int]:
        return len(self.data), self.job.codec.id, self.job.filter


def encode_streams(
    streams: Sequence[TypedStream],
    codecs: Sequence[ByteCodec],
    *,
    choices: Choices | None = None,
    progress: Progress = SILENT,
) -> tuple[list[Coded], list[Trial]]:
    """Encode every stream with the best of `codecs` and its filters; trials in a fixed order.

    `choices` of an earlier run are reused without trials where their codec is among `codecs`.
    """
    by_id = {codec.id: codec for codec in codecs}
    whole: list[_Job] = []
    sampled: list[_Job] = []
    for index, stream in enumerate(streams):
        codec_id, filter_id = (choices or {}).get(stream.key, (-1, -1))
        if stream.array.size == 0:
            whole.append(_Job(index, Store(), stream.filters[0]))
        elif codec_id in by_id and filter_id in stream.filters:
            whole.append(_Job(index, by_id[codec_id], filter_id))
        else:
            large = stream.array.nbytes > SAMPLE_BYTES
            jobs = [_Job(index, c, f, sample=large) for c in codecs for f in stream.filters]
            (sampled if large else whole).extend(jobs)
    with ThreadPoolExecutor(_num_threads()) as pool:
        screening = _run(pool, streams, sampled, "screen codecs", progress)
        passed, failed = _screen(screening)
        results = _run(pool, streams, whole + passed, "encode", progress)
    trials = [_trial(streams, result) for result in results + failed]
    position = {stream.key: index for index, stream in enumerate(streams)}
    trials.sort(key=lambda t: (position[t.stream], t.screened, t.bytes, t.codec, t.filter))
    best: dict[int, _Result] = {}
    for result in sorted(results, key=lambda r: r.order):
        best.setdefault(result.job.index, result)
    return [_coded(best[index]) for index in range(len(streams))], trials


def _run(
    pool: ThreadPoolExecutor,
    streams: Sequence[TypedStream],
    jobs: list[_Job],
    stage: str,
    progress: Progress,
) -> list[_Result]:
    if not jobs:
        return []
    jobs = sorted(jobs, key=lambda job: -streams[job.index].array.nbytes)
    total = sum(_input_bytes(streams[job.index], job) for job in jobs)
    results = []
    with progress.stage(stage, total=total, unit="B") as task:
        futures = [pool.submit(_encode, streams[job.index], job) for job in jobs]
        try:
            for future in as_completed(futures):
                results.append(future.result())
                task.advance(results[-1].input_bytes)
        finally:
            for future in futures:
                future.cancel()
    return results


def _encode(stream: TypedStream, job: _Job) -> _Result:
    data = filters.forward(stream.array, job.filter, stream.matrices)
    if job.sample:
        data = sample(data, SAMPLE_BYTES)
    start = time.perf_counter()
    encoded = job.codec.encode(data)
    return _Result(job, encoded, len(data), time.perf_counter() - start)


def _input_bytes(stream: TypedStream, job: _Job) -> int:
    return min(SAMPLE_BYTES, stream.array.nbytes) if job.sample else stream.array.nbytes


def sample(data: bytes, num_bytes: int) -> bytes:
    """`SAMPLE_PIECES` pieces, evenly spread, about `num_bytes` together; short data as it is."""
    if len(data) <= num_bytes:
        return data
    piece = max(num_bytes // SAMPLE_PIECES, 1)
    last = len(data) - piece
    starts = (last * i // (SAMPLE_PIECES - 1) for i in range(SAMPLE_PIECES))
    return b"".join(data[start : start + piece] for start in starts)


def _screen(results: list[_Result]) -> tuple[list[_Job], list[_Result]]:
    """Jobs that deserve a full trial, and the results of the others."""
    smallest: dict[int, int] = {}
    for result in results:
        index = result.job.index
        smallest[index] = min(len(result.data), smallest.get(index, len(result.data)))
    passed, failed = [], []
    for result in results:
        if len(result.data) <= smallest[result.job.index] * (1 + SCREEN_MARGIN):
            passed.append(replace(result.job, sample=False))
        else:
            failed.append(result)
    return passed, failed


def _trial(streams: Sequence[TypedStream], result: _Result) -> Trial:
    return Trial(
        stream=streams[result.job.index].key,
        codec=result.job.codec.name,
        filter=filters.NAMES[result.job.filter],
        input_bytes=result.input_bytes,
        bytes=len(result.data),
        seconds=result.seconds,
        screened=result.job.sample,
    )


def _coded(result: _Result) -> Coded:
    return Coded(
        data=result.data,
        codec=result.job.codec.id,
        filter=result.job.filter,
        seconds=result.seconds,
    )


def _num_threads() -> int:
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1
