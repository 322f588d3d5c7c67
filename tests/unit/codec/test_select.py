"""Selection: smallest wins, ties are settled, large streams are screened, choices are reused."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest

from qpack.codec import filters, select
from qpack.codec.registry import byte_codecs, resolve
from qpack.codec.select import TypedStream, encode_streams
from qpack.codec.store import Store
from qpack.errors import SetupError

EVERY = byte_codecs(resolve(None))


class Fake(Store):
    """Encodes to a fraction of the size; counts its calls."""

    def __init__(self, id: int, share: float) -> None:
        self.id = id
        self.name = f"fake{id}"
        self.share = share
        self.calls: list[int] = []

    def encode(self, data: bytes) -> bytes:
        self.calls.append(len(data))
        return bytes(int(len(data) * self.share))


def stream(size: int = 64, key: str = "s", options: tuple[int, ...] = (0, 2)) -> TypedStream:
    array = (np.arange(size) % 7).astype("<i1")
    return TypedStream(key=key, array=array, filters=options, matrices=((size // 8, 8),))


def test_the_smallest_wins_and_all_trials_are_recorded() -> None:
    coded, trials = encode_streams([stream()], [Fake(5, 0.5), Fake(6, 0.25)])
    assert (coded[0].codec, coded[0].filter, len(coded[0].data)) == (6, 0, 16)
    assert [(t.codec, t.filter, t.bytes) for t in trials] == [
        ("fake6", "none", 16),
        ("fake6", "transpose", 16),
        ("fake5", "none", 32),
        ("fake5", "transpose", 32),
    ]
    assert not any(t.screened for t in trials)


def test_ties_go_to_the_lower_codec_then_the_lower_filter() -> None:
    coded, _ = encode_streams([stream(options=(2, 0))], [Fake(9, 0.5), Fake(7, 0.5)])
    assert (coded[0].codec, coded[0].filter) == (7, 0)


def test_order_of_streams_is_kept() -> None:
    streams = [stream(8, "a"), stream(800, "b"), stream(80, "c")]
    coded, trials = encode_streams(streams, [Store()])
    assert [len(c.data) for c in coded] == [8, 800, 80]
    assert [t.stream for t in trials] == ["a", "a", "b", "b", "c", "c"]


def test_large_streams_are_screened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "SAMPLE_BYTES", 1600)
    good, near, bad = Fake(5, 0.5), Fake(6, 0.5005), Fake(7, 0.6)
    coded, trials = encode_streams([stream(16_000)], [good, near, bad])
    assert coded[0].codec == 5
    assert sorted(bad.calls) == [1600, 1600]
    assert sorted(near.calls) == sorted(good.calls) == [1600, 1600, 16_000, 16_000]
    screened = [t for t in trials if t.screened]
    assert {(t.codec, t.input_bytes, t.bytes) for t in screened} == {("fake7", 1600, 960)}


def test_a_stream_of_the_sample_size_is_not_screened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "SAMPLE_BYTES", 1600)
    fake = Fake(5, 0.5)
    encode_streams([stream(1600)], [fake])
    assert fake.calls == [1600, 1600]


def test_the_sample_covers_both_ends() -> None:
    data = bytes(1) + bytes([1]) * (3 << 20) + bytes([2])
    sample = select.sample(data, select.SAMPLE_BYTES)
    assert len(sample) == select.SAMPLE_BYTES
    assert (sample[0], sample[-1]) == (0, 2)
    assert select.sample(data, len(data)) == data


def test_choices_are_reused_where_they_can_be() -> None:
    streams = [stream(key="a"), stream(key="b"), stream(key="c"), stream(key="d")]
    fake = Fake(5, 0.5)
    choices = {"a": (5, filters.TRANSPOSE), "b": (99, 0), "c": (5, filters.PLANES)}
    coded, trials = encode_streams(streams, [Store(), fake], choices=choices)
    assert (coded[0].codec, coded[0].filter) == (5, filters.TRANSPOSE)
    assert [sum(t.stream == key for t in trials) for key in "abcd"] == [1, 4, 4, 4]


def test_an_empty_stream_is_stored() -> None:
    coded, _ = encode_streams([stream(0)], byte_codecs(resolve(["zstd"])))
    assert (coded[0].codec, coded[0].filter, coded[0].data) == (0, 0, b"")


def test_no_streams() -> None:
    assert encode_streams([], EVERY) == ([], [])


def test_a_failing_codec_stops_everything() -> None:
    class Broken(Store):
        def encode(self, data: bytes) -> bytes:
            raise SetupError("gone")

    with pytest.raises(SetupError, match="gone"):
        encode_streams([stream(key=str(i)) for i in range(20)], [Broken()])


def test_progress_counts_every_byte() -> None:
    class Watch:
        def __init__(self) -> None:
            self.stages: list[tuple[str, float | None]] = []
            self.done = 0.0

        @contextlib.contextmanager
        def stage(
            self, name: str, *, total: float | None = None, unit: str = ""
        ) -> Iterator[Watch]:
            self.stages.append((name, total))
            yield self

        def advance(self, amount: float = 1.0, *, note: str = "") -> None:
            self.done += amount

        def note(self, message: str) -> None: ...

        def warn(self, message: str) -> None: ...

    watch = Watch()
    encode_streams([stream(64), stream(32, "t")], [Store()], progress=watch)
    assert watch.stages == [("encode", 192)]
    assert watch.done == 192


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_the_number_of_threads_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    streams = [stream(5000, "a"), stream(3000, "b")]
    expected = [(c.data, c.codec, c.filter) for c in encode_streams(streams, EVERY)[0]]
    monkeypatch.setattr(select, "_num_threads", lambda: threads)
    found = [(c.data, c.codec, c.filter) for c in encode_streams(streams, EVERY)[0]]
    assert found == expected


def test_number_of_threads_without_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    assert select._num_threads() >= 1
    monkeypatch.delattr(select.os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(select.os, "cpu_count", lambda: None)
    assert select._num_threads() == 1
