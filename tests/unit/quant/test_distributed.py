"""Two ranks collect what one process collects."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from qpack.quant.calibrate import Sensing, collect
from qpack.quant.statistics import load_statistics

PROGRAM = """
import sys
from pathlib import Path
import torch
from torch import nn
from qpack import distributed
from qpack.quant.calibrate import Sensing, collect
from qpack.quant.statistics import save_statistics

with distributed.session():
    assert distributed.world_size() == 2
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    batches = [(torch.arange(8).reshape(2, 4) + i) % 7 for i in range(5)]
    statistics = collect(model, batches, fingerprint="f", sensing=Sensing(batches=3))
    save_statistics(Path(sys.argv[1]) / f"{distributed.rank()}.safetensors", statistics)
"""


def test_two_ranks_equal_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path)],
            env=os.environ
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            | {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    batches = [(torch.arange(8).reshape(2, 4) + i) % 7 for i in range(5)]
    alone = collect(model, batches, fingerprint="f", sensing=Sensing(batches=3))
    ranks = [
        load_statistics(tmp_path / f"{rank}.safetensors", fingerprint="f", device="cpu")
        for rank in range(2)
    ]
    for rank in ranks:
        assert rank.counts == alone.counts == {"1.weight": 40, "3.weight": 40}
        assert rank.sensitivity_tokens == alone.sensitivity_tokens == 24
        for kind in ("weighted", "sensitivities", "frequencies", "table_sensitivities", "moments"):
            theirs, ours = getattr(rank, kind), getattr(alone, kind)
            assert theirs.keys() == ours.keys() != set()
            # Labels belong to a batch, whichever rank draws them.
            assert all(torch.allclose(theirs[name], x, rtol=1e-5) for name, x in ours.items())
        for name, H in alone.hessians.items():
            assert torch.allclose(rank.hessians[name], H, rtol=1e-5)
            assert torch.equal(rank.hessians[name], ranks[0].hessians[name])
