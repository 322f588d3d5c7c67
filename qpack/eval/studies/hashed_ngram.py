"""The hashed n-gram cache of #826: scores of targets that sum to hundreds over the alphabet.

For each order n from 9 to 2 two tables count hashes, one of contexts and one of contexts with the
token that followed:

    context = XOR of token[i - n + 1 + k] P_k for k < n - 1,    full = context XOR token[i] P_{n-1}

both modulo the number of buckets. The longest context that was counted at least twice gives the
target c = min(full, context) / context, and p = (1 - alpha) p_network + alpha c with alpha from the
entropy of the network's row. The tables take in a chunk of text after it was scored.

That is causal, and still no code: c is computed for the target alone. Once there are many tokens a
bucket, the bucket of *any* token with the context is about as full as that of the context, so c is
near 1 whatever the token is. What is measured here: the sum of c over the alphabet and the c of
random wrong tokens, by order; the claimed figure; and beside it what remains of it when p is
divided by its sum, and the exact counts of `ngram.py` on the same rows.
Source: `techniques.md` 9.2 and 9.3; ruled out in comment 4145781641 on #982.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn

from qpack.errors import ConfigError, DataError
from qpack.eval.compiled import compiled
from qpack.eval.network import Network
from qpack.eval.ngram import NgramMixer, NgramSettings, entropy
from qpack.eval.predictor import Tokens
from qpack.progress import SILENT, Progress
from qpack.tokenizer import Tokenizer

LONGEST, SHORTEST = 9, 2
"""Orders of the cache."""
PRIMES = np.array([36313, 27191, 51647, 81929, 131071, 174763, 233017, 283721, 347237], np.int64)
"""P_k"""
ORDER_FACTORS = np.array([0.3, 0.3, 0.97, 2.0, 2.0, 2.0, 2.0, 2.0])
"""What alpha is multiplied by, for orders 2 to 9."""
MOST_ALPHA = 0.95
BUCKETS_MAX = 1 << 32
FLOOR = 1e-10
"""The original's least probability."""
ORIGINAL_LOAD = 14.8
"""Tokens a bucket at the end of the original's text."""
CONTEXT, FULL = 0, 1
"""The two tables of an order."""
POSITIONS, SUM, WRONG = 0, 1, 2
"""Columns of `Cache.found`: sampled positions where the order's context was known; sums of c over
the alphabet there; sums of c of the wrong token there."""
WRONG_BECAUSE = (
    "The cache is asked for the target's count alone: over the whole alphabet its answers sum to"
    " far more than 1, so no decoder could be given them."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HashedNgramSettings:
    """What may be changed of the study."""

    buckets: int = 4_194_304
    """Buckets of each table, a power of two up to 2^32, 64 bytes of memory each for all tables. A
    shorter text needs fewer for the original's load."""
    chunk_tokens: int = 32_768
    """Tokens that are scored before the tables take them in; the original's were 1,048,576, of a
    text of 62 million."""
    samples: int = 256
    """Positions, of the last `chunk_tokens`, at which sums are measured by order."""
    seed: int = 0
    """Of the sampled positions and the wrong tokens."""
    window: int = 1024
    """Tokens of the network's disjoint windows."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` naming every setting that is out of range."""
        problems = [
            f"{name} = {getattr(self, name)}: must be at least {least}"
            for name, least in (("chunk_tokens", 1), ("samples", 1), ("seed", 0), ("window", 1))
            if getattr(self, name) < least
        ]
        if not 1 <= self.buckets <= BUCKETS_MAX or self.buckets & (self.buckets - 1):
            problems.append(f"buckets = {self.buckets}: must be a power of two, at most 2^32")
        if problems:
            raise ConfigError("the cache cannot be studied with these settings", items=problems)


def study(
    model: nn.Module,
    tokens: Tokens,  # (n,)
    tokenizer: Tokenizer,
    settings: HashedNgramSettings | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """The claimed figure on `tokens[1:]`, the sums beside it, and the honest mixture.

    The model maps tokens (B, T) to logits (B, T, V). Keys are those that the package names. Raises
    `DataError` for a text of no bytes or of another vocabulary.
    """
    settings = settings or HashedNgramSettings()
    tokenizer.check_model(int(getattr(model, "vocab_size", 0)))
    began = time.perf_counter()
    known = np.asarray(tokens).astype(np.int64)
    num_bytes = tokenizer.text_bytes(known)
    if num_bytes == 0:
        raise DataError("the tokens to study stand for no text")
    network = Network(model, window=settings.window)
    cache = new_cache(known, network.vocab_size, settings)
    if len(known) <= settings.chunk_tokens:
        progress.warn(
            f"the text of {len(known) - 1:,} tokens ends in its first chunk of"
            f" {settings.chunk_tokens:,}: the tables are empty and the claim is the network's own;"
            " use a smaller --chunk-tokens"
        )
    load = (len(known) - 1) / settings.buckets
    if load < 1:
        fitting = 1 << max(0, round(math.log2((len(known) - 1) / ORIGINAL_LOAD)))
        progress.warn(
            f"{load:.3g} tokens a bucket, where the original had {ORIGINAL_LOAD}: hardly anything"
            f" collides; --buckets {fitting} has its load on this text"
        )
    honest = NgramMixer(NgramSettings(), network.vocab_size).start(int(known[0]))
    nats = np.zeros(4)  # of the claim, the claim over its sum, the network, the honest mixture
    total, place = 0.0, 1
    for rows, targets in network.rows(known, progress=progress):
        claimed = np.empty((len(targets), 2))
        score(cache, place, rows, claimed)
        logs = claimed[:, 0]
        plain = rows[np.arange(len(targets)), targets]
        mixed = honest.advance(rows, targets)
        nats -= [part.sum() for part in (logs, logs - np.log(claimed[:, 1]), plain, mixed)]
        total += claimed[:, 1].sum()
        place += len(targets)
    bits = (nats / math.log(2) / num_bytes).tolist()
    return {
        "claimed": {"claimed_bits_per_byte": bits[0], "tokens_per_bucket": load},
        "wrong": WRONG_BECAUSE,
        "violation": {
            "mean_sum_of_mixture": total / (len(known) - 1),
            "by_order": by_order(cache),
        },
        "honest": {"bpb_network": bits[2], "bpb": bits[3], "bpb_of_claim_over_its_sum": bits[1]},
        "tokens": len(known) - 1,
        "bytes": num_bytes,
        "seconds": time.perf_counter() - began,
        "settings": asdict(settings),
    }


class Cache(NamedTuple):
    """The tables, the text, and what was found at sampled positions."""

    tables: NDArray[np.int32]
    """(orders, 2, buckets)"""
    tokens: NDArray[np.int64]
    """(n,)"""
    wrong: NDArray[np.int64]
    """(n,) a token that is not the target where the position is sampled, -1 elsewhere"""
    counted: NDArray[np.int64]
    """(1,) positions that the tables have taken in"""
    found: NDArray[np.float64]
    """(orders, 3) see `POSITIONS`"""
    chunk_tokens: int
    vocab_size: int


def new_cache(tokens: NDArray[np.int64], vocab_size: int, settings: HashedNgramSettings) -> Cache:
    """Empty tables; positions and wrong tokens drawn."""
    rng = np.random.default_rng(settings.seed)
    num_orders = LONGEST - SHORTEST + 1
    late = np.arange(max(1, len(tokens) - settings.chunk_tokens), len(tokens))
    places = rng.choice(late, min(settings.samples, len(late)), replace=False)
    wrong = np.full(len(tokens), -1, np.int64)
    shift = rng.integers(1, vocab_size, len(places))
    wrong[places] = (tokens[places] + shift) % vocab_size
    return Cache(
        tables=np.zeros((num_orders, 2, settings.buckets), np.int32),
        tokens=tokens,
        wrong=wrong,
        counted=np.ones(1, np.int64),  # the first token has no context
        found=np.zeros((num_orders, 3)),
        chunk_tokens=min(settings.chunk_tokens, len(tokens)),
        vocab_size=vocab_size,
    )


def by_order(cache: Cache) -> list[dict[str, Any]]:
    """Of each order: sampled positions, mean sum of c over the alphabet, mean c of wrong tokens."""
    return [
        {
            "order": order,
            "positions": int(positions),
            "sum_over_alphabet": sums / positions if positions else None,
            "wrong_token": wrong / positions if positions else None,
        }
        for order, (positions, sums, wrong) in enumerate(cache.found.tolist(), SHORTEST)
    ]


# -- compiled -------------------------------------------------------------------------------------


@compiled
def score(cache: Cache, start: int, rows: Any, out: Any) -> None:
    """Fill `out` (b, 2): the claimed log-probability of each token from `start` on, and the sum of
    what every token of the alphabet would have been given in its place."""
    for j in range(len(rows)):
        place = start + j
        target = cache.tokens[place]
        take_in(cache, place - place % cache.chunk_tokens)
        if cache.wrong[place] >= 0:
            measure(cache, place)
        out[j, 0], out[j, 1] = rows[j, target], 1.0
        for order in range(LONGEST, SHORTEST - 1, -1):
            context = hash_context(cache, order, place)
            if times_of(cache, order, context) >= 2:
                alpha = trust(order, entropy(rows[j]))
                seen = share(cache, order, context, target)
                p = (1 - alpha) * np.exp(rows[j, target]) + alpha * seen
                out[j, 0] = np.log(max(p, FLOOR))
                out[j, 1] = 1 - alpha + alpha * sum_of_shares(cache, order, context)
                break


@compiled
def take_in(cache: Cache, end: int) -> None:
    """Count all positions before `end`."""
    mask = cache.tables.shape[2] - 1
    for place in range(cache.counted[0], end):
        for order in range(SHORTEST, LONGEST + 1):
            context = hash_context(cache, order, place)
            if context >= 0:
                full = (context ^ (cache.tokens[place] * PRIMES[order - 1])) & mask
                cache.tables[order - SHORTEST, CONTEXT, context] += 1
                cache.tables[order - SHORTEST, FULL, full] += 1
    cache.counted[0] = max(cache.counted[0], end)


@compiled
def measure(cache: Cache, place: int) -> None:
    """Add what each order says of the alphabet, and of the wrong token, at this position."""
    for order in range(SHORTEST, LONGEST + 1):
        context = hash_context(cache, order, place)
        if times_of(cache, order, context) >= 2:
            found = cache.found[order - SHORTEST]
            found[POSITIONS] += 1
            found[SUM] += sum_of_shares(cache, order, context)
            found[WRONG] += share(cache, order, context, cache.wrong[place])


@compiled
def hash_context(cache: Cache, order: int, place: int) -> Any:
    """The bucket of the `order` - 1 tokens before `place`, or -1 where there are fewer."""
    if place < order - 1:
        return -1
    found = np.int64(0)
    for k in range(order - 1):
        found ^= cache.tokens[place - order + 1 + k] * PRIMES[k]
    return found & (cache.tables.shape[2] - 1)


@compiled
def times_of(cache: Cache, order: int, context: int) -> Any:
    """What the bucket of the context holds."""
    return cache.tables[order - SHORTEST, CONTEXT, context] if context >= 0 else np.int32(0)


@compiled
def share(cache: Cache, order: int, context: int, token: int) -> Any:
    """c of `token`: min(full, context) / context."""
    mask = cache.tables.shape[2] - 1
    full = cache.tables[order - SHORTEST, FULL, (context ^ (token * PRIMES[order - 1])) & mask]
    times = cache.tables[order - SHORTEST, CONTEXT, context]
    return min(full, times) / times


@compiled
def sum_of_shares(cache: Cache, order: int, context: int) -> Any:
    """The sum of c over the alphabet."""
    total = 0.0
    for token in range(cache.vocab_size):
        total += share(cache, order, context, token)
    return total


@compiled
def trust(order: int, nats: float) -> Any:
    """alpha, from the order that matched and the entropy of the network's row in nats."""
    middle = 3.0 - 0.25 * (order - SHORTEST)
    alpha = 0.05 + 0.55 / (1 + np.exp(-2 * (nats - middle)))
    return min(alpha * ORDER_FACTORS[order - SHORTEST], MOST_ALPHA)
