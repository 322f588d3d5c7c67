"""Lookups counted over more text: of which tables, and to what."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qpack.quant.calibrate import Sensing, collect
from qpack.quant.fisher import PRIOR_LOOKUPS
from qpack.quant.frequencies import recounted, token_tables
from qpack.quant.statistics import Statistics


class Net(nn.Module):
    """A table of tokens, one of pairs, and one that every token looks up twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.pairs = nn.Embedding(13, 8), nn.Embedding(32, 8)
        self.twice, self.head = nn.Embedding(13, 8), nn.Linear(8, 13)

    def forward(self, tokens: Tensor) -> Tensor:
        pairs = (tokens * 13 + tokens.roll(1, 1)) % 32
        h = self.table(tokens) + self.pairs(pairs) + self.twice(tokens)
        out: Tensor = self.head(torch.tanh(h) + self.twice(tokens))
        return out


def gathered() -> Statistics:
    batches = [torch.arange(24).reshape(4, 6) % 11, torch.arange(18).reshape(3, 6) % 7]
    return collect(Net(), batches, fingerprint="f", sensing=Sensing(batches=1))


def test_tables_that_tokens_look_up_get_the_frequencies_of_all_text() -> None:
    statistics = gathered()
    assert statistics.token_tables == {"table.weight": 1, "twice.weight": 2}
    counts = torch.arange(13) * 100
    found = recounted(statistics, counts).frequencies
    expected = (counts + PRIOR_LOOKUPS) / counts.sum()
    torch.testing.assert_close(found["table.weight"], expected.float())
    torch.testing.assert_close(
        found["twice.weight"], ((2 * counts + PRIOR_LOOKUPS) / counts.sum()).float()
    )
    assert torch.equal(found["pairs.weight"], statistics.frequencies["pairs.weight"])


def test_a_piece_that_calibration_never_met_is_as_frequent_as_it_is() -> None:
    statistics = gathered()
    before = statistics.frequencies["table.weight"]
    after = recounted(statistics, torch.full((13,), 10)).frequencies["table.weight"]
    assert before[12] < 0.5 * before[0]
    assert after[12] == after[0]


def test_lookups_of_other_tokens_are_no_token_table() -> None:
    found = gathered().frequencies
    tokens = torch.arange(24).reshape(4, 6) % 11
    assert token_tables(found, [tokens], 24) == {"table.weight": 1, "twice.weight": 2}
    assert token_tables(found, [tokens + 1], 24) == {}
    assert token_tables(found, [tokens[:3]], 24) == {}
    assert token_tables(found, [], 24) == token_tables(found, [tokens], 0) == {}


def test_frequencies_of_long_texts_come_back() -> None:
    tokens = torch.zeros(3_000_000, dtype=torch.int64)
    tokens[:7] = torch.arange(7)
    f = (torch.bincount(tokens, minlength=9).double() + PRIOR_LOOKUPS) / len(tokens)
    assert token_tables({"t": f.float()}, [tokens[None]], len(tokens)) == {"t": 1}


def test_without_counts_nothing_changes() -> None:
    statistics = gathered()
    found = recounted(statistics, torch.zeros(13, dtype=torch.int64))
    assert torch.equal(found.frequencies["table.weight"], statistics.frequencies["table.weight"])
