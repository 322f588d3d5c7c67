"""What differs is named, and a probe sees the last bit."""

from __future__ import annotations

import pytest
import torch

from qpack.checkpoint import load
from qpack.eval.fingerprint import PACKAGES, differences, fingerprint, probe, single_thread
from qpack.eval.network import Network
from qpack.options import PackOptions


@pytest.fixture
def network(given: PackOptions) -> Network:
    return Network(load(given.checkpoint), window=16)


def test_it_names_machine_packages_and_probe(network: Network) -> None:
    found = fingerprint(network)
    assert found == fingerprint(network)
    assert {"processor", "instructions", "qpack", "probe", *PACKAGES} <= found.keys()
    assert all(found.values())


def test_the_probe_sees_the_last_bit_of_a_weight(network: Network) -> None:
    before = probe(network)
    weight = next(network.model.parameters())
    with torch.no_grad():
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(10.0))
    assert probe(network) != before


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
