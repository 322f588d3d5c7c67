from __future__ import annotations

import math
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qpack.trainer.data import curriculum as module
from qpack.trainer.data.curriculum import Curriculum

VOCAB = 12


def tokens(seed: int, size: int = 400) -> np.ndarray:
    """Token 0 is followed by anything, the others mostly by one."""
    rng = np.random.default_rng(seed)
    found = [0]
    for chance in rng.random(size - 1):
        before = found[-1]
        found.append(int(rng.integers(9)) if before == 0 or chance < 0.2 else (before * 5) % 9)
    return np.array(found, dtype=np.uint16)


def reference(
    table: np.ndarray, inputs: torch.Tensor, targets: torch.Tensor, power: float
) -> np.ndarray:
    """The formula, densely."""
    counts = np.full((VOCAB, VOCAB), 0.01)
    for x, y in pairwise(table):
        counts[x, y] += 1
    p = counts / counts.sum(1, keepdims=True)
    entropy = -(p * np.log(p)).sum(1)
    h = (entropy - entropy.min()) / (entropy.max() - entropy.min())
    raw = np.zeros(inputs.shape)
    for place in np.ndindex(*inputs.shape):
        x, y = int(inputs[place]), int(targets[place])
        if y >= 0:
            raw[place] = 1 + power * min(-math.log(p[x, y]) * h[x] / 5, 1)
    return raw / raw[targets.numpy() >= 0].mean()


def batch(seed: int, shape: tuple[int, int] = (4, 16)) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    inputs = torch.from_numpy(rng.integers(0, VOCAB, shape))
    targets = torch.from_numpy(rng.integers(-1, VOCAB, shape))
    return inputs.int(), targets.int()


@given(st.integers(0, 50), st.sampled_from([0.05, 0.1, 1.0, 10.0]))
def test_weights_against_a_slow_reference(seed: int, power: float) -> None:
    table = tokens(seed)
    curriculum = Curriculum.from_tokens(table, vocab_size=VOCAB, power=power)
    inputs, targets = batch(seed)
    weights = curriculum.weigh([(inputs, targets)])[0]
    assert weights.dtype == torch.float32
    expected = reference(table, inputs, targets, power)
    np.testing.assert_allclose(weights.numpy(), expected, rtol=2e-5)
    assert float(weights.sum()) == pytest.approx(int((targets >= 0).sum()), rel=1e-5)
    assert (weights[targets < 0] == 0).all()
    assert power < 1 or weights.max() > 1.2 * weights[targets >= 0].min()


def test_the_cut_of_a_batch_does_not_matter() -> None:
    curriculum = Curriculum.from_tokens(tokens(1), vocab_size=VOCAB, power=1.0)
    inputs, targets = batch(3, (6, 16))
    whole = curriculum.weigh([(inputs, targets)])[0]
    cut = curriculum.weigh([(inputs[i : i + 2], targets[i : i + 2]) for i in (0, 2, 4)])
    torch.testing.assert_close(torch.cat(cut), whole, rtol=1e-6, atol=0)
    alone = curriculum.weigh([(inputs[:2], targets[:2])])[0]
    assert not torch.allclose(alone, whole[:2], rtol=1e-4)


def test_only_the_first_tokens_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TABLE_TOKENS", 100)
    inputs, targets = batch(0)
    long = Curriculum.from_tokens(tokens(2), vocab_size=VOCAB, power=1.0)
    short = Curriculum.from_tokens(tokens(2)[:100], vocab_size=VOCAB, power=1.0)
    weights = [some.weigh([(inputs, targets)])[0] for some in (long, short)]
    assert torch.equal(*weights)


def test_rows_that_are_all_alike_and_batches_without_targets() -> None:
    cycle = np.arange(481, dtype=np.uint16) % VOCAB
    curriculum = Curriculum.from_tokens(cycle, vocab_size=VOCAB, power=1.0)
    inputs, targets = batch(0)
    weights = curriculum.weigh([(inputs, targets)])[0]
    assert torch.allclose(weights, (targets >= 0).float())
    assert (curriculum.weigh([(inputs, torch.full_like(targets, -1))])[0] == 0).all()


PROGRAM = """
import sys, torch, torch.distributed as dist, numpy as np
from qpack import distributed
from qpack.trainer.data.curriculum import Curriculum
tokens = np.load(sys.argv[1])
inputs, targets = torch.from_numpy(np.load(sys.argv[2]))
with distributed.session():
    rank = dist.get_rank()
    curriculum = Curriculum.from_tokens(tokens, vocab_size=12, power=1.0)
    (weights,) = curriculum.weigh([(inputs[rank::2], targets[rank::2])])
    np.save(f"{sys.argv[3]}{rank}.npy", weights.numpy())
"""


def test_two_ranks_weigh_as_one(tmp_path: Path) -> None:
    table, (inputs, targets) = tokens(1), batch(3, (6, 16))
    np.save(tmp_path / "table.npy", table)
    np.save(tmp_path / "batch.npy", torch.stack([inputs, targets]).numpy())
    paths = [tmp_path / "table.npy", tmp_path / "batch.npy", tmp_path / "out"]
    (tmp_path / "main.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, tmp_path / "main.py", *paths],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    whole = Curriculum.from_tokens(table, vocab_size=VOCAB, power=1.0).weigh([(inputs, targets)])[0]
    for rank in range(2):
        part = torch.from_numpy(np.load(f"{paths[2]}{rank}.npy"))
        torch.testing.assert_close(part, whole[rank::2], rtol=1e-6, atol=0)


@pytest.mark.gpu
def test_cuda_gives_the_same() -> None:
    inputs, targets = batch(0, (64, 256))
    weights = [
        Curriculum.from_tokens(tokens(2), vocab_size=VOCAB, power=1.0, device=device)
        .weigh([(inputs.to(device), targets.to(device))])[0]
        .cpu()
        for device in ("cpu", "cuda")
    ]
    torch.testing.assert_close(*weights, rtol=1e-5, atol=0)
