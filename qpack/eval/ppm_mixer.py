"""The mixer that adds what PPM-D learns from the text to a network, byte by byte.

Both forms walk the same trie with the same numbers: `advance` the path of the target, `mix` all of
it. A gate decides at each node how much the network counts (`gate.py`); how both become
distributions over what can come there is in `ppm_walk.py`. Source: `techniques.md` 11.4, the valid
form of #1959, whose original is a study (`studies/byte_spread.py`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qpack.eval.blocks import as_rows, check_block, check_row
from qpack.eval.gate import NO_LEAD, Gate
from qpack.eval.ppm import Ppm
from qpack.eval.ppm_settings import PpmSettings
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
        self._place = Place(self._ppm.context, ROOT, NO_LEAD)
        equal = np.full((1, len(trie.node)), -np.log(len(trie.node)))
        unscored = self._gate._replace(learned=False)
        self._advance(equal, np.array([first]), unscored)
        self._place = self._place._replace(lead=NO_LEAD)

    def mix(self, row: LogProbs) -> LogProbs:
        """(V,): log-probabilities of the next token, from the network's (V,). Changes nothing.

        Raises `DataError` for a row of another vocabulary.
        """
        row = check_row(row, len(self._trie.node))
        return mix_all(self._learned(self._gate), self._desk, self._place, row)

    def observe(self, token: int, row: LogProbs) -> None:
        """The next token was `token`; the network's log-probabilities of it were `row` (V,)."""
        self._advance(row[None], np.array([token]), self._gate)

    def advance(self, rows: LogProbs, targets: Tokens) -> NDArray[np.float64]:
        """(b,): mixed log-probabilities of `targets` (b,) by `rows` (b, V), learning from each.

        Raises `DataError` for rows or targets of another vocabulary.
        """
        return self._advance(rows, targets, self._gate)

    def _advance(self, rows: LogProbs, targets: Tokens, gate: Gate) -> NDArray[np.float64]:
        rows = as_rows(rows)
        tokens = check_block(rows, targets, len(self._trie.node))
        depths = self._trie.depth[self._trie.node[tokens]]
        self._ppm.reserve(int(np.maximum(depths, 1).sum()))
        learned = self._learned(gate)
        found, self._place = score_all(learned, self._desk, self._place, rows, tokens)
        return found

    def _learned(self, gate: Gate) -> Learned:
        return Learned(self._trie, self._ppm.tables, self._ppm.shape, self._ends, gate)
