"""Checkpoints that other programs wrote, safetensors or PyTorch files, as qpack checkpoints.

A PyTorch file is a pickle. It is opened in this one place, with torch's restricted unpickler, which
refuses everything but tensors and plain containers; there is no fallback to the unrestricted one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qpack.checkpoint import ARCHITECTURE, CONFIG, Checkpoint, check_finite, read_safetensors
from qpack.errors import CheckpointError
from qpack.plugins import IMPORTERS, load_plugin
from qpack.torch_tensors import check_dtypes

PICKLED = (".pt", ".pth")
NESTS = ("model", "state_dict", "model_state_dict")
"""Keys under which training scripts keep the state dict among other things."""
PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every name."""


def import_file(
    path: str | Path,
    *,
    hints: Mapping[str, Any] | None = None,
    architecture: str = "gpt",
) -> Checkpoint:
    """The checkpoint in `path`: safetensors, or `.pt`/`.pth` with a (possibly nested) state dict.

    `hints` are configuration keys; they win over the JSON object `config` in a safetensors file's
    metadata, and a hint of None takes a key out. `architecture` names the importer. Raises
    CheckpointError for a file that cannot be used, with every offending tensor, and ConfigError for
    hints that cannot be.
    """
    path = Path(path)
    if path.suffix in PICKLED:
        tensors, config = _unpickle(path), {}
    else:
        tensors, metadata = read_safetensors(path)
        architecture = metadata.get(ARCHITECTURE, architecture)
        config = _config(path, metadata)
    tensors = strip_prefixes(tensors)
    check_dtypes(tensors)
    check_finite(tensors)
    import_state = load_plugin(IMPORTERS, architecture)
    tensors, config = import_state(tensors, {**config, **(hints or {})})
    return Checkpoint(
        tensors=tensors, architecture=architecture, config=config, aliases={}, name=path.stem
    )


def strip_prefixes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without wrappers' prefixes; CheckpointError where two become one."""
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        short = name
        while prefix := next((p for p in PREFIXES if short.startswith(p)), ""):
            short = short.removeprefix(prefix)
        if short in out:
            raise CheckpointError(f"two tensors would be named {short}", items=[name])
        out[short] = tensor
    return out


def _config(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    text = metadata.get(CONFIG, metadata.get("config", "{}"))
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: metadata config is not a JSON object")
    return value


def _unpickle(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251 restricted
    except Exception as error:  # the unpickler has no error type of its own
        first_line = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"{path}: refused by PyTorch's restricted reader: {first_line}",
            hint="save a plain state dict (torch.save(model.state_dict(), ...)) or safetensors",
        ) from error
    return _state_dict(path, content)


def _state_dict(path: Path, content: object) -> dict[str, Tensor]:
    for key in NESTS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        nests = ", ".join(NESTS)
        raise CheckpointError(f"{path}: holds no state dict, at the top or under {nests}")
    alien = [
        f"{name}: {type(value).__name__}"
        for name, value in content.items()
        if not (isinstance(name, str) and _plain(value))
    ]
    if alien:
        raise CheckpointError(f"{path}: entries that are not dense tensors", items=alien)
    return {name: tensor.detach().contiguous() for name, tensor in content.items()}


def _plain(value: object) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not value.is_quantized
        and not value.is_meta
    )
