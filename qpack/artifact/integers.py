"""How the integers are coded: as one rANS stream, or role by role with codecs of bytes.

The size of the rANS stream is known from its model at once. Codecs of bytes are slow and hardly
ever smaller, so all of them first code a sample of all integers; only where that comes near the
rANS stream are they tried on the whole. What has a trellis goes to rANS untried: no other codec
knows of it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qpack.artifact.contents import ONE_STREAM, Group, all_integers, integers_by_role
from qpack.codec import filters
from qpack.codec.base import ByteCodec, Codec
from qpack.codec.integers import Rans
from qpack.codec.registry import byte_codecs, integer_codec
from qpack.codec.select import Choices, Coded, Trial, TypedStream, encode_streams, sample
from qpack.errors import TooLargeError
from qpack.progress import SILENT, Progress
from qpack.tensors import Contents

SMALL_BYTES = 1 << 20
"""Integers of at most this many bytes are tried both ways without a sample."""

SAMPLE_BYTES = 1 << 17
MARGIN = 0.01
"""Codecs of bytes go on to the whole if they are within this of rANS by the sample, on which they
do about 1 % worse than on the whole."""

STREAM_BYTES = 25
"""What a stream adds to the header, roughly."""


@dataclass(frozen=True, slots=True, eq=False)
class Integers:
    """The streams of the integers, coded."""

    groups: list[Group]
    coded: list[Coded]
    trials: list[Trial]

    @property
    def num_bytes(self) -> int:
        """Stored bytes, and what the streams add to the header."""
        return sum(len(c.data) + STREAM_BYTES for c in self.coded)


def encode_integers(
    contents: Contents,
    codecs: Sequence[Codec],
    *,
    choices: Choices | None = None,
    progress: Progress = SILENT,
) -> Integers:
    """Code all integers of checked contents in the smaller way; `choices` settle it untried."""
    coder, roles, plain = integer_codec(codecs), integers_by_role(contents), byte_codecs(codecs)
    num_bytes = sum(part.stream.array.nbytes for part in roles)
    settled = bool(choices) and ONE_STREAM not in (choices or {})
    trellis = any(all_integers(contents).stream.trellis) if num_bytes else False
    if coder is None or num_bytes == 0 or (settled and not trellis):
        return _by_role(roles, plain, choices, progress)
    whole = all_integers(contents)
    alone = trellis or bool(choices) or not any(isinstance(c, ByteCodec) for c in codecs)
    screened: list[Trial] = []
    try:
        if not alone and num_bytes > SMALL_BYTES:
            expected = coder.estimate_bytes(matrices(whole.stream), whole.stream.trellis)
            predicted, screened = _predict(roles, plain, progress)
            alone = predicted > expected * (1 + MARGIN)
        ours = _one_stream(whole, coder, progress)
    except TooLargeError as error:
        progress.warn(f"{error.message}; other codecs take over")
        return _by_role(roles, plain, choices, progress)
    if alone:
        return replace(ours, trials=ours.trials + screened)
    rival = _by_role(roles, plain, choices, progress)
    if ours.num_bytes <= rival.num_bytes:
        return replace(ours, trials=[*ours.trials, *screened, _summary(rival)])
    lost = replace(ours.trials[0], stream=roles[0].stream.key)
    return replace(rival, trials=[*rival.trials, lost])


def matrices(stream: TypedStream) -> list[NDArray[np.signedinteger]]:
    """The members of a stream of integers, (rows, cols) each."""
    ends = np.cumsum([rows * cols for rows, cols in stream.matrices])[:-1]
    parts = np.split(stream.array.astype(stream.array.dtype.newbyteorder("="), copy=False), ends)
    return [part.reshape(shape) for part, shape in zip(parts, stream.matrices, strict=True)]


def _one_stream(whole: Group, coder: Rans, progress: Progress) -> Integers:
    stream = whole.stream
    with progress.stage("encode integers", total=stream.array.size, unit="weights") as task:
        begin = time.perf_counter()
        data = coder.encode_matrices(matrices(stream), stream.trellis)
        seconds = time.perf_counter() - begin
        task.advance(stream.array.size)
    trial = Trial(
        stream=stream.key,
        codec=coder.name,
        filter=filters.NAMES[filters.NONE],
        input_bytes=stream.array.nbytes,
        bytes=len(data),
        seconds=seconds,
        screened=False,
    )
    coded = Coded(data=data, codec=coder.id, filter=filters.NONE, seconds=seconds)
    return Integers([whole], [coded], [trial])


def _by_role(
    roles: list[Group], codecs: Sequence[ByteCodec], choices: Choices | None, progress: Progress
) -> Integers:
    streams = [part.stream for part in roles]
    return Integers(roles, *encode_streams(streams, codecs, choices=choices, progress=progress))


def _predict(
    roles: Sequence[Group], codecs: Sequence[ByteCodec], progress: Progress
) -> tuple[int, list[Trial]]:
    """Bytes that the best codec and filter should make of all roles, by a sample of them."""
    total = sum(part.stream.array.nbytes for part in roles)
    streams = []
    for filter_id in sorted({f for part in roles for f in part.stream.filters}):
        pieces = []
        for part in roles:
            stream = part.stream
            own = filter_id if filter_id in stream.filters else filters.NONE
            data = filters.forward(stream.array, own, stream.matrices)
            pieces.append(sample(data, SAMPLE_BYTES * len(data) // total))
        array = np.frombuffer(b"".join(pieces), np.uint8)
        streams.append(TypedStream(key=filters.NAMES[filter_id], array=array, filters=(0,)))
    coded, trials = encode_streams(streams, codecs, progress=progress)
    best = min(len(c.data) / stream.array.size for c, stream in zip(coded, streams, strict=True))
    named = [replace(t, stream=ONE_STREAM, filter=t.stream, screened=True) for t in trials]
    return int(best * total), named


def _summary(rival: Integers) -> Trial:
    """All roles together, as a trial of the one stream that was smaller."""
    return Trial(
        stream=ONE_STREAM,
        codec="by role",
        filter="best",
        input_bytes=sum(part.stream.array.nbytes for part in rival.groups),
        bytes=sum(len(c.data) for c in rival.coded),
        seconds=sum(trial.seconds for trial in rival.trials),
        screened=False,
    )
