"""A network's distribution over tokens and a PPM's over text, mixed byte by byte in the trie.

The PPM reads the text: 256 bytes, and symbol 256 for a token that stands for none (a control token,
END at the root). At every node of the trie its distribution, given the text before the token and
the node's own bytes, becomes one over what can come in the trie: END and the node's children.

What END means to it. If the text goes on with byte b, the token either ended before it or holds it.
It must have ended if no child goes on with b; else how often it did is counted for each child c,
as e(c). So, with P the distribution of the next byte,

    child by b:   P(b) (1 - e(c))          END:   sum over children P(b) e(c) + P of all other bytes

which sums to 1 as P does. The byte after END is the next token's first and was ruled out as far as
e said: at the root P(b) is weighed by e(c) of the node where the token before ended, and
renormalised. Nodes where no piece ends have their children's P(b), renormalised. So no context is
diluted by END, and where a token's end follows from the next byte it costs nothing. Where it
follows from later bytes it costs what e leaves open, which those bytes do not win back.

Within a token nothing is learned, for then all tokens can be asked about; after it, everything.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qpack.eval.compiled import compiled
from qpack.eval.gate import (
    FEATURES,
    Gate,
    Lead,
    after_token,
    describe,
    further,
    learn,
    weigh,
)
from qpack.eval.ppm import Context, Shape, Tables, count, longer, predict
from qpack.eval.trie import ROOT, Trie, child_by, masses, path_to

LEAST = 1e-300
"""Of a probability: one that a float cannot hold is not impossible."""

ALPHABET = 257
END = 0
"""Where END stands in the distribution of a node; child i is at i + 1."""


class Learned(NamedTuple):
    """What is fixed and what was learned so far; the arrays of the latter change in place."""

    trie: Trie
    tables: Tables
    shape: Shape
    ends: NDArray[np.float64]
    """(nodes, 2): how often a token ended before the byte of this node, and how often it could"""
    gate: Gate


class Place(NamedTuple):
    """Where in the stream a walk begins."""

    context: Context
    before: int
    """The node where the last token ended"""
    lead: Lead


class Desk(NamedTuple):
    """Room to work in, so that nothing is allocated for each token."""

    p: NDArray[np.float64]  # (vocab,)
    E: NDArray[np.float64]  # (nodes,)
    M: NDArray[np.float64]  # (nodes,)
    P: NDArray[np.float64]  # (ALPHABET,)
    w: NDArray[np.float64]  # (ALPHABET,): 1 but while the root is looked at
    q: NDArray[np.float64]  # (1 + most children,)
    r: NDArray[np.float64]  # (1 + most children,)
    mixed: NDArray[np.float64]  # (1 + most children,)
    path: NDArray[np.int64]  # (1 + longest piece,)
    x: NDArray[np.float64]  # (1 + longest piece, FEATURES): by decision
    found: NDArray[np.float64]  # (1 + longest piece, 3): lambda, q, r


def new_desk(trie: Trie) -> Desk:
    """Room for walks in `trie`."""
    nodes, most = len(trie.symbol), int(np.diff(trie.first).max()) + 1
    longest = int(trie.depth.max()) + 1
    return Desk(
        p=np.empty(len(trie.node)),
        E=np.empty(nodes),
        M=np.empty(nodes),
        P=np.empty(ALPHABET),
        w=np.ones(ALPHABET),
        q=np.empty(most),
        r=np.empty(most),
        mixed=np.empty(most),
        path=np.empty(longest, np.int64),
        x=np.empty((longest, FEATURES)),
        found=np.empty((longest, 3)),
    )


@compiled
def score_all(
    learned: Learned,
    desk: Desk,
    place: Place,
    rows: NDArray[np.float64],
    targets: NDArray[np.int64],
) -> tuple[NDArray[np.float64], Place]:
    """Log-probabilities (b,) of `targets` (b,) by the network's log-probabilities `rows` (b, V),
    learning from each; and where the stream goes on."""
    out = np.empty(len(targets))
    for i in range(len(targets)):
        _exp(rows[i], desk.p)
        out[i] = _score(learned, desk, place, targets[i])
        place = _observe(learned, desk, place, targets[i])
    return out, place


@compiled
def _observe(learned: Learned, desk: Desk, place: Place, token: int) -> Place:
    """`token` came, which was just scored: learn from it; where the stream goes on."""
    trie = learned.trie
    length = path_to(trie, token, desk.path)
    context = place.context
    begin = min(1, length - 1)
    if place.before != ROOT:
        refused = child_by(trie, place.before, trie.symbol[desk.path[begin]])
        if refused >= 0:
            learned.ends[refused, 0] += 1.0
            learned.ends[refused, 1] += 1.0
    for i in range(begin, length):
        if i > 1 and trie.pieces[desk.path[i - 1]]:
            learned.ends[desk.path[i], 1] += 1.0
        context = count(learned.tables, learned.shape, context, trie.symbol[desk.path[i]])
    lead = place.lead
    for i in range(length):
        if desk.found[i, 0] >= 0.0:
            learn(learned.gate, i, desk.x[i], desk.found[i])
            lead = further(lead, desk.found[i, 1], desk.found[i, 2])
    return Place(context, trie.node[token], after_token(lead))


@compiled
def mix_all(
    learned: Learned, desk: Desk, place: Place, row: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(V,): log-probabilities of all tokens, from the network's (V,). Nothing is learned."""
    trie = learned.trie
    _exp(row, desk.p)
    masses(trie, desk.p, desk.E, desk.M)
    nodes = len(trie.symbol)
    contexts = np.empty((nodes, 2), np.int64)
    contexts[ROOT, 0], contexts[ROOT, 1] = place.context
    reach, ending, ahead = np.ones(nodes), np.empty(nodes), np.zeros(nodes)
    for n in range(nodes):
        context = Context(contexts[n, 0], contexts[n, 1])
        lead = Lead(ahead[n], place.lead.recent)
        at_node = Place(context, place.before, lead)
        lam = _decide(learned, desk, at_node, n, trie.depth[n])
        ending[n] = reach[n] * desk.mixed[END]
        for i in range(trie.first[n], trie.first[n + 1]):
            child = trie.children[i]
            at = 1 + trie.rank[child]
            reach[child] = reach[n] * desk.mixed[at]
            ahead[child] = further(lead, desk.q[at], desk.r[at]).token if lam >= 0.0 else ahead[n]
            contexts[child, 0], contexts[child, 1] = longer(
                learned.shape, context, trie.symbol[child]
            )
    out = np.empty(len(row))
    for v in range(len(row)):
        out[v] = math.log(ending[trie.node[v]] * _identity(trie, desk, v))
    return out


@compiled
def _score(learned: Learned, desk: Desk, place: Place, target: int) -> float:
    trie = learned.trie
    masses(trie, desk.p, desk.E, desk.M)
    length = path_to(trie, target, desk.path)
    total = math.log(_identity(trie, desk, target))
    for i in range(length):
        n = desk.path[i]
        desk.found[i, 0] = _decide(learned, desk, place, n, i)
        at = 1 + trie.rank[desk.path[i + 1]] if i + 1 < length else END
        desk.found[i, 1], desk.found[i, 2] = desk.q[at], desk.r[at]
        total += math.log(desk.mixed[at])
        if i + 1 < length:
            lead = place.lead
            if desk.found[i, 0] >= 0.0:
                lead = further(lead, desk.q[at], desk.r[at])
            context = longer(learned.shape, place.context, trie.symbol[desk.path[i + 1]])
            place = Place(context, place.before, lead)
    return total


@compiled
def _identity(trie: Trie, desk: Desk, v: int) -> float:
    """The probability of `v` among the pieces of its bytes."""
    n = trie.node[v]
    share: float = desk.p[v] / desk.E[n] if desk.E[n] > 0.0 else 1.0 / trie.pieces[n]
    return share


@compiled
def _exp(row: NDArray[np.float64], p: NDArray[np.float64]) -> None:
    for v in range(len(row)):
        p[v] = max(math.exp(row[v]), LEAST)


@compiled
def _decide(learned: Learned, desk: Desk, place: Place, node: int, step: int) -> float:
    """Fill q, r and `mixed` of `desk` with what the network, the counts and both say of END and the
    children of `node`, whose bytes `place.context` ends with, and row `step` of x with the gate's
    features. lambda; -1 where only one thing can come."""
    trie = learned.trie
    outcomes = 1 + trie.first[node + 1] - trie.first[node]
    q, r, x = desk.q[:outcomes], desk.r[:outcomes], desk.x[step]
    live = outcomes - (trie.pieces[node] == 0)
    if live == 1:
        for i in range(outcomes):
            desk.mixed[i] = 1.0 if i == outcomes - 1 else 0.0
        return -1.0
    _network(trie, desk, node, live, q)
    seen = predict(learned.tables, learned.shape, place.context, desk.P)
    if node == ROOT:
        _first_byte(learned, desk, place.before, r)
    else:
        _next_byte(learned, desk.P, node, r)
    describe(seen, place.lead, q, r, x)
    lam = weigh(learned.gate, trie.depth[node], seen, x)
    for i in range(outcomes):
        desk.mixed[i] = lam * q[i] + (1.0 - lam) * r[i]
    return lam


@compiled
def _network(trie: Trie, desk: Desk, node: int, live: int, q: NDArray[np.float64]) -> None:
    """The network's q; equal shares where it gives the whole node nothing."""
    mass = desk.M[node]
    can_end = trie.pieces[node] > 0
    if mass > 0.0:
        q[END] = desk.E[node] / mass
        for i in range(1, len(q)):
            q[i] = desk.M[trie.children[trie.first[node] + i - 1]] / mass
    else:
        for i in range(len(q)):
            q[i] = 1.0 / live
        q[END] *= can_end


@compiled
def _first_byte(learned: Learned, desk: Desk, before: int, r: NDArray[np.float64]) -> None:
    """r at the root, after a token that ended at node `before`."""
    trie = learned.trie
    begin, end = (trie.first[before], trie.first[before + 1]) if before != ROOT else (0, 0)
    for i in range(begin, end):
        child = trie.children[i]
        desk.w[trie.symbol[child]] = _ended(learned.ends, child)
    r[END] = desk.P[trie.symbol[ROOT]] if trie.pieces[ROOT] else 0.0
    total = r[END]
    for i in range(1, len(r)):
        symbol = trie.symbol[trie.children[trie.first[ROOT] + i - 1]]
        r[i] = desk.w[symbol] * desk.P[symbol]
        total += r[i]
    for i in range(len(r)):
        r[i] /= total
    for i in range(begin, end):
        desk.w[trie.symbol[trie.children[i]]] = 1.0


@compiled
def _next_byte(learned: Learned, P: NDArray[np.float64], node: int, r: NDArray[np.float64]) -> None:
    """r at a node inside the trie."""
    trie = learned.trie
    can_end = trie.pieces[node] > 0
    going, ending = 0.0, 0.0
    for i in range(1, len(r)):
        child = trie.children[trie.first[node] + i - 1]
        r[i] = P[trie.symbol[child]]
        if can_end:
            e = _ended(learned.ends, child)
            ending += r[i] * e
            r[i] *= 1.0 - e
        going += r[i]
    r[END] = max(1.0 - going, ending) if can_end else 0.0
    total = going + r[END]
    for i in range(len(r)):
        r[i] /= total


@compiled
def _ended(ends: NDArray[np.float64], child: int) -> float:
    """How likely a token ends before the byte of `child`, if that is the byte to come."""
    share: float = (ends[child, 0] + 0.5) / (ends[child, 1] + 1.0)
    return share
