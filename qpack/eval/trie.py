"""The trie over a tokenizer's pieces, in which a distribution over tokens is one over bytes.

A token is the path of its bytes from the root, then END. With p the distribution of the next token,

    M(node) = sum of p over the pieces that begin with the node's bytes
    E(node) = sum of p over the pieces that are the node's bytes

the next byte is b with probability M(child by b) / M(node), the piece ends here with probability
E(node) / M(node), and if several pieces are the same bytes (an ordinary piece and a byte-fallback
one, or the control tokens, which all are the empty string) it is v with probability p(v) / E(node).
Along a path the product telescopes to p(v) exactly, whatever M is. Source: `techniques.md` 11.4.

M is summed from the leaves up, one addition a node: differences of a running sum over the sorted
pieces would lose the small ones to rounding, and the mixture may well prefer a node which the
network thinks impossible.

Pieces are their bytes as scored, the leading space mark being a space. That no space is written
where such a piece follows a boundary token concerns only the number of bytes that a score is
divided by (`Tokenizer.bytes_of`): the token is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qpack.eval.compiled import compiled

ROOT = 0
NO_BYTES = 256
"""The symbol of a token that is the empty string."""


class Trie(NamedTuple):
    """Nodes in preorder, so a parent comes before its children; node 0 is the empty string."""

    parent: NDArray[np.int64]
    """(nodes,); the root is its own"""
    symbol: NDArray[np.int64]
    """(nodes,) the byte that leads to the node; NO_BYTES for the root"""
    depth: NDArray[np.int64]
    """(nodes,) bytes from the root"""
    first: NDArray[np.int64]
    """(nodes + 1,) where each node's children begin in `children`"""
    children: NDArray[np.int64]
    """(nodes - 1,) by node, then by byte"""
    rank: NDArray[np.int64]
    """(nodes,) which child of its parent each node is"""
    pieces: NDArray[np.int64]
    """(nodes,) how many pieces end at the node; where none does, END is impossible"""
    node: NDArray[np.int64]
    """(vocab,) where each piece ends"""


def build_trie(pieces: Sequence[bytes]) -> Trie:
    """The trie of `pieces`, one for each token."""
    prefixes = sorted({piece[:length] for piece in pieces for length in range(len(piece) + 1)})
    number = {prefix: node for node, prefix in enumerate(prefixes)}
    parent = np.array([number[prefix[:-1]] for prefix in prefixes], np.int64)
    node = np.array([number[piece] for piece in pieces], np.int64)
    count = np.bincount(parent[1:], minlength=len(prefixes))
    first = np.concatenate(([0], np.cumsum(count))).astype(np.int64)
    children = 1 + np.argsort(parent[1:], kind="stable").astype(np.int64)
    rank = np.zeros(len(prefixes), np.int64)
    rank[children] = np.arange(len(children)) - first[parent[children]]
    return Trie(
        parent=parent,
        symbol=np.array([prefix[-1] if prefix else NO_BYTES for prefix in prefixes], np.int64),
        depth=np.array([len(prefix) for prefix in prefixes], np.int64),
        first=first,
        children=children,
        rank=rank,
        pieces=np.bincount(node, minlength=len(prefixes)).astype(np.int64),
        node=node,
    )


@compiled
def masses(
    trie: Trie, p: NDArray[np.float64], E: NDArray[np.float64], M: NDArray[np.float64]
) -> None:
    """Fill E and M, (nodes,) float64 each, from probabilities p (vocab,)."""
    for n in range(len(E)):
        E[n] = 0.0
    for v in range(len(p)):
        E[trie.node[v]] += p[v]
    for n in range(len(E)):
        M[n] = E[n]
    for n in range(len(M) - 1, ROOT, -1):
        M[trie.parent[n]] += M[n]


@compiled
def path_to(trie: Trie, token: int, path: NDArray[np.int64]) -> int:
    """Fill `path` with the nodes from the root to the end of `token`; how many there are."""
    n = trie.node[token]
    length: int = trie.depth[n] + 1
    for i in range(length - 1, -1, -1):
        path[i] = n
        n = trie.parent[n]
    return length


@compiled
def child_by(trie: Trie, node: int, symbol: int) -> int:
    """The child of `node` by byte `symbol`; -1 if there is none."""
    low, high = trie.first[node], trie.first[node + 1]
    while low < high:
        middle = (low + high) // 2
        if trie.symbol[trie.children[middle]] < symbol:
            low = middle + 1
        else:
            high = middle
    if low == trie.first[node + 1]:
        return -1
    child: int = trie.children[low]
    return child if trie.symbol[child] == symbol else -1
