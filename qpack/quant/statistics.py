"""Calibration statistics as a value, and as a file bound to its checkpoint by hash.

The file is safetensors: one float32 upper triangle for each Hessian (the lower one is its mirror),
with the groups, counts and provenance as JSON in the metadata.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from qpack.artifact.writer import write_atomic
from qpack.errors import CalibrationError

SCHEMA = "qpack.statistics/1"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Statistics:
    """H of each group of weights that share an input."""

    hessians: dict[str, Tensor]
    """leader -> (cols, cols) float32, summed over `counts[leader]` input vectors"""
    counts: dict[str, int]
    """leader -> input vectors seen: tokens times uses"""
    members: dict[str, str]
    """weight name -> leader of its group"""
    fingerprint: str
    """SHA-256 of the checkpoint's tensors"""
    source: dict[str, str]
    """what was calibrated on: name, SHA-256, tokens"""

    def hessian(self, name: str) -> Tensor | None:
        """H of weight `name`, or None where calibration never saw it in a product."""
        leader = self.members.get(name)
        return None if leader is None else self.hessians[leader]


def save_statistics(path: Path, statistics: Statistics, *, force: bool = False) -> None:
    """Write `statistics` atomically. Raises `OutputExistsError`, `ResourceError`."""
    tensors = {}
    for leader, H in statistics.hessians.items():
        cols = H.shape[0]
        rows, columns = torch.triu_indices(cols, cols, device=H.device)
        tensors[leader] = H[rows, columns].cpu().contiguous()
    description = {
        "schema": SCHEMA,
        "counts": statistics.counts,
        "members": statistics.members,
        "fingerprint": statistics.fingerprint,
        "source": statistics.source,
    }
    data = safetensors.torch.save(tensors, metadata={"qpack": json.dumps(description)})
    write_atomic(path, data, force=force)


def load_statistics(path: Path, *, fingerprint: str, device: torch.device | str) -> Statistics:
    """Read statistics and refuse those of another checkpoint.

    Raises `CalibrationError` for a file that is damaged, of another kind, or of other weights.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            description = json.loads((file.metadata() or {}).get("qpack", "{}"))
            packed = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise CalibrationError(
            f"{path.name}: cannot be read as statistics ({error})",
            hint="write the file again with --save-stats",
        ) from None
    if description.get("schema") != SCHEMA:
        raise CalibrationError(
            f"{path.name}: not a statistics file of this version",
            hint="write the file again with --save-stats",
        )
    if description["fingerprint"] != fingerprint:
        raise CalibrationError(
            f"{path.name}: these statistics belong to another checkpoint",
            items=[
                f"statistics of  {description['fingerprint']}",
                f"checkpoint is  {fingerprint}",
            ],
            hint="calibrate again, without --stats",
        )
    return Statistics(
        hessians={name: _unpack(triangle).to(device) for name, triangle in packed.items()},
        counts=description["counts"],
        members=description["members"],
        fingerprint=fingerprint,
        source=description["source"],
    )


def _unpack(triangle: Tensor) -> Tensor:
    """The symmetric matrix of an upper triangle, row by row."""
    cols = round(((8 * triangle.numel() + 1) ** 0.5 - 1) / 2)
    H = torch.zeros((cols, cols), dtype=torch.float32)
    rows, columns = torch.triu_indices(cols, cols)
    H[rows, columns] = triangle
    H[columns, rows] = triangle
    return H
