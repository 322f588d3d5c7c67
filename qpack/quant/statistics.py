"""Calibration statistics as a value, and as a file bound to its checkpoint by hash.

The file is safetensors: one float32 upper triangle for each Hessian (the lower one is its mirror),
one for each run of rows of a moment, and one vector for each sensitivity, with the groups, counts,
provenance and a checksum as JSON in the metadata.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from qpack.artifact.writer import write_atomic
from qpack.errors import CalibrationError
from qpack.quant.moments import num_runs, side_of
from qpack.torch_tensors import tensor_bytes

SCHEMA = "qpack.statistics/5"

_MATRICES = ("hessians", "weighted")
"""Fields that are a symmetric matrix a group; stored as FIELD/LEADER."""

_VECTORS = ("sensitivities", "frequencies", "table_sensitivities")
"""Fields that are a vector a tensor; stored as FIELD/NAME."""

_RUNS = "moments"
"""The field that is a stack of symmetric matrices a tensor; stored as FIELD/NAME."""


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
    weighted: dict[str, Tensor] = field(default_factory=dict)
    """leader -> (cols, cols) float32: mean of w x x^T over the inputs that have gradients, w being
    the input's share of them (mean 1), and over the group's rows"""
    sensitivities: dict[str, Tensor] = field(default_factory=dict)
    """weight -> (rows,) float32: mean over tokens of the squared gradient of each output, summed
    over the uses of the weight"""
    frequencies: dict[str, Tensor] = field(default_factory=dict)
    """table -> (rows,) float32: lookups of each row a token, summed over uses, with a prior"""
    table_sensitivities: dict[str, Tensor] = field(default_factory=dict)
    """table -> (cols,) float32: mean over lookups of the squared gradient of what was looked up"""
    moments: dict[str, Tensor] = field(default_factory=dict)
    """weight that is no table -> (runs, side, side) float32: mean over tokens of g g^T, g the
    gradients of a run's outputs, summed over the uses of the weight"""
    token_tables: dict[str, int] = field(default_factory=dict)
    """table that tokens themselves look up -> lookups of it a token"""
    sensitivity_tokens: int = 0
    """tokens behind the four; 0: none were gathered"""

    def hessian(self, name: str) -> Tensor | None:
        """H of weight `name`, or None where calibration never saw it in a product."""
        leader = self.members.get(name)
        return None if leader is None else self.hessians[leader]


def save_statistics(path: Path, statistics: Statistics, *, force: bool = False) -> None:
    """Write `statistics` atomically. Raises `OutputExistsError`, `ResourceError`."""
    tensors = {}
    for kind in _MATRICES:
        for leader, H in getattr(statistics, kind).items():
            cols = H.shape[0]
            rows, columns = torch.triu_indices(cols, cols, device=H.device)
            tensors[f"{kind}/{leader}"] = H[rows, columns].cpu().contiguous()
    for kind in _VECTORS:
        for name, values in getattr(statistics, kind).items():
            tensors[f"{kind}/{name}"] = values.cpu().contiguous()
    for name, runs in statistics.moments.items():
        rows, columns = torch.triu_indices(runs.shape[1], runs.shape[1], device=runs.device)
        tensors[f"{_RUNS}/{name}"] = runs[:, rows, columns].cpu().contiguous()
    description: dict[str, Any] = {
        "schema": SCHEMA,
        "counts": statistics.counts,
        "members": statistics.members,
        "fingerprint": statistics.fingerprint,
        "source": statistics.source,
        "sensitivity_tokens": statistics.sensitivity_tokens,
        "token_tables": statistics.token_tables,
    }
    description["sha256"] = digest_of(description, tensors)
    data = safetensors.torch.save(tensors, metadata={"qpack": json.dumps(description)})
    write_atomic(path, data, force=force)


def load_statistics(path: Path, *, fingerprint: str, device: torch.device | str) -> Statistics:
    """Read statistics and refuse those of another checkpoint.

    Raises `CalibrationError` for a file that is damaged, of another kind, or of other weights.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            description = json.loads((file.metadata() or {}).get("qpack", "{}"))
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise CalibrationError(
            f"{path.name}: cannot be read as statistics ({error})",
            hint="give a file that --save-stats wrote, or write it again",
        ) from None
    if not isinstance(description, dict) or description.get("schema") != SCHEMA:
        raise CalibrationError(
            f"{path.name}: not a statistics file of this version",
            hint="write the file again with --save-stats",
        )
    kinds: dict[str, dict[str, Tensor]] = {kind: {} for kind in (*_MATRICES, *_VECTORS, _RUNS)}
    for key, tensor in stored.items():
        kind, _, name = key.partition("/")
        kinds.setdefault(kind, {})[name] = tensor
    packed, weighted, moments = (kinds.pop(kind) for kind in (*_MATRICES, _RUNS))
    problems = _description_problems(description, packed) + _vector_problems(description, kinds)
    problems += _weighted_problems(weighted, packed)
    problems += _moment_problems(moments, kinds["sensitivities"])
    if not problems and description.get("sha256") != digest_of(description, stored):
        problems.append("it has changed since it was written: its SHA-256 is another")
    if problems:
        raise CalibrationError(
            f"{path.name}: damaged statistics",
            items=problems,
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
        weighted={name: _unpack(triangle).to(device) for name, triangle in weighted.items()},
        moments={
            name: torch.stack([_unpack(run) for run in runs]).to(device)
            for name, runs in moments.items()
        },
        sensitivity_tokens=description["sensitivity_tokens"],
        token_tables=description["token_tables"],
        **{
            kind: {name: values.to(device) for name, values in kinds[kind].items()}
            for kind in _VECTORS
        },
    )


def digest_of(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of all that a file holds but for this digest."""
    told = {key: value for key, value in description.items() if key != "sha256"}
    found = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for name in sorted(tensors):
        found.update(f"{name}\0".encode())
        found.update(tensor_bytes(tensors[name]))
    return found.hexdigest()


def _vector_problems(
    description: dict[str, Any], kinds: Mapping[str, Mapping[str, Tensor]]
) -> list[str]:
    """What is wrong with the sensitivities, a line each."""
    problems = [f"{kind}: of an unknown kind" for kind in kinds if kind not in _VECTORS]
    tokens = description.get("sensitivity_tokens")
    if type(tokens) is not int or tokens < 0:
        problems.append("sensitivity_tokens: missing or of another kind")
    tables = description.get("token_tables")
    if not isinstance(tables, dict) or not all(type(n) is int and n > 0 for n in tables.values()):
        problems.append("token_tables: missing or of another kind")
    for kind in _VECTORS:
        for name, values in kinds[kind].items():
            if values.ndim != 1 or values.dtype != torch.float32:
                problems.append(f"{kind} of {name}: not a float32 vector")
            elif not bool(torch.isfinite(values).all()) or bool((values < 0).any()):
                problems.append(f"{kind} of {name}: values that are negative or not finite")
    if kinds["frequencies"].keys() != kinds["table_sensitivities"].keys():
        problems.append("frequencies and table_sensitivities are of different tables")
    return sorted(problems)


def _description_problems(description: dict[str, Any], packed: Mapping[str, Tensor]) -> list[str]:
    """What is missing or does not agree, a line each."""
    kinds = {"counts": dict, "members": dict, "source": dict, "fingerprint": str}
    problems = [key for key, kind in kinds.items() if not isinstance(description.get(key), kind)]
    if problems:
        return [f"{key}: missing or of another kind" for key in problems]
    counts, members = description["counts"], description["members"]
    leaders = {leader for leader in members.values() if isinstance(leader, str)}
    problems = [f"{name}: no Hessian" for name in leaders | counts.keys() if name not in packed]
    for name, triangle in packed.items():
        problems += _triangle_problems(name, triangle)
        if type(counts.get(name)) is not int or counts[name] < 1:
            problems.append(f"{name}: no count of inputs")
    return sorted(problems)


def _weighted_problems(weighted: dict[str, Tensor], packed: dict[str, Tensor]) -> list[str]:
    """What is wrong with the weighted matrices, a line each."""
    problems = []
    for name, triangle in weighted.items():
        problems += _triangle_problems(f"weighted {name}", triangle)
        if name not in packed or packed[name].numel() != triangle.numel():
            problems.append(f"weighted {name}: no Hessian of its size")
    return sorted(problems)


def _moment_problems(moments: dict[str, Tensor], sensitivities: dict[str, Tensor]) -> list[str]:
    """What is wrong with the moments, a line each."""
    problems = []
    for name, runs in moments.items():
        rows = len(sensitivities.get(name, ()))
        if runs.ndim != 2 or rows == 0 or len(runs) != num_runs(rows):
            problems.append(f"moments {name}: not one of each run of its rows")
            continue
        for run in runs:
            problems += _triangle_problems(f"moments {name}", run)
        if _side(runs[0]) != side_of(rows):
            problems.append(f"moments {name}: of another size than its runs of rows")
    return sorted(set(problems))


def _triangle_problems(name: str, triangle: Tensor) -> list[str]:
    cols = _side(triangle)
    if triangle.ndim != 1 or triangle.dtype != torch.float32:
        return [f"{name}: not a float32 triangle"]
    if cols * (cols + 1) // 2 != triangle.numel():
        return [f"{name}: {triangle.numel():,} values are no triangle"]
    if not bool(torch.isfinite(triangle).all()):
        return [f"{name}: values that are not finite"]
    return []


def _side(triangle: Tensor) -> int:
    """Columns of the matrix whose upper triangle has that many values."""
    return (math.isqrt(8 * triangle.numel() + 1) - 1) // 2


def _unpack(triangle: Tensor) -> Tensor:
    """The symmetric matrix of an upper triangle, row by row."""
    cols = _side(triangle)
    H = torch.zeros((cols, cols), dtype=torch.float32)
    rows, columns = torch.triu_indices(cols, cols)
    H[rows, columns] = triangle
    H[columns, rows] = triangle
    return H
