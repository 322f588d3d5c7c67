"""What differs is named, and a probe sees the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from qpack.checkpoint import load
from qpack.eval.fingerprint import PACKAGES, differences, fingerprint, probe, single_thread
from qpack.eval.network import Network
from qpack.eval.predictor import Mixture
from qpack.eval.tilt import TiltMixer, TiltSettings
from qpack.options import PackOptions


@pytest.fixture
def network(given: PackOptions) -> Network:
    return Network(load(given.checkpoint), window=64)


def test_it_names_machine_packages_and_probe(network: Network) -> None:
    found = fingerprint(network)
    assert found == fingerprint(network)
    names = {"processor", "instructions", "mathematics", "qpack", "probe", *PACKAGES}
    assert names <= found.keys()
    assert all(found.values())


def test_the_probe_sees_the_last_bit_of_a_weight(network: Network) -> None:
    before = probe(network)
    weight = next(network.model.parameters())
    with torch.no_grad():
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(10.0))
    assert probe(network) != before


def test_the_probe_sees_the_last_bit_of_what_the_coder_is_given(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exponentials are another routine than the rows."""
    before, exp = probe(network), np.exp
    monkeypatch.setattr(np, "exp", lambda row: np.nextafter(exp(row), 0.0))
    assert probe(network) != before


def test_the_probe_sees_passes_over_many_tokens(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a mixture's network too, which a mixture asks for every row."""
    mixture = Mixture(network, TiltMixer(TiltSettings(), network.vocab_size))
    before = [probe(network), probe(mixture)]
    model: Any = network.model
    forward = model.forward
    monkeypatch.setattr(
        model,
        "forward",
        lambda tokens, **more: forward(tokens, **more) * (1.001 if tokens.size(1) > 1 else 1.0),
    )
    after = [probe(network), probe(mixture)]
    assert all(old != new for old, new in zip(before, after, strict=True))


def test_the_probe_does_not_depend_on_threads(network: Network) -> None:
    before = torch.get_num_threads()
    found = set()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.add(probe(network))
    finally:
        torch.set_num_threads(before)
    assert len(found) == 1


def test_threads_come_back_after_an_error() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ZeroDivisionError), single_thread():
            assert torch.get_num_threads() == 1
            raise ZeroDivisionError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_every_difference_is_named() -> None:
    there = {"torch": "2.12.0", "probe": "a", "old": "x"}
    here = {"torch": "2.13.0", "probe": "a", "new": "y"}
    assert differences(there, here) == [
        "torch: 2.12.0 there, 2.13.0 here",
        "old: x there, not known here",
        "new: not given there, y here",
    ]
    assert differences(here, here) == []
