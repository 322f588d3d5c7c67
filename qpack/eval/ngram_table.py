"""Exact counts of all n-grams of a growing stream, up to an order, in one compiled table.

The n-grams form a trie: a node is an n-gram, its parent the n-gram without its last token, its
children are the followers of it as a context. The stream's last k tokens have a node for every
k < `max_order`; a new token moves each of them to a child, which is made where it is new. So one
look-up an order finds the count of a token in its context, and the next contexts with it.

Children are found by open addressing on the pair (parent, token), which is compared in full: there
are no collisions, whatever the hash. The followers of a context are also linked in a ring that is
entered at the most frequent one (of equals, at the smallest token), so both the likeliest follower
and all followers of a context can be had without a search.

Memory: 24 bytes a node and 8 to 16 a node for the hash. English in pieces of a 1,024-token
vocabulary makes about 6 nodes a token at `max_order` 9, so a million tokens take some 250 MB.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qpack.errors import ResourceError
from qpack.eval.compiled import compiled

ROOT = 0
"""The empty n-gram. It is nobody's child, so 0 also means "none" wherever a child is named."""
NODE = np.dtype(
    [
        ("parent", np.int32),
        ("token", np.int32),
        ("times", np.int32),  # occurrences so far, the stream's end included
        ("kinds", np.int32),  # distinct followers
        ("best", np.int32),  # the most frequent follower's node; of equals, the smallest token's
        ("next", np.int32),  # the next follower of the same parent, in a ring
    ]
)
FIRST_NODES = 1 << 14
MAX_NODES = np.iinfo(np.int32).max
NUM_NODES, DEPTH = 0, 1
"""Places in `Arrays.size`: nodes in use, and tokens that the longest known context has."""


class Arrays(NamedTuple):
    """The table as compiled functions see it."""

    slots: NDArray[np.int32]
    """(a power of two,) nodes by hash; 0 where empty. At most half are taken."""
    nodes: Any
    """(capacity,) `NODE` records"""
    recent: NDArray[np.int32]
    """(max_order,) the node of the last k tokens, for k up to the depth"""
    size: NDArray[np.int64]
    """(2,) see `NUM_NODES`"""


class NgramTable:
    """Counts of the n-grams of a stream, for n from 1 to `max_order`.

    `arrays` is for compiled functions, which may call `observe` for as many tokens as were
    reserved. Its fields are replaced when the table grows.
    """

    def __init__(self, max_order: int) -> None:
        nodes = np.zeros(FIRST_NODES, NODE)
        nodes["times"][ROOT] = 1  # so that the root, too, has followed `times - 1` tokens
        self.arrays = Arrays(
            slots=np.zeros(2 * FIRST_NODES, np.int32),
            nodes=nodes,
            recent=np.zeros(max_order, np.int32),
            size=np.array([1, 0], np.int64),
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of memory that the table has asked for."""
        return sum(array.nbytes for array in self.arrays)

    def reserve(self, num_tokens: int) -> Arrays:
        """The arrays, grown where needed to take `num_tokens` more tokens.

        Raises `ResourceError` where the stream has more n-grams than the table can number.
        """
        old = self.arrays
        needed = int(old.size[NUM_NODES]) + num_tokens * len(old.recent)
        if needed > len(old.nodes):
            if needed > MAX_NODES:
                raise ResourceError(
                    f"the stream has more than {MAX_NODES:,} n-grams",
                    hint="count n-grams of a smaller order, or score a shorter text",
                )
            capacity = 1 << (needed - 1).bit_length()
            nodes = np.zeros(capacity, NODE)
            nodes[: len(old.nodes)] = old.nodes
            slots = np.zeros(2 * capacity, np.int32)
            self.arrays = Arrays(slots, nodes, old.recent, old.size)
            rehash(self.arrays)
        return self.arrays

    def observe(self, token: int) -> None:
        """The next token of the stream was `token`."""
        observe(self.reserve(1), token)

    def followers(self, length: int) -> dict[int, int]:
        """How often each token has followed the stream's last `length` tokens, the most frequent
        first; empty where they are new. `length` is below the order."""
        nodes = self.arrays.nodes
        found: dict[int, int] = {}
        if length <= self.arrays.size[DEPTH]:
            first = node = nodes[self.arrays.recent[length]]["best"]
            while node and (node != first or not found):
                found[int(nodes[node]["token"])] = int(nodes[node]["times"])
                node = nodes[node]["next"]
        return found


# -- compiled -------------------------------------------------------------------------------------

_SPREAD, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)
_HALF = np.uint64(32)


@compiled
def find(table: Arrays, parent: int, token: int) -> Any:
    """The slot of `token` under `parent`, or the empty slot where it belongs."""
    mask = np.uint64(len(table.slots) - 1)
    key = (np.uint64(parent) << _HALF | np.uint64(token)) * _SPREAD
    key = (key ^ (key >> _HALF)) * _MIX
    slot = np.int64((key ^ (key >> _HALF)) & mask)
    while table.slots[slot] != ROOT:
        node = table.nodes[table.slots[slot]]
        if node.parent == parent and node.token == token:
            break
        slot = (slot + 1) & (len(table.slots) - 1)
    return slot


@compiled
def times_of(table: Arrays, parent: int, token: int) -> Any:
    """How often `token` has followed `parent`."""
    node = table.slots[find(table, parent, token)]
    return table.nodes[node].times if node != ROOT else 0


@compiled
def observe(table: Arrays, token: int) -> None:
    """Count `token` in all contexts and move them on by it."""
    depth = table.size[DEPTH]
    longest = len(table.recent) - 1
    for k in range(depth, -1, -1):
        node = visit(table, table.recent[k], token)
        if k < longest:
            table.recent[k + 1] = node
    table.nodes[ROOT].times += 1
    table.size[DEPTH] = min(depth + 1, longest)


@compiled
def visit(table: Arrays, parent: int, token: int) -> Any:
    """The node of `token` under `parent`, counted once more."""
    slot = find(table, parent, token)
    node = table.slots[slot]
    if node == ROOT:
        node = table.size[NUM_NODES]
        table.size[NUM_NODES] = node + 1
        table.slots[slot] = node
        enter(table, parent, node)
        table.nodes[node].parent = parent
        table.nodes[node].token = token
    new, old = table.nodes[node], table.nodes[table.nodes[parent].best]
    new.times += 1
    if new.times > old.times or (new.times == old.times and token < old.token):
        table.nodes[parent].best = node
    return node


@compiled
def enter(table: Arrays, parent: int, node: int) -> None:
    """Put the new `node` into the ring of the followers of `parent`."""
    above = table.nodes[parent]
    if above.best == ROOT:
        above.best = node
        table.nodes[node].next = node
    else:
        table.nodes[node].next = table.nodes[above.best].next
        table.nodes[above.best].next = node
    above.kinds += 1


@compiled
def rehash(table: Arrays) -> None:
    """Fill the empty slots with all nodes."""
    for node in range(1, table.size[NUM_NODES]):
        record = table.nodes[node]
        table.slots[find(table, record.parent, record.token)] = node
