"""Decoding the written file elsewhere: its own decoder, in a fresh process, compared bit by bit."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from qpack.artifact import decoder
from qpack.artifact.writer import form_of
from qpack.errors import VerifyError
from qpack.tensors import Contents, QuantizedTensor

TIMEOUT_SECONDS = 1800


def decode_elsewhere(path: Path) -> tuple[dict[str, Tensor], str]:
    """Decode the artifact `path` in a fresh Python; (tensors by name, SHA-256 of what it wrote).

    A `.pyz` is run itself; a `.qpk` is given to the same decoder's source file. Nothing of qpack is
    imported there. Raises `VerifyError` with the decoder's own words if it fails.
    """
    from qpack.tokens import sha256_file

    path = path.resolve()
    # -P: the decoder stands alone; modules beside its source file must not shadow Python's own.
    beside = ["-P", str(decoder.__file__)]
    program = [str(path)] if form_of(path) == "pyz" else [*beside, str(path)]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "weights.safetensors"
        command = [sys.executable, *program, "-o", str(out)]
        try:
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_SECONDS
            )
        except subprocess.TimeoutExpired:
            raise VerifyError(f"{path.name}: its decoder took over {TIMEOUT_SECONDS} s") from None
        if done.returncode != 0 or not out.exists():
            raise VerifyError(
                f"{path.name}: its own decoder failed with exit code {done.returncode}",
                items=done.stderr.strip().splitlines()[-5:],
            )
        return safetensors.torch.load_file(out), sha256_file(out)


def check_decoded(decoded: Mapping[str, Tensor], contents: Contents) -> None:
    """Raise `VerifyError` naming every tensor that is not bit for bit what was packed."""
    expected = {tensor.name for tensor in contents.tensors}
    wrong = [f"{name}: missing" for name in sorted(expected - decoded.keys())]
    wrong += [f"{name}: unexpected" for name in sorted(decoded.keys() - expected)]
    for tensor in contents.tensors:
        found = decoded.get(tensor.name)
        if found is None:
            continue
        if tuple(found.shape) != tensor.shape:
            wrong.append(f"{tensor.name}: shape {tuple(found.shape)}, packed {tensor.shape}")
        elif _bytes(found) != (
            np.ascontiguousarray(tensor.dequantize()).tobytes()
            if isinstance(tensor, QuantizedTensor)
            else tensor.data
        ):
            wrong.append(f"{tensor.name}: other values")
    if wrong:
        raise VerifyError("the file does not decode to what was packed", items=wrong)


def _bytes(tensor: Tensor) -> bytes:
    data: bytes = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return data
