"""Byte spreading with a PPM: what #1959 did, and why its score is no code.

A token of L bytes got p(token)^(1/L) for each of its bytes, each mixed with a byte-level PPM:

    q_i = p^(1/L)        S(token) = product over its bytes of  lambda_i q_i + (1 - lambda_i) r_i

q_i is no distribution over bytes: it needs the whole token before its first byte. Where the PPM
makes the later bytes nearly certain, the first byte still has the high p^(1/L), for every token at
once, and the sum of S over all tokens is far above 1: bits that nobody could decode from. Two more
faults are repeated here: the PPM has no exclusion (it sums to less than 1), and byte-fallback and
control tokens are spelled by their names, `<0x0A>` and `<s>`, which adds bytes to what the score is
divided by. Source: `techniques.md` 9.4.

Sums are taken at random positions over all tokens, with what the PPM knew at that position; within
a token it learns nothing there. Dividing each score by its sum would make it a code over tokens:
the mean of log2 of the sums is what was gained for nothing, in bits a token.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn

from qpack.errors import ConfigError, DataError
from qpack.eval.compiled import compiled
from qpack.eval.network import Network
from qpack.eval.ppm import (
    COUNT,
    HEAD,
    LARGEST,
    NEXT,
    SYMBOL,
    TOTAL,
    Context,
    Ppm,
    Shape,
    Tables,
    count_once,
    key_of,
    longer,
    slot_of,
)
from qpack.eval.ppm_mixer import PpmMixer
from qpack.eval.ppm_settings import PpmSettings
from qpack.eval.predictor import LogProbs, Tokens
from qpack.progress import SILENT, Progress
from qpack.tokenizer import SPACE_MARK, Tokenizer

WRONG = (
    "A byte's share p(token)^(1/length) takes the whole token to be known before its first byte: "
    "the scores of all tokens at one place sum to more than 1."
)
ORDER = 4
THRESHOLD, SURE, UNSURE = 0.9, 0.05, 0.9
"""Of the gate: the network's weight above and below a confidence."""
FLOOR = 1e-20


@dataclass(frozen=True, kw_only=True, slots=True)
class ByteSpreadSettings:
    """What is scored is fixed by #1959; what is measured is set here.

    Raises `ConfigError` naming every value that is out of range.
    """

    window: int = 1024
    """Tokens of the network's windows, which are disjoint."""
    positions: int = 200
    """Random positions at which the scores of all tokens are summed."""
    seed: int = 0
    """Of the choice of positions."""

    def __post_init__(self) -> None:
        problems = [
            f"{name} = {getattr(self, name)}: must be at least {least}"
            for name, least in (("window", 1), ("positions", 1), ("seed", 0))
            if getattr(self, name) < least
        ]
        if problems:
            raise ConfigError("byte spreading cannot be studied so", items=problems)


def study(
    model: nn.Module,
    tokens: Tokens,  # (n,)
    tokenizer: Tokenizer,
    settings: ByteSpreadSettings | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """What byte spreading claims on `tokens`, what its scores sum to, and the trie's mixture.

    Plain values under the keys that the package's docstring names. Raises `DataError` for tokens
    that stand for no text or are not of the tokenizer's vocabulary.
    """
    settings = settings or ByteSpreadSettings()
    network = Network(model, window=settings.window)
    tokenizer.check_model(network.vocab_size)
    tokens = np.asarray(tokens)
    num_bytes = tokenizer.text_bytes(tokens)
    if not num_bytes:
        raise DataError("the tokens to score stand for no text")
    began = time.perf_counter()
    spelled = [name.replace(SPACE_MARK, " ").encode() for name in tokenizer.names()]
    first = int(tokens[0])
    spread = Spread(spelled, first)
    honest = {
        "bpb_fixed_gate": PpmMixer(PpmSettings(gate="fixed"), tokenizer).start(first),
        "bpb_learned_gate": PpmMixer(PpmSettings(), tokenizer).start(first),
    }
    nats = dict.fromkeys(["bpb_network", *honest], 0.0)
    bits, sums = 0.0, list[float]()
    chosen, done = _chosen(len(tokens) - 1, settings), 0
    for rows, targets in network.rows(tokens, progress=progress):
        marks = chosen[(chosen >= done) & (chosen < done + len(targets))] - done
        done += len(targets)
        for begin, end in zip([0, *marks], [*marks, len(targets)], strict=True):
            bits += spread.advance(rows[begin:end], targets[begin:end])
            if end < len(targets):
                sums.append(math.fsum(spread.scores(rows[end])))
        nats["bpb_network"] -= math.fsum(rows[np.arange(len(targets)), targets])
        for name, state in honest.items():
            nats[name] -= math.fsum(state.advance(rows, targets))
    claimed_bytes = sum(len(spelled[token]) for token in tokens[1:])
    free = [math.log2(total) for total in sums]
    return {
        "claimed": {
            "claimed_bits_per_byte": bits / claimed_bytes,
            "claimed_bytes": claimed_bytes,
            "claimed_bits_per_real_byte": bits / num_bytes,
        },
        "wrong": WRONG,
        "violation": {
            "mean_sum_over_tokens": float(np.mean(sums)),
            "median_sum_over_tokens": float(np.median(sums)),
            "largest_sum_over_tokens": max(sums),
            "free_bits_a_token": float(np.mean(free)),
            "bits_per_byte_less_what_was_free": (bits + np.mean(free) * done) / num_bytes,
            "bytes_added_by_names": claimed_bytes - num_bytes,
            "positions": len(sums),
        },
        "honest": {name: value / math.log(2) / num_bytes for name, value in nats.items()},
        "tokens": done,
        "bytes": num_bytes,
        "seconds": time.perf_counter() - began,
        "settings": asdict(settings),
    }


def _chosen(num_targets: int, settings: ByteSpreadSettings) -> NDArray[np.int64]:
    rng = np.random.default_rng(settings.seed)
    number = min(settings.positions, num_targets)
    return np.sort(rng.choice(num_targets, number, replace=False))


class Spread:
    """The scores of #1959 along one stream."""

    def __init__(self, spelled: Sequence[bytes], first: int) -> None:
        """`spelled` are the bytes of each token, at least one; `first` is context."""
        self._ppm = Ppm(order=ORDER, alphabet=256)
        self._texts = Texts(
            np.frombuffer(b"".join(spelled), np.uint8).astype(np.int64),
            np.concatenate(([0], np.cumsum([len(text) for text in spelled]))),
        )
        self.advance(np.zeros((1, len(spelled))), np.array([first]))

    def advance(self, rows: LogProbs, targets: Tokens) -> float:
        """The bits claimed for `targets` (b,) by the network's `rows` (b, V), learning from each
        byte."""
        chosen: NDArray[np.int64] = np.asarray(targets, np.int64)
        logs = rows[np.arange(len(chosen)), chosen]
        self._ppm.reserve(int(np.diff(self._texts.first)[chosen].sum()))
        bits, self._ppm.context = _claimed(
            self._ppm.tables, self._ppm.context, self._texts, logs, chosen
        )
        return bits

    def scores(self, row: LogProbs) -> NDArray[np.float64]:
        """(V,): the score S that each token would have next, by the network's `row` (V,)."""
        return _scores(self._ppm.tables, self._ppm.context, self._texts, row)


class Texts(NamedTuple):
    """The bytes of all tokens, one after another."""

    symbols: NDArray[np.int64]
    first: NDArray[np.int64]
    """(vocab + 1,) where each token's bytes begin"""


@compiled
def _claimed(
    tables: Tables,
    context: Context,
    texts: Texts,
    logs: NDArray[np.float64],
    targets: NDArray[np.int64],
) -> tuple[float, Context]:
    shape, bits = Shape(ORDER, 8), 0.0
    for i in range(len(targets)):
        begin, end = texts.first[targets[i]], texts.first[targets[i] + 1]
        q = math.exp(logs[i] / (end - begin))
        for at in range(begin, end):
            symbol = texts.symbols[at]
            bits -= math.log2(_score(tables, context, q, symbol))
            for order in range(min(context.length, ORDER) + 1):
                count_once(tables, key_of(shape, context, order), symbol)
            context = longer(shape, context, symbol)
    return bits, context


@compiled
def _scores(
    tables: Tables, context: Context, texts: Texts, row: NDArray[np.float64]
) -> NDArray[np.float64]:
    shape, out = Shape(ORDER, 8), np.ones(len(row))
    for v in range(len(row)):
        begin, end = texts.first[v], texts.first[v + 1]
        q, place = math.exp(row[v] / (end - begin)), context
        for at in range(begin, end):
            out[v] *= _score(tables, place, q, texts.symbols[at])
            place = longer(shape, place, texts.symbols[at])
    return out


@compiled
def _score(tables: Tables, context: Context, q: float, symbol: int) -> float:
    """What a byte gets: the network's q and the PPM's share, by the confidence of the longest
    context that exists."""
    shape = Shape(ORDER, 8)
    confidence, escape, r = -1.0, 1.0, -1.0
    for order in range(min(context.length, ORDER), -1, -1):
        slot = slot_of(tables.keys, key_of(shape, context, order))
        if tables.keys[slot] == 0:
            continue
        number = tables.numbers[slot]
        total = tables.contexts[number, TOTAL]
        if confidence < 0.0:
            confidence = tables.contexts[number, LARGEST] / total
        distinct, row = 0, tables.contexts[number, HEAD]
        while row >= 0 and tables.followers[row, SYMBOL] != symbol:
            distinct += 1
            row = tables.followers[row, NEXT]
        if row >= 0:
            r = escape * (2 * tables.followers[row, COUNT] - 1) / (2 * total)
            break
        escape *= distinct / (2 * total)
    if r < 0.0:
        r = escape / 256
    lam = SURE if confidence > THRESHOLD else UNSURE
    return max(lam * q + (1.0 - lam) * r, FLOOR)
