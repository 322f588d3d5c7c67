"""Lookups counted over more text: of which tables, and to what."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from qpack.quant.calibrate import Sensing, collect
from qpack.quant.fisher import PRIOR_LOOKUPS
from qpack.quant.frequencies import recounted
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


def gathered() -> tuple[Statistics, list[Tensor]]:
    batches = [torch.arange(24).reshape(4, 6) % 11, torch.arange(18).reshape(3, 6) % 7]
    return collect(Net(), batches, fingerprint="f", sensing=Sensing(batches=1)), batches


def test_tables_that_tokens_look_up_get_the_frequencies_of_all_text() -> None:
    statistics, batches = gathered()
    counts = torch.arange(13) * 100
    found = recounted(statistics, batches[:1], counts).frequencies
    expected = (counts + PRIOR_LOOKUPS) / counts.sum()
    torch.testing.assert_close(found["table.weight"], expected.float())
    torch.testing.assert_close(
        found["twice.weight"], ((2 * counts + PRIOR_LOOKUPS) / counts.sum()).float()
    )
    assert torch.equal(found["pairs.weight"], statistics.frequencies["pairs.weight"])


def test_a_piece_that_calibration_never_met_is_as_frequent_as_it_is() -> None:
    statistics, batches = gathered()
    before = statistics.frequencies["table.weight"]
    counts = torch.full((13,), 10)
    after = recounted(statistics, batches[:1], counts).frequencies["table.weight"]
    assert before[12] < 0.5 * before[0]
    assert after[12] == after[0]


def test_other_batches_than_those_gathered_on_change_nothing() -> None:
    statistics, batches = gathered()
    for given, counts in (
        (batches, torch.ones(13, dtype=torch.int64)),
        (batches[1:], torch.ones(13, dtype=torch.int64)),
        (batches[:1], torch.zeros(13, dtype=torch.int64)),
        ([], torch.ones(13, dtype=torch.int64)),
    ):
        found = recounted(statistics, given, counts)
        assert torch.equal(
            found.frequencies["table.weight"], statistics.frequencies["table.weight"]
        )
    bare = replace(statistics, sensitivity_tokens=0)
    assert recounted(bare, batches[:1], torch.ones(13, dtype=torch.int64)) is bare
