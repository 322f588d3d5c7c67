"""Each kind of cheat is caught by the probe made for it, and what is honest passes them all."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from qpack.errors import ConfigError, DataError, EvaluationError
from qpack.eval.byte_totals import byte_gap
from qpack.eval.checks import PROBES, CheckSettings, check, refuse, tokens_for
from qpack.eval.network import Network
from qpack.eval.predictor import LogProbs, Predictor, Session, Tokens
from qpack.progress import SILENT, Progress
from qpack.tokenizer import Tokenizer
from tests.unit.trainer.model.tiny import tiny

VOCAB = 7
STREAM = np.random.default_rng(5).integers(VOCAB, size=60).astype(np.uint16)


class CountsSession:
    """Counts of what was seen, plus one."""

    def __init__(self, first: int) -> None:
        self.counts = np.ones(VOCAB)
        self.counts[first] += 1

    def log_probs(self) -> LogProbs:
        return np.log(self.counts / self.counts.sum())

    def observe(self, token: int) -> None:
        self.counts[token] += 1


class Counts:
    """An honest predictor, whose batched form is its session's."""

    name = "counts"
    vocab_size = VOCAB
    kind = CountsSession

    def start(self, first: int, *, num_tokens: int | None = None) -> Session:
        return self.kind(first)

    def score(self, tokens: Tokens, *, progress: Progress = SILENT) -> NDArray[np.float64]:
        session = self.start(int(tokens[0]), num_tokens=len(tokens))
        scores = np.empty(len(tokens) - 1)
        for i, token in enumerate(tokens[1:].tolist()):
            scores[i] = self.one(session, tokens, i + 1)
            session.observe(token)
        return scores

    def one(self, session: Session, tokens: Tokens, i: int) -> float:
        return float(session.log_probs()[tokens[i]])


class Greedy(Counts):
    """Twice the probability of everything, everywhere: consistent, and no distribution."""

    class kind(CountsSession):  # noqa: N801
        def log_probs(self) -> LogProbs:
            return super().log_probs() + np.log(2)


class Blending(Counts):
    """Adds a hundredth at the target, as a cache that is looked up there alone."""

    def one(self, session: Session, tokens: Tokens, i: int) -> float:
        return float(np.log(np.exp(super().one(session, tokens, i)) + 0.01))


class Ahead(Counts):
    """Knows whether the next token is the same, and uses it."""

    def one(self, session: Session, tokens: Tokens, i: int) -> float:
        same = i + 1 < len(tokens) and tokens[i + 1] == tokens[i]
        return super().one(session, tokens, i) * (0.9 if same else 1.0)


class Early(Counts):
    """Learns from a token before it scores it."""

    def one(self, session: Session, tokens: Tokens, i: int) -> float:
        copy = CountsSession(0)
        copy.counts = session.counts.copy()  # type: ignore[attr-defined]
        copy.observe(int(tokens[i]))
        return float(copy.log_probs()[tokens[i]])


class Trained(Counts):
    """Has counted the whole stream before it begins to score it."""

    def score(self, tokens: Tokens, *, progress: Progress = SILENT) -> NDArray[np.float64]:
        counts = np.bincount(tokens, minlength=VOCAB) + 1.0
        return np.log(counts / counts.sum())[tokens[1:]]


class Asked(Counts):
    """A session that changes when it is asked."""

    class kind(CountsSession):  # noqa: N801
        def log_probs(self) -> LogProbs:
            row = super().log_probs()
            self.counts[int(row.argmax())] += 1
            return row


class Short(Counts):
    """Leaves out the last target."""

    def score(self, tokens: Tokens, *, progress: Progress = SILENT) -> NDArray[np.float64]:
        return super().score(tokens)[:-1]


class Torn(Counts):
    """Its rows for mixers are not what it scores by, and sum to less."""

    def rows(
        self, tokens: Tokens, *, progress: Progress = SILENT
    ) -> Iterator[tuple[LogProbs, Tokens]]:
        yield np.full((len(tokens) - 1, VOCAB), np.log(0.5 / VOCAB)), tokens[1:]


class Declared(Counts):
    """Counts for less and less along a stream whose length it must know."""

    def start(self, first: int, *, num_tokens: int | None = None) -> Session:
        if num_tokens is None:
            raise ConfigError("the length is not given")
        return Falling(first, num_tokens)


class Falling(CountsSession):
    def __init__(self, first: int, num_tokens: int) -> None:
        super().__init__(first)
        self.step, self.left = 1.0, num_tokens

    def observe(self, token: int) -> None:
        self.counts[token] += self.step
        self.step -= 1.0 / self.left


def caught(predictor: Predictor) -> set[str]:
    probes = check(predictor, STREAM)
    assert [probe.name for probe in probes] == list(PROBES)
    return {probe.name for probe in probes if not probe.passed}


@pytest.mark.parametrize("kind", [Counts, Declared])
def test_what_is_honest_passes(kind: Callable[[], Counts]) -> None:
    probes = check(kind(), STREAM)
    assert all(probe.passed for probe in probes)
    refuse(kind(), probes)


def test_a_network_passes() -> None:
    tokens = np.random.default_rng(0).integers(37, size=40)
    for reading in ({"window": 8}, {"window": 16, "stride": 3}, {"window": 16, "isolate": 5}):
        assert {probe.name for probe in check(Network(tiny(), **reading), tokens) if probe.passed} \
            == set(PROBES)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "probes"),
    [
        (Greedy, {"normalisation"}),
        (Blending, {"target swap", "session"}),
        (Early, {"target swap", "session"}),
        (Ahead, {"future", "prefix", "session"}),
        (Trained, {"target swap", "future", "prefix", "session"}),
        (Asked, {"order"}),
        (Short, {"target swap", "future", "prefix", "session", "totals"}),
        (Torn, {"normalisation"}),
    ],
)
def test_cheats_are_caught(kind: Callable[[], Counts], probes: set[str]) -> None:
    assert probes <= caught(kind())


def test_a_normalised_look_at_the_target_is_caught_by_its_swap_alone() -> None:
    """The session answers as the score does, for the stream that it was given."""

    class Knowing(Counts):
        def start(self, first: int, *, num_tokens: int | None = None) -> Session:
            return Told(first)

    class Told(CountsSession):
        left = STREAM.tolist()[1:]

        def log_probs(self) -> LogProbs:
            row = np.full(VOCAB, np.log(0.1 / (VOCAB - 1)))
            row[STREAM[int(self.counts.sum()) - VOCAB]] = np.log(0.9)
            return row

        def observe(self, token: int) -> None:
            self.counts[token] += 1

    class Peeking(Knowing):
        def one(self, session: Session, tokens: Tokens, i: int) -> float:
            return float(np.log(0.9))

    assert caught(Peeking()) == {"target swap"}


def test_a_refusal_names_the_predictor_and_every_probe() -> None:
    probes = check(Blending(), STREAM)
    with pytest.raises(EvaluationError, match='"counts" is refused') as error:
        refuse(Blending(), probes)
    names = [item.partition(":")[0] for item in error.value.items]
    assert names == [probe.name for probe in probes if not probe.passed]
    assert "token" in error.value.items[0]
    assert error.value.exit_code == 6


def test_what_is_not_finite_is_caught() -> None:
    class Broken(Counts):
        class kind(CountsSession):  # noqa: N801
            def log_probs(self) -> LogProbs:
                return np.full(VOCAB, np.nan)

    (normalisation, *_) = check(Broken(), STREAM)
    assert not normalisation.passed
    assert normalisation.worst is None


def test_it_looks_at_as_much_as_it_is_told() -> None:
    class Late(Counts):
        def one(self, session: Session, tokens: Tokens, i: int) -> float:
            return super().one(session, tokens, i) + (0.1 if i > 30 else 0.0)

    assert all(p.passed for p in check(Late(), STREAM, settings=CheckSettings(num_tokens=30)))
    assert "session" in caught(Late())


@pytest.mark.parametrize(("num_tokens", "positions"), [(58, 4), (58, 56), (58, 99), (3, 5)])
def test_every_part_of_the_stream_has_a_position(num_tokens: int, positions: int) -> None:
    swapped: list[int] = []

    class Listening(Counts):
        def score(self, tokens: Tokens, *, progress: Progress = SILENT) -> NDArray[np.float64]:
            changed = np.flatnonzero(tokens != STREAM[: len(tokens)])
            swapped.extend(changed.tolist() if len(changed) == 1 else [])
            return super().score(tokens)

    check(Listening(), STREAM, settings=CheckSettings(num_tokens=num_tokens, positions=positions))
    targets = num_tokens - 2  # all but the last
    count = min(positions, targets)
    parts = [(i - 1) * count // targets for i in swapped[:count]]
    assert parts == list(range(count))


def test_settings_out_of_range() -> None:
    with pytest.raises(ConfigError) as error:
        CheckSettings(num_tokens=2, positions=0, nats_tolerance=0.0)
    assert len(error.value.items) == 3
    with pytest.raises(ConfigError, match="too few"):
        check(Counts(), STREAM[:2])
    with pytest.raises(DataError, match='"counts" on: 1 of 60 tokens are beyond'):
        check(Counts(), np.append(STREAM[1:], VOCAB))
    assert [tokens_for(window) for window in (8, 1024, 2048)] == [1280, 1280, 2560]


def test_bytes_of_whole_and_of_cut_documents(tokenizer: Tokenizer, sentences: list[str]) -> None:
    stream = [t for text in sentences for t in (tokenizer.bos, *tokenizer.encode(text))]
    for begin in range(40):
        for end in range(len(stream) - 40, len(stream)):
            assert byte_gap(np.array(stream[begin:end]), tokenizer) == 0


def test_a_wrong_count_is_noticed(tokenizer: Tokenizer, sentences: list[str]) -> None:
    stream = np.array([tokenizer.bos, *tokenizer.encode(sentences[0])])
    tokenizer.piece_bytes[stream[5]] += 1
    try:
        assert byte_gap(stream, tokenizer) >= 1
        probes = check(Wide(), stream, tokenizer)
        assert [probe.name for probe in probes if not probe.passed] == ["totals"]
    finally:
        tokenizer.piece_bytes[stream[5]] -= 1


class Wide(Counts):
    vocab_size = 384

    class kind(CountsSession):  # noqa: N801
        def __init__(self, first: int) -> None:
            self.counts = np.ones(384)
