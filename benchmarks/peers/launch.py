"""Run a peer's script on a task, in its own interpreter and with so many threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import environments
import torch
from rows import OWN
from safetensors.torch import load_file, save_file
from torch import Tensor

HERE = Path(__file__).resolve().parent
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
TOLD = 12
"""Last lines of a failed script's messages that are shown."""


class PeerError(Exception):
    """A peer's script ended with an error."""


def write_task(
    path: Path,
    weights: Mapping[str, Tensor],
    *,
    hessians: Mapping[str, Tensor],
    members: Mapping[str, str],
    tables: Sequence[str],
    files: Mapping[str, str],
) -> None:
    """The file that `worker.Task` reads: `weights` (rows, cols), `hessians` by leader, and which
    of the weights are `tables` of tokens."""
    tensors = {f"weight/{name}": w.float().contiguous() for name, w in weights.items()}
    tensors |= {f"hessian/{name}": H.float().contiguous() for name, H in hessians.items()}
    known = {"members": dict(members), "tables": list(tables), "files": dict(files)}
    save_file(tensors, path, metadata={"task": json.dumps(known)})


def run(
    peer: str,
    task: Path,
    settings: Mapping[str, Any],
    *,
    environments_folder: Path,
    threads: int,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(decoded weights, what was measured). Raises `PeerError` with the end of what it said."""
    own = peer in OWN
    python = Path(sys.executable) if own else environments.interpreter(peer, environments_folder)
    with tempfile.TemporaryDirectory() as name:
        out, result = Path(name, "decoded.safetensors"), Path(name, "result.json")
        arguments = [python, HERE / f"with_{peer}.py", task, out, result]
        arguments += ["--settings", json.dumps(settings), "--threads", str(threads)]
        done = subprocess.run(
            list(map(str, arguments)),
            env={**os.environ, **dict.fromkeys(THREADS, str(threads))},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            told = (done.stderr or done.stdout).splitlines()[-TOLD:]
            raise PeerError("\n".join(told))
        return load_file(out), json.loads(result.read_text("utf-8"))


def relative_error(weights: Mapping[str, Tensor], decoded: Mapping[str, Tensor]) -> float:
    """Squared error over squared weights."""
    pairs = [(w.double(), decoded[name].double().reshape(w.shape)) for name, w in weights.items()]
    error = torch.stack([(w - d).square().sum() for w, d in pairs]).sum()
    return float(error / torch.stack([w.square().sum() for w, _ in pairs]).sum())
