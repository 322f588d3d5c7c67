"""The mixer that adds what PPM-D learns from the text to a network, byte by byte.

Both forms walk the same trie with the same numbers: `advance` the path of the target, `mix` all of
it. A gate decides at each node how much the network counts (`gate.py`); how both become
distributions over what can come there is in `ppm_walk.py`. Source: `techniques.md` 11.4, the valid
form of #1959, whose original is a study (`studies/byte_spread.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qpack.errors import ConfigError, DataError
from qpack.eval.gate import Gate, fixed_gate, learned_gate
from qpack.eval.ppm import Ppm
from qpack.eval.ppm_walk import (
    ALPHABET,
    Learned,
    Place,
    mix_all,
    new_desk,
    score_all,
)
from qpack.eval.predictor import LogProbs, Tokens
from qpack.eval.trie import ROOT, Trie, build_trie
from qpack.tokenizer import Tokenizer

MAX_ORDER = 6
MAX_RATE = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PpmSettings:
    """How to count and how to mix."""

    order: int = 4
    """Bytes of the longest context"""
    gate: Literal["learned", "fixed"] = "learned"
    """Whether the network's weight is learned from the scored text, or is one of two constants"""
    rate: float = 0.5
    """Of the learned gate: how far a first gradient moves a weight"""
    threshold: float = 0.9
    """Of the fixed gate: the confidence above which the counts are trusted"""
    sure: float = 0.05
    """Of the fixed gate: the network's weight above the threshold"""
    unsure: float = 0.9
    """Of the fixed gate: the network's weight elsewhere"""

    def __post_init__(self) -> None:
        """Raises ConfigError naming every setting that cannot be."""
        shares = {"threshold": self.threshold, "sure": self.sure, "unsure": self.unsure}
        wrong = [
            f"{name} = {value}: not from 0 to 1"
            for name, value in shares.items()
            if not 0 <= value <= 1
        ]
        if not 0 <= self.order <= MAX_ORDER:
            wrong.append(f"order = {self.order}: not from 0 to {MAX_ORDER}")
        if self.gate not in ("learned", "fixed"):
            wrong.append(f"gate = {self.gate!r}: neither 'learned' nor 'fixed'")
        if not 0 <= self.rate <= MAX_RATE:
            wrong.append(f"rate = {self.rate}: not from 0 to {MAX_RATE}")
        if wrong:
            raise ConfigError("the PPM mixer cannot be set so", items=wrong)

    def new_gate(self) -> Gate:
        """The gate of these settings, before anything was scored."""
        if self.gate == "learned":
            return learned_gate(rate=self.rate)
        return fixed_gate(threshold=self.threshold, sure=self.sure, unsure=self.unsure)


class PpmMixer:
    """A `Mixer` for the models of one tokenizer."""

    name = "ppm"

    def __init__(self, settings: PpmSettings, tokenizer: Tokenizer) -> None:
        self.settings = settings
        spaces = tokenizer.leading_space
        texts = zip(spaces, tokenizer.piece_texts, strict=True)
        self._trie = build_trie([b" " * bool(space) + text for space, text in texts])

    def start(self, first: int) -> PpmState:
        """A state that has seen the token `first`."""
        return PpmState(self.settings, self._trie, first)


class PpmState:
    """The counts and the gate of one stream: a `MixerState`."""

    def __init__(self, settings: PpmSettings, trie: Trie, first: int) -> None:
        self._ppm = Ppm(order=settings.order, alphabet=ALPHABET)
        self._trie = trie
        self._gate = settings.new_gate()
        self._ends = np.zeros((len(trie.symbol), 2))
        self._desk = new_desk(trie)
        self._place = Place(self._ppm.context, ROOT)
        equal = np.full((1, len(trie.node)), -np.log(len(trie.node)))
        unscored = self._gate._replace(learned=False)
        self._advance(equal, np.array([first]), unscored)

    def mix(self, row: LogProbs) -> LogProbs:
        """(V,): log-probabilities of the next token, from the network's (V,). Changes nothing."""
        learned = self._learned(self._gate)
        return mix_all(learned, self._desk, self._place, self._checked(row[None])[0])

    def observe(self, token: int, row: LogProbs) -> None:
        """The next token was `token`; the network's log-probabilities of it were `row` (V,)."""
        self._advance(row[None], np.array([token]), self._gate)

    def advance(self, rows: LogProbs, targets: Tokens) -> NDArray[np.float64]:
        """(b,): mixed log-probabilities of `targets` (b,) by `rows` (b, V), learning from each.

        Raises `DataError` for rows or tokens that are not of the tokenizer's vocabulary.
        """
        return self._advance(rows, targets, self._gate)

    def _advance(self, rows: LogProbs, targets: Tokens, gate: Gate) -> NDArray[np.float64]:
        rows = self._checked(rows)
        tokens = np.asarray(targets, np.int64)
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < rows.shape[1]:
            raise DataError(f"a token is beyond the tokenizer's {rows.shape[1]:,}")
        depths = self._trie.depth[self._trie.node[tokens]]
        self._ppm.reserve(int(np.maximum(depths, 1).sum()))
        learned = self._learned(gate)
        found, self._place = score_all(learned, self._desk, self._place, rows, tokens)
        return found

    def _learned(self, gate: Gate) -> Learned:
        return Learned(self._trie, self._ppm.tables, self._ppm.shape, self._ends, gate)

    def _checked(self, rows: LogProbs) -> LogProbs:
        if rows.shape[1] != len(self._trie.node):
            raise DataError(
                f"the tokenizer has {len(self._trie.node):,} tokens, the model {rows.shape[1]:,}",
                hint="give the tokenizer that the model was trained with",
            )
        return np.ascontiguousarray(rows, np.float64)
