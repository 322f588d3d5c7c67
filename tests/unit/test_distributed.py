"""What rank 0 does for all."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from qpack import distributed
from qpack.errors import DataError

PROGRAM = """
import sys
from qpack import distributed
from qpack.errors import DataError, OtherRankError

def work():
    assert distributed.rank() == 0
    return {"a": [1, None, "\u00e9"], "big": "x" * 100_000}

def fail():
    raise DataError("what is wrong")

with distributed.session():
    assert distributed.world_size() == 2
    value = distributed.on_first(work)
    assert value["a"] == [1, None, "\u00e9"] and len(value["big"]) == 100_000
    assert distributed.on_first(lambda: None) is None
    distributed.barrier()
    try:
        distributed.on_first(fail)
    except DataError:
        print("told here")
    except OtherRankError as error:
        print("told elsewhere", error.exit_code)
"""


def test_alone_it_is_just_done() -> None:
    assert distributed.on_first(lambda: (1, 2)) == (1, 2)
    distributed.barrier()
    with pytest.raises(DataError):
        distributed.on_first(lambda: (_ for _ in ()).throw(DataError("x")))


def test_two_ranks() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env=os.environ
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""}
            | {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    told = []
    for process in processes:
        out, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
        told.append(out.strip())
    assert told == ["told here", "told elsewhere 3"]
