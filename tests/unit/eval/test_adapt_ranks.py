"""Two ranks adapt as one process does, whatever divides by two."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.unit.eval.two_ranks import scores

PROGRAM = """
import json, sys
from qpack import distributed
from tests.unit.eval.two_ranks import scores

with distributed.session():
    found = scores()
    everyone = distributed.on_first(lambda: found)
assert found == everyone
json.dump(found, open(sys.argv[1], "w"))
"""


def test_two_ranks_score_as_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path / f"{rank}.json")],
            env=os.environ
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""}
            | {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    alone = scores()
    said = [process.communicate(timeout=120)[1] for process in processes]
    for process, stderr in zip(processes, said, strict=True):
        assert process.returncode == 0, stderr
    both = json.loads((tmp_path / "0.json").read_text())
    assert alone.keys() == both.keys()
    assert alone["diverged"][0] == 1.0
    for name, expected in alone.items():
        np.testing.assert_allclose(both[name], expected, atol=1e-4, err_msg=name)
        assert np.ptp(expected) > 0
