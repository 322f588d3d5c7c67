"""The float model's row and the divergence to it, in one pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from qpack.errors import DataError
from qpack.eval.network import Network
from qpack.eval.reference import Reference
from tests.unit.trainer.model.tiny import BOS, tiny

TOKENS = np.random.default_rng(3).integers(37, size=50).astype(np.uint16)


@pytest.mark.parametrize(
    "reading",
    [{"window": 12}, {"window": 12, "stride": 5}, {"window": 12, "stride": 4, "isolate": BOS}],
    ids=str,
)
def test_it_scores_as_a_network_and_the_divergence_is_the_formula(reading: dict[str, Any]) -> None:
    other = Network(tiny(seed=1), **reading)
    reference = Reference(tiny(seed=0), other)
    expected = Network(tiny(seed=0), **reading)
    np.testing.assert_array_equal(reference.score(TOKENS), expected.score(TOKENS))
    log_p, log_q = (
        np.concatenate([rows for rows, _ in network.rows(TOKENS)]) for network in (expected, other)
    )
    wanted = (np.exp(log_p) * (log_p - log_q)).sum() / (len(TOKENS) - 1)
    assert wanted > 1e-3
    assert reference.kl == pytest.approx(wanted, rel=1e-9)
    assert (reference.name, reference.settings) == ("float", other.settings)


def test_another_vocabulary_is_refused() -> None:
    other = Network(tiny(dtype=torch.float32, vocab_size=41))
    with pytest.raises(DataError, match="vocabulary of 37, the model to be compared 41"):
        Reference(tiny(dtype=torch.float32), other)
