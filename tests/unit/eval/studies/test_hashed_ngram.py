"""The cache gives what its formulas say, and what it gives is no distribution."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from qpack.errors import ConfigError, DataError, EvaluationError
from qpack.eval.checks import CheckSettings, check, refuse
from qpack.eval.network import Network
from qpack.eval.predictor import LogProbs, Session, Tokens
from qpack.eval.studies.hashed_ngram import PRIMES, HashedNgramSettings, new_cache, score, study
from qpack.progress import SILENT, Progress, Silent
from qpack.tokenizer import Tokenizer


class Warnings(Silent):
    """Keeps what it is warned of."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def warn(self, message: str) -> None:
        self.seen.append(message)


class Cached:
    """The cache as a predictor, if it were one."""

    name = "hashed n-grams"

    def __init__(self, network: Network, settings: HashedNgramSettings) -> None:
        self.network, self.settings = network, settings
        self.vocab_size = network.vocab_size

    def start(self, first: int, *, num_tokens: int | None = None) -> Session:
        return CachedSession(self, first)

    def score(self, tokens: Tokens, *, progress: Progress = SILENT) -> NDArray[np.float64]:
        cache = new_cache(tokens.astype(np.int64), self.vocab_size, self.settings)
        rows = np.concatenate([rows for rows, _ in self.network.rows(tokens)])
        out = np.empty((len(rows), 2))
        score(cache, 1, rows, out)
        return out[:, 0]


class CachedSession:
    """Every token is put in the target's place in turn."""

    def __init__(self, predictor: Cached, first: int) -> None:
        self.base = predictor.network.start(first)
        text = np.full(1000, first, np.int64)
        self.cache, self.place = new_cache(text, predictor.vocab_size, predictor.settings), 1
        self.cache.wrong[:] = -1

    def log_probs(self) -> LogProbs:
        row = self.base.log_probs().copy()
        out = np.empty((len(row), 2))
        for token in range(len(row)):
            self.cache.tokens[self.place] = token
            score(self.cache, self.place, row[None], out[token : token + 1])
        return out[:, 0]

    def observe(self, token: int) -> None:
        self.base.observe(token)
        self.cache.tokens[self.place] = token
        self.place += 1


@pytest.fixture
def text(tokenizer: Tokenizer, sentences: list[str]) -> NDArray[np.uint16]:
    """Sentences in a random order, so that some n-grams come often."""
    chosen = np.random.default_rng(0).integers(len(sentences), size=12)
    rows = [[tokenizer.bos, *tokenizer.encode(sentences[i])] for i in chosen]
    return np.concatenate(rows).astype(np.uint16)


@pytest.fixture
def model(table_model, tokenizer: Tokenizer, generator: torch.Generator) -> torch.nn.Module:
    return table_model(torch.randn(tokenizer.vocab_size, tokenizer.vocab_size, generator=generator))


def by_formula(
    rows: NDArray[np.float64], text: list[int], buckets: int, chunk: int
) -> tuple[float, float]:
    """Claimed nats, and the mean sum of the mixture over the alphabet: dictionaries, no arrays."""
    contexts: Counter[tuple[int, int]] = Counter()
    fulls: Counter[tuple[int, int]] = Counter()

    def hashed(n: int, i: int, token: int) -> tuple[tuple[int, int], tuple[int, int]]:
        key = 0
        for k in range(n - 1):
            key ^= text[i - n + 1 + k] * int(PRIMES[k])
        full = key ^ token * int(PRIMES[n - 1])
        return (n, key % buckets), (n, full % buckets)

    def claimed(i: int, token: int) -> float:
        p = math.exp(rows[i - 1, token])
        for n in range(min(9, i + 1), 1, -1):
            context, full = hashed(n, i, token)
            if contexts[context] >= 2:
                entropy = -float((np.exp(rows[i - 1]) * rows[i - 1]).sum())
                alpha = 0.05 + 0.55 / (1 + math.exp(-2 * (entropy - (3 - 0.25 * (n - 2)))))
                alpha = min(alpha * {2: 0.3, 3: 0.3, 4: 0.97}.get(n, 2.0), 0.95)
                share = min(fulls[full], contexts[context]) / contexts[context]
                return max((1 - alpha) * p + alpha * share, 1e-10)
        return p

    nats, sums, done = 0.0, 0.0, 1
    for i in range(1, len(text)):
        while done < i // chunk * chunk:
            for n in range(2, min(9, done + 1) + 1):
                context, full = hashed(n, done, text[done])
                contexts[context] += 1
                fulls[full] += 1
            done += 1
        nats -= math.log(claimed(i, text[i]))
        sums += sum(claimed(i, token) for token in range(rows.shape[1]))
    return nats, sums / (len(text) - 1)


def test_claims_and_sums_are_those_of_the_formulas(
    model: torch.nn.Module, text: NDArray[np.uint16], tokenizer: Tokenizer
) -> None:
    text = text[:100]
    settings = HashedNgramSettings(buckets=16, chunk_tokens=20, window=32)
    found = study(model, text, tokenizer, settings)
    with torch.no_grad():
        logits = model(torch.from_numpy(text[:-1].astype(np.int64)))
        rows = logits.log_softmax(-1, dtype=torch.float64).numpy()
    nats, mean_sum = by_formula(rows, text.tolist(), 16, 20)
    bits = nats / math.log(2) / tokenizer.text_bytes(text)
    assert found["claimed"]["claimed_bits_per_byte"] == pytest.approx(bits, rel=1e-9)
    assert found["violation"]["mean_sum_of_mixture"] == pytest.approx(mean_sum, rel=1e-9)
    assert found["tokens"] == 99


def test_collisions_make_the_claim(
    model: torch.nn.Module, text: NDArray[np.uint16], tokenizer: Tokenizer
) -> None:
    """With 16 tokens a bucket every token is likely; with room for all, the claim shrinks."""
    few, many = (
        study(model, text, tokenizer, HashedNgramSettings(buckets=buckets, chunk_tokens=64))
        for buckets in (32, 1 << 20)
    )
    claims = [found["claimed"]["claimed_bits_per_byte"] for found in (few, many)]
    assert claims[0] < 0.5 * claims[1]
    vocab_size = tokenizer.vocab_size
    high = few["violation"]["by_order"][-1]
    assert high["order"] == 9
    assert high["sum_over_alphabet"] > 0.5 * vocab_size
    assert high["wrong_token"] > 0.5
    assert few["violation"]["mean_sum_of_mixture"] > 50 * many["violation"]["mean_sum_of_mixture"]
    honest = few["honest"]
    assert honest["bpb_of_claim_over_its_sum"] > 3 * claims[0]
    assert claims[0] < honest["bpb"] < honest["bpb_network"]
    assert honest["bpb"] == many["honest"]["bpb"]


def test_the_probes_refuse_it_for_its_sums_alone(
    model: torch.nn.Module, text: NDArray[np.uint16], tokenizer: Tokenizer
) -> None:
    """It is causal, and scores before it counts: only what it sums to betrays it."""
    predictor = Cached(Network(model), HashedNgramSettings(buckets=16, chunk_tokens=20))
    settings = CheckSettings(num_tokens=60, positions=2)
    probes = check(predictor, text, tokenizer, settings=settings)
    assert [probe.name for probe in probes if not probe.passed] == ["normalisation"]
    with pytest.raises(EvaluationError, match="hashed n-grams"):
        refuse(predictor, probes)


def test_the_first_chunk_is_the_networks_own(
    model: torch.nn.Module, text: NDArray[np.uint16], tokenizer: Tokenizer
) -> None:
    progress = Warnings()
    settings = HashedNgramSettings(buckets=32, chunk_tokens=10**30)
    found = study(model, text, tokenizer, settings, progress)
    assert len(progress.seen) == 1
    assert "smaller --chunk-tokens" in progress.seen[0]
    claim = found["claimed"]["claimed_bits_per_byte"]
    assert claim == pytest.approx(found["honest"]["bpb_network"], rel=1e-12)
    assert found["violation"]["mean_sum_of_mixture"] == pytest.approx(1.0)
    assert {row["positions"] for row in found["violation"]["by_order"]} == {0}


def test_empty_tables_are_warned_of(
    model: torch.nn.Module, text: NDArray[np.uint16], tokenizer: Tokenizer
) -> None:
    progress = Warnings()
    study(model, text, tokenizer, HashedNgramSettings(chunk_tokens=64), progress)
    assert len(progress.seen) == 1
    assert "--buckets 32 has its load" in progress.seen[0]


def test_no_result_is_called_bpb_but_the_honest(
    model: torch.nn.Module, text: NDArray[np.uint16], tokenizer: Tokenizer
) -> None:
    found = study(model, text, tokenizer, HashedNgramSettings(buckets=32))
    claimed = [key for key in (*found, *found["claimed"], *found["violation"]) if "bpb" in key]
    assert claimed == []
    assert all(key.startswith("bpb") for key in found["honest"])


def test_bad_settings_and_texts_are_refused(model: torch.nn.Module, tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError) as caught:
        HashedNgramSettings(buckets=100, chunk_tokens=0, samples=0, seed=-1, window=0)
    names = ("chunk_tokens", "samples", "seed", "window", "buckets")
    assert [item.split()[0] for item in caught.value.items] == list(names)
    with pytest.raises(ConfigError, match="at most"):
        HashedNgramSettings(buckets=1 << 70)
    with pytest.raises(DataError, match="no text"):
        study(model, np.full(5, tokenizer.bos, np.uint16), tokenizer)
    with pytest.raises(DataError, match="the model"):
        study(torch.nn.Identity(), np.full(5, 9, np.uint16), tokenizer)
