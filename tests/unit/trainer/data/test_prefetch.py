from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from qpack.errors import ConfigError
from qpack.trainer.data.loader import Loader
from qpack.trainer.data.prefetch import Prefetcher


def make(**options: int) -> Loader:
    tokens = np.arange(3000, dtype=np.uint16)
    return Loader([tokens], sequence=16, batch=8, seed=2, **options)


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("qpack-batches")]


@pytest.mark.parametrize("parts", [1, 2])
def test_looking_ahead_changes_nothing(parts: int) -> None:
    loader = make(rank=1, world_size=2)
    with Prefetcher(loader, parts=parts, device="cpu") as batches:
        for step in (0, 1, 2, 3, 9, 10, 2, 0, 0, 5):  # in order, with gaps, backwards
            got = list(batches.step(step))
            assert len(got) == parts
            for part, (inputs, targets) in enumerate(got):
                expected = loader.batch(step, part, parts)
                assert inputs.dtype == targets.dtype == torch.int32
                assert torch.equal(inputs.long(), expected[0])
                assert torch.equal(targets.long(), expected[1])
    assert threads() == []


def test_without_the_context_batches_are_made_when_asked() -> None:
    ((inputs, _),) = Prefetcher(make(), device="cpu").step(3)
    assert torch.equal(inputs.long(), make().batch(3)[0])
    assert threads() == []


def test_steps_ahead_are_made_before_they_are_asked_for() -> None:
    loader, made = make(), threading.Event()
    real = loader.rows

    def rows(step: int, *arguments: int, **options: object) -> object:
        if step == 2:
            made.set()
        return real(step, *arguments, **options)

    loader.rows = rows
    with Prefetcher(loader, device="cpu") as batches:
        list(batches.step(0))
        assert made.wait(timeout=20)


def test_what_goes_wrong_in_the_thread_reaches_the_caller() -> None:
    with Prefetcher(make(), parts=3, device="cpu") as batches, pytest.raises(ConfigError):
        list(batches.step(0))
    assert threads() == []


@pytest.mark.gpu
def test_cuda_gets_the_same() -> None:
    loader = make()
    with Prefetcher(loader, parts=2, device="cuda") as batches:
        for step in range(50):
            for part, (inputs, targets) in enumerate(batches.step(step)):
                expected = loader.batch(step, part, 2)
                assert inputs.is_cuda
                assert torch.equal(inputs.long().cpu(), expected[0])
                assert torch.equal(targets.long().cpu(), expected[1])
