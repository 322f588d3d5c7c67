"""Two ranks, each with its own gradients, make the step of one process with their mean."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from qpack.trainer.config import OptimSection
from qpack.trainer.optim.optimizers import Optimizers
from qpack.trainer.optim.sharding import BUCKET_BYTES, Share, _buckets, sum_whole

OPTIONS = {
    "plain": OptimSection(clip=0.5, matrix_decay=0.1),
    "diagonal": OptimSection(clip=0.0, normalize="rows", precondition="mousse-diagonal"),
    "kronecker": OptimSection(clip=0.5, precondition="mousse-kronecker"),
    "adamw": OptimSection(clip=0.5, matrix="adamw"),
}
STEPS = 5

PROGRAM = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from qpack import distributed
from tests.unit.trainer.optim.test_sharding import OPTIONS, STEPS, Net, gradients
from qpack.trainer.optim.optimizers import Optimizers

with distributed.session():
    rank = distributed.rank()
    assert distributed.world_size() == 2
    for name, section in OPTIONS.items():
        net = Net()
        optimizers = Optimizers(net, section)
        norms = []
        for step in range(STEPS):
            gradients(net, step, ranks=[rank])
            norms.append(optimizers.step(lr_scale=1.0, step=step))
        state = {f"state.{k}": t for k, t in optimizers.state_tensors().items()}
        if section.matrix == "muon":
            held = sum(t.numel() for s in optimizers.muon._stacks for t in s.state.values())
            state["held"] = torch.tensor(held)
        weights = {f"weights.{k}": t.detach() for k, t in net.state_dict().items()}
        save_file(
            {"norms": torch.stack(norms), **state, **weights},
            Path(sys.argv[1]) / f"{name}{rank}.safetensors",
        )
        # On two ranks again, from the state of both.
        resumed = Optimizers(net, section)
        resumed.load_state_tensors(optimizers.state_tensors())
        for (key, a), b in zip(
            optimizers.state_tensors().items(), resumed.state_tensors().values(), strict=True
        ):
            assert torch.equal(a, b), key
"""


class Net(nn.Module):
    """Stacks of 3, 2 and 1 matrices, so that padding is needed; a table and gains."""

    def __init__(self) -> None:
        super().__init__()
        shapes = [(6, 4), (6, 4), (4, 6), (6, 4), (4, 6), (5, 3)]
        self.layers = nn.ModuleList(nn.Linear(i, o, bias=False) for o, i in shapes)
        self.table = nn.Embedding(7, 4)
        self.gain = nn.Parameter(torch.empty(4))
        self.idle = nn.Linear(6, 4, bias=False)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(generator=generator)


def gradients(net: Net, step: int, *, ranks: list[int]) -> None:
    """The mean of those of `ranks`; `idle` has none, as a layer that does not run."""
    for number, parameter in enumerate(net.parameters()):
        some = [
            torch.randn(
                parameter.shape,
                generator=torch.Generator().manual_seed(1000 * step + 10 * number + rank),
            )
            for rank in ranks
        ]
        parameter.grad = torch.stack(some).mean(0)
    net.idle.weight.grad = None


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(folder)],
            env=os.environ
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
            | {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[4],
        )
        for rank in range(2)
    ]
    for process in processes:
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
    return folder


@pytest.mark.parametrize("name", OPTIONS)
def test_two_ranks_equal_one(two_ranks: Path, name: str) -> None:
    first, second = (load_file(two_ranks / f"{name}{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())
    net = Net()
    alone = Optimizers(net, OPTIONS[name])
    for step in range(STEPS):
        gradients(net, step, ranks=[0, 1])
        norm = alone.step(lr_scale=1.0, step=step)
        torch.testing.assert_close(first["norms"][step], norm)
    for key, tensor in net.state_dict().items():
        torch.testing.assert_close(first[f"weights.{key}"], tensor, rtol=1e-4, atol=1e-5)
    for key, tensor in alone.state_tensors().items():
        if not key.endswith("_basis"):  # eigenvectors have no sign
            torch.testing.assert_close(first[f"state.{key}"], tensor, rtol=1e-3, atol=1e-4)


def test_a_rank_keeps_its_part_alone(two_ranks: Path) -> None:
    """3 matrices of (6, 4), 3 of (4, 6) and 1 of (5, 3): 2, 2 and 1 on each rank."""
    held = load_file(two_ranks / "plain0.safetensors")["held"]
    assert int(held) == 2 * 24 + 2 * 24 + 15


@pytest.mark.parametrize("name", OPTIONS)
def test_one_goes_on_from_two(two_ranks: Path, name: str) -> None:
    saved = load_file(two_ranks / f"{name}0.safetensors")
    state = {k.removeprefix("state."): t for k, t in saved.items() if k.startswith("state.")}
    net = Net()
    alone = Optimizers(net, OPTIONS[name])
    alone.load_state_tensors(state)
    for key, tensor in alone.state_tensors().items():
        assert torch.equal(tensor, state[key]), key


def test_one_rank_owns_everything_and_moves_nothing() -> None:
    share = Share(3)
    tensor = torch.ones(3, 2)
    assert (share.each, share.padding, list(share.own)) == (3, 0, [0, 1, 2])
    assert share.reduce(tensor)() is tensor
    assert share.gather(tensor)() is tensor
    assert sum_whole([tensor])()[0] is tensor


@pytest.mark.parametrize("world", [2, 4, 8])
def test_shares_of_a_large_world(monkeypatch: pytest.MonkeyPatch, world: int) -> None:
    """Every tensor has one owner, also where the last ranks have none."""
    module = "qpack.trainer.optim.sharding"
    monkeypatch.setattr(f"{module}.world_size", lambda: world)
    for count in (1, 3, 11, 22):
        owned: list[int] = []
        for rank in range(world):
            monkeypatch.setattr(f"{module}.rank", lambda rank=rank: rank)
            share = Share(count)
            assert share.each * world == count + share.padding
            owned += share.own
        assert owned == list(range(count))


def test_buckets_are_full_but_not_more() -> None:
    part = torch.zeros(BUCKET_BYTES // 16)  # a quarter
    large = torch.zeros(BUCKET_BYTES // 2)  # twice
    tensors = [part] * 5 + [large, part, part.double()]
    assert [len(bucket) for bucket in _buckets(tensors)] == [4, 1, 1, 1, 1]
    assert [t for bucket in _buckets(tensors) for t in bucket] == tensors
