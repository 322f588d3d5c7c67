"""PPM-D with exclusion: prediction by partial matching, for any alphabet, over exact contexts.

The longest context that was seen before predicts first. Of the symbols not yet excluded let n be
those that followed it, c how often each did and T the sum of c:

    p(symbol) = (2c - 1) / 2T        escape = n / 2T

An escape goes to the next shorter context, in which all symbols seen so far are excluded; below
order 0 the rest is equiprobable. Where nothing is left to escape to, 2T - n divides instead of 2T.
So every distribution sums to 1, which the variant without exclusion does not (Howard 1993;
`techniques.md` 11.4). A symbol is counted after its contexts from the longest down to the first
that knew it already (update exclusion, Moffat 1990): a shorter context learns what is new to the
longer ones, which is all that it is asked about.

A context of order k is one integer, its symbols side by side below a leading 1, found by open
addressing that compares it whole: two contexts are never confused. A context takes 56 bytes and
each different follower 24; tables grow by doubling. A symbol makes at most order + 1 new contexts,
in text less than one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qpack.errors import ConfigError
from qpack.eval.compiled import compiled

TOTAL, LARGEST, HEAD = range(3)
"""Columns of `contexts`: symbols seen after it, count of the most frequent, its first follower."""
SYMBOL, COUNT, NEXT = range(3)
"""Columns of `followers`: a list a context, newest first, ended by -1."""
MAX_CONTEXT_BITS = 62
START_SIZE = 1 << 12


class Tables(NamedTuple):
    """Everything that was counted. Rows beyond those in use are not defined."""

    keys: NDArray[np.int64]
    """(slots,) a power of two; 0 is free"""
    numbers: NDArray[np.int64]
    """(slots,) the context of each key"""
    contexts: NDArray[np.int64]
    """(capacity, 3)"""
    followers: NDArray[np.int64]
    """(capacity, 3)"""
    used: NDArray[np.int64]
    """(2,) rows of `contexts` and of `followers`"""


class Context(NamedTuple):
    """What a stream ends with."""

    symbols: int
    """The last symbols side by side, the newest lowest; at most `order` of them"""
    length: int
    """How many these are"""


class Seen(NamedTuple):
    """What is known of the longest context that was seen before,"""

    order: int
    """its symbols; -1 where none was seen"""
    total: int
    """how often it was counted"""
    largest: int
    """how often its most frequent follower was"""


class Shape(NamedTuple):
    """What a PPM is made for."""

    order: int
    bits: int
    """Bits of a symbol"""


class Ppm:
    """Counts of one stream, which grow; and what they predict."""

    def __init__(self, *, order: int, alphabet: int) -> None:
        """Contexts of up to `order` symbols of 0 to `alphabet` - 1. ConfigError if they are too
        long for one integer."""
        bits = max(alphabet - 1, 1).bit_length()
        if order < 0 or order * bits > MAX_CONTEXT_BITS:
            raise ConfigError(
                f"PPM cannot have order {order}",
                hint=f"0 to {MAX_CONTEXT_BITS // bits} with {alphabet:,} symbols",
            )
        self.shape = Shape(order, bits)
        self.alphabet = alphabet
        self.context = Context(0, 0)
        self.tables = Tables(
            keys=np.zeros(2 * START_SIZE, np.int64),
            numbers=np.zeros(2 * START_SIZE, np.int64),
            contexts=np.zeros((START_SIZE, 3), np.int64),
            followers=np.zeros((START_SIZE, 3), np.int64),
            used=np.zeros(2, np.int64),
        )

    def reserve(self, num_symbols: int) -> None:
        """Make room for `num_symbols` more, whatever they are."""
        wanted = num_symbols * (self.shape.order + 1) + self.tables.used
        contexts = _grown(self.tables.contexts, int(wanted[0]))
        followers = _grown(self.tables.followers, int(wanted[1]))
        keys, numbers = self.tables.keys, self.tables.numbers
        if len(keys) < 2 * len(contexts):
            keys = np.zeros(2 * len(contexts), np.int64)
            numbers = np.zeros(len(keys), np.int64)
            _rehash(self.tables.keys, self.tables.numbers, keys, numbers)
        self.tables = Tables(keys, numbers, contexts, followers, self.tables.used)

    def probs(self) -> NDArray[np.float64]:
        """(alphabet,): the distribution of the next symbol."""
        out = np.empty(self.alphabet)
        predict(self.tables, self.shape, self.context, out)
        return out

    def observe(self, symbols: NDArray[np.int64]) -> None:
        """The next symbols were `symbols`, (n,) below `alphabet`."""
        self.reserve(len(symbols))
        self.context = _count_all(self.tables, self.shape, self.context, symbols)


def _grown(rows: NDArray[np.int64], wanted: int) -> NDArray[np.int64]:
    if wanted <= len(rows):
        return rows
    grown = np.zeros((1 << (wanted - 1).bit_length(), rows.shape[1]), np.int64)
    grown[: len(rows)] = rows
    return grown


@compiled
def _rehash(
    keys: NDArray[np.int64],
    numbers: NDArray[np.int64],
    new_keys: NDArray[np.int64],
    new_numbers: NDArray[np.int64],
) -> None:
    for i in range(len(keys)):
        if keys[i]:
            slot = slot_of(new_keys, keys[i])
            new_keys[slot], new_numbers[slot] = keys[i], numbers[i]


@compiled
def slot_of(keys: NDArray[np.int64], key: int) -> int:
    """Where `key` is, or belongs."""
    mixed = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    slot = int(mixed >> np.uint64(20)) & (len(keys) - 1)
    while keys[slot] != 0 and keys[slot] != key:
        slot = (slot + 1) & (len(keys) - 1)
    return slot


@compiled
def key_of(shape: Shape, context: Context, order: int) -> int:
    """The last `order` symbols as one integer."""
    marker = 1 << (shape.bits * order)
    return marker | (context.symbols & (marker - 1))


@compiled
def longer(shape: Shape, context: Context, symbol: int) -> Context:
    """The context after `symbol`."""
    kept = (1 << (shape.bits * shape.order)) - 1
    symbols = ((context.symbols << shape.bits) | symbol) & kept
    return Context(symbols, min(context.length + 1, shape.order))


@compiled
def predict(tables: Tables, shape: Shape, context: Context, out: NDArray[np.float64]) -> Seen:
    """Fill `out` (alphabet,) with the distribution of the next symbol; the longest context."""
    seen = Seen(-1, 0, 0)
    for symbol in range(len(out)):
        out[symbol] = -1.0  # not yet predicted
    left, remaining = 1.0, len(out)
    for order in range(min(context.length, shape.order), -1, -1):
        slot = slot_of(tables.keys, key_of(shape, context, order))
        if tables.keys[slot] == 0:
            continue
        number = tables.numbers[slot]
        if seen.order < 0:
            contexts = tables.contexts
            seen = Seen(order, contexts[number, TOTAL], contexts[number, LARGEST])
        n, left = _share_out(tables.followers, tables.contexts[number, HEAD], left, remaining, out)
        remaining -= n
        if remaining == 0:
            return seen
    for symbol in range(len(out)):
        if out[symbol] < 0.0:
            out[symbol] = left / remaining
    return seen


@compiled
def _share_out(
    followers: NDArray[np.int64],
    head: int,
    left: float,
    remaining: int,
    out: NDArray[np.float64],
) -> tuple[int, float]:
    """Share `left` out among the followers from `head` on that have nothing yet; to how many, and
    what escapes. `remaining` symbols have nothing yet in all."""
    T, n = 0, 0
    row = head
    while row >= 0:
        if out[followers[row, SYMBOL]] < 0.0:
            T += followers[row, COUNT]
            n += 1
        row = followers[row, NEXT]
    if n == 0:
        return 0, left
    share = left / (2 * T - n if n == remaining else 2 * T)
    row = head
    while row >= 0:
        symbol = followers[row, SYMBOL]
        if out[symbol] < 0.0:
            out[symbol] = (2 * followers[row, COUNT] - 1) * share
        row = followers[row, NEXT]
    return n, n * share


@compiled
def count(tables: Tables, shape: Shape, context: Context, symbol: int) -> Context:
    """`symbol` came: count it down to the first context that knew it; the context that comes then.

    There must be room (`Ppm.reserve`).
    """
    for order in range(min(context.length, shape.order), -1, -1):
        if count_once(tables, key_of(shape, context, order), symbol):
            break
    return longer(shape, context, symbol)


@compiled
def count_once(tables: Tables, key: int, symbol: int) -> bool:
    """Count `symbol` after the one context `key`; whether that knew it. There must be room."""
    slot = slot_of(tables.keys, key)
    if tables.keys[slot] == 0:
        tables.keys[slot], tables.numbers[slot] = key, tables.used[0]
        tables.contexts[tables.used[0], TOTAL] = 0
        tables.contexts[tables.used[0], LARGEST] = 0
        tables.contexts[tables.used[0], HEAD] = -1
        tables.used[0] += 1
    number = tables.numbers[slot]
    row = tables.contexts[number, HEAD]
    while row >= 0 and tables.followers[row, SYMBOL] != symbol:
        row = tables.followers[row, NEXT]
    if row < 0:
        row = tables.used[1]
        tables.followers[row, SYMBOL] = symbol
        tables.followers[row, COUNT] = 0
        tables.followers[row, NEXT] = tables.contexts[number, HEAD]
        tables.contexts[number, HEAD] = row
        tables.used[1] += 1
    tables.followers[row, COUNT] += 1
    tables.contexts[number, TOTAL] += 1
    largest = max(tables.contexts[number, LARGEST], tables.followers[row, COUNT])
    tables.contexts[number, LARGEST] = largest
    return bool(tables.followers[row, COUNT] > 1)


@compiled
def _count_all(
    tables: Tables, shape: Shape, context: Context, symbols: NDArray[np.int64]
) -> Context:
    for symbol in symbols:
        context = count(tables, shape, context, symbol)
    return context
