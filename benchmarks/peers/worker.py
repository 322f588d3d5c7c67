"""What the peers' scripts have in common: a task in; bytes, decoded weights and seconds out.

    PYTHON with_NAME.py TASK OUT RESULT --settings JSON --threads N

Runs in a peer's own interpreter, so it needs numpy and safetensors alone. TASK is a safetensors
file: `weight/NAME` (rows, cols) float32, and `hessian/LEADER` (cols, cols) float32, the mean of the
outer products of inputs; its metadata say which weights share which. A peer quantizes them with its
own public functions, writes what it would store into a folder, and reads that again. OUT gets the
decoded weights, RESULT what was measured.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

Weights = dict[str, NDArray[np.float32]]
T = TypeVar("T")


class Task:
    """Weights and their Hessians."""

    def __init__(self, path: Path) -> None:
        with safe_open(path, framework="numpy") as file:
            self.known: dict[str, Any] = json.loads(file.metadata()["task"])
            """`members` (weight -> leader), `tables` (weights that are tables of tokens) and what
            the task says besides"""
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self._hessians = _named(stored, "hessian/")
        self.weights: Weights = _named(stored, "weight/")

    def hessian(self, name: str) -> NDArray[np.float32]:
        """H of a weight; the identity where calibration has none."""
        leader = self.known["members"].get(name)
        if leader is None:
            return np.eye(self.weights[name].shape[1], dtype=np.float32)
        return self._hessians[leader]


class Peer(ABC):
    """One way to store weights. What happens in `__init__` is not timed."""

    def __init__(self, task: Task, settings: dict[str, Any]) -> None:
        self.task, self.settings = task, settings
        self.facts: dict[str, Any] = {}
        """what is worth knowing besides bytes and seconds"""

    @abstractmethod
    def encode(self, folder: Path) -> None:
        """Quantize, and write all that decoding needs into `folder`."""

    @abstractmethod
    def decode(self, folder: Path) -> Weights:
        """The weights that the files of `folder` hold."""


def main(peer: Callable[[Task, dict[str, Any]], Peer], packages: Sequence[str]) -> None:
    """Run `peer` on the command line's task; `packages` are those whose versions matter."""
    parser = argparse.ArgumentParser()
    for name in ("task", "out", "result"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--settings", type=json.loads, default={})
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    # Some packages start a thread for each core that they count, whatever they are told.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    decoded, result = measure(peer(Task(options.task), options.settings))
    save_file(decoded, options.out)
    result["threads"] = options.threads
    result["packages"] = {name: metadata.version(name) for name in packages}
    options.result.write_text(json.dumps(result))


def measure(peer: Peer) -> tuple[Weights, dict[str, Any]]:
    """Decoded weights, and the bytes and seconds that they took."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _, encode = clocked(lambda: peer.encode(folder))
        size = stored_bytes(folder)
        peer.decode(folder)  # some packages compile what they decode with when they first do
        decoded, decode = clocked(lambda: peer.decode(folder))
    whole = {name: np.ascontiguousarray(w, dtype=np.float32) for name, w in decoded.items()}
    seconds = {"encode": encode, "decode": decode}
    return whole, {"stored_bytes": size, "seconds": seconds, "facts": peer.facts}


def clocked(work: Callable[[], T]) -> tuple[T, dict[str, float]]:
    """What `work` returns, and its seconds by the clock and of processors, children's too."""
    begin, busy = time.perf_counter(), sum(os.times()[:4])
    done = work()
    return done, {"wall": time.perf_counter() - begin, "cpu": sum(os.times()[:4]) - busy}


def stored_bytes(folder: Path) -> int:
    """Bytes of the files, without the names and shapes at the head of safetensors files: those are
    our way of writing some peers' tensors down, and no peer pays for it."""
    return sum(
        path.stat().st_size - (_head_bytes(path) if path.suffix == ".safetensors" else 0)
        for path in folder.rglob("*")
        if path.is_file()
    )


def _head_bytes(path: Path) -> int:
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def _named(stored: dict[str, NDArray[np.float32]], prefix: str) -> Weights:
    return {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}
