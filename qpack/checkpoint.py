"""Checkpoints: a safetensors file that says which architecture, with which configuration, it is.

Three metadata strings make a safetensors file a checkpoint: `qpack.architecture` (a name in the
entry-point group `qpack.architectures`), `qpack.config` (a JSON object for its build function) and
`qpack.aliases` (a JSON object: name of a tied tensor -> name of the stored one). A checkpoint and
an artifact become the same value here, and a runnable model by the same path.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from qpack.artifact.reader import read
from qpack.artifact.unpack import safetensors_pieces
from qpack.artifact.writer import write_pieces
from qpack.errors import CheckpointError, DataError
from qpack.plugins import ARCHITECTURES, load_plugin
from qpack.tensors import Contents, EmbeddedFile
from qpack.torch_tensors import check_dtypes, dtype_name, tensor_bytes, to_raw, to_torch

ARCHITECTURE, CONFIG, ALIASES = "qpack.architecture", "qpack.config", "qpack.aliases"
TOKENIZER = "qpack.tokenizer_sha256"
IMPORT_HINT = "qpack import FILE -o model.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Checkpoint:
    """A model as data."""

    tensors: dict[str, Tensor]
    """parameters and buffers by name, on the CPU, in their stored dtypes"""
    architecture: str
    """name in the entry-point group `qpack.architectures`"""
    config: dict[str, Any]
    """what the architecture's build function takes"""
    aliases: dict[str, str]
    """tied tensors: other name -> stored name"""
    name: str
    """what to call the model in reports"""
    tokenizer_sha256: str | None = None
    """of the tokenizer file that it was trained with, where that is known"""
    files: tuple[EmbeddedFile, ...] = ()
    """what the artifact that it was read from embeds"""

    @property
    def metadata(self) -> dict[str, str]:
        """What a file that holds this model says about it."""
        known = {
            "architecture": self.architecture,
            "config": json.dumps(self.config, sort_keys=True, separators=(",", ":")),
        }
        if self.tokenizer_sha256 is not None:
            known["tokenizer_sha256"] = self.tokenizer_sha256
        return known

    def check_tokenizer(self, sha256: str, path: Path) -> None:
        """Raise DataError if `path`, with this hash, is not the model's own tokenizer."""
        if self.tokenizer_sha256 not in (None, sha256):
            raise DataError(
                f"{path}: not the tokenizer of {self.name}",
                items=[f"given       {sha256}", f"the model's {self.tokenizer_sha256}"],
                hint="give the tokenizer that the model was trained with",
            )


def read_checkpoint(path: str | Path) -> Checkpoint:
    """The checkpoint in the safetensors file `path`; its name is the file's stem.

    Raises CheckpointError for a file that cannot be read or is no checkpoint.
    """
    path = Path(path)
    tensors, metadata = read_safetensors(path)
    if ARCHITECTURE not in metadata:
        raise CheckpointError(
            f"{path}: does not say which architecture it is (no {ARCHITECTURE} in its metadata)",
            hint=IMPORT_HINT,
        )
    return Checkpoint(
        tensors=tensors,
        architecture=metadata[ARCHITECTURE],
        config=_json_object(path, CONFIG, metadata.get(CONFIG, "{}")),
        aliases=_aliases(path, metadata.get(ALIASES, "{}"), tensors),
        name=path.stem,
        tokenizer_sha256=metadata.get(TOKENIZER),
    )


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of any safetensors file; CheckpointError if it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
            metadata = dict(file.metadata() or {})
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, SafetensorError, KeyError, AttributeError, TypeError, ValueError) as error:
        # the last four: dtypes that torch does not have
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from error
    check_dtypes(tensors)
    return tensors, metadata


def write_checkpoint(path: str | Path, checkpoint: Checkpoint, *, force: bool = False) -> None:
    """Write `checkpoint` atomically; the same checkpoint always gives the same bytes.

    Raises OutputExistsError if `path` exists and not `force`, ResourceError if the disk is full.
    """
    contents = Contents(
        tensors=tuple(to_raw(name, tensor) for name, tensor in checkpoint.tensors.items()),
        aliases=checkpoint.aliases,
        metadata=checkpoint.metadata,
    )
    # Not the safetensors package's writer: it orders metadata differently in each process.
    write_pieces(path, safetensors_pieces(contents), force=force)


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, hexadecimal, of every tensor's name, dtype, shape and bytes, in order of names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        head = [name, dtype_name(name, tensor), list(tensor.shape)]
        digest.update(json.dumps(head).encode() + b"\n")
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError naming every tensor that holds NaN or infinity, and how many."""
    bad = []
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not _all_finite(tensor):
            wide = tensor.float()
            num_nan, num_inf = int(wide.isnan().sum()), int(wide.isinf().sum())
            bad.append(f"{name}: {num_nan:,} NaN, {num_inf:,} infinite of {tensor.numel():,}")
    if bad:
        noun = "tensor holds" if len(bad) == 1 else "tensors hold"
        raise CheckpointError(
            f"{len(bad)} {noun} values that are not finite",
            items=bad,
            hint="the model diverged in training: use an earlier checkpoint",
        )


def _all_finite(tensor: Tensor) -> bool:
    """NaN and infinity show in the range, which is one fast pass."""
    if not tensor.numel():
        return True
    wide = tensor.float() if tensor.element_size() == 1 else tensor  # 8 bits have no aminmax
    return all(bool(end.isfinite()) for end in torch.aminmax(wide))


def read_model(path: str | Path) -> Checkpoint:
    """The model in `path`: a checkpoint, or an artifact (`.qpk` or `.pyz`), told by content."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    # A safetensors header starts at byte 8; an artifact has its format version there.
    if head[8:] == b"{" or path.suffix == ".safetensors":
        return read_checkpoint(path)
    if path.suffix in (".pt", ".pth"):
        raise CheckpointError(f"{path}: a PyTorch file", hint=IMPORT_HINT)
    return checkpoint_from_artifact(path)


def checkpoint_from_artifact(path: str | Path) -> Checkpoint:
    """The decoded model of an artifact: quantized tensors float32, raw tensors as they were.

    Raises ArtifactError if the file is rejected, CheckpointError if it holds bare weights.
    """
    path = Path(path)
    contents = read(path)
    metadata = contents.metadata
    if "architecture" not in metadata:
        raise CheckpointError(
            f"{path}: holds weights but does not say which architecture they are",
            hint="qpack unpack writes them as safetensors",
        )
    tensors = {tensor.name: to_torch(tensor) for tensor in contents.tensors}
    return Checkpoint(
        tensors=tensors,
        architecture=metadata["architecture"],
        config=_json_object(path, "config", metadata.get("config", "{}")),
        aliases=dict(contents.aliases),
        name=metadata.get("model_name", path.stem),
        tokenizer_sha256=metadata.get("tokenizer_sha256"),
        files=contents.files,
    )


def load(path: str | Path, *, device: torch.device | str = "cpu") -> nn.Module:
    """A runnable float32 model from a checkpoint or an artifact."""
    return build_model(read_model(path), device=device)


def build_model(
    checkpoint: Checkpoint,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """The model of `checkpoint`, in evaluation mode, its parameters frozen and in `dtype`.

    Raises ConfigError or SetupError if the architecture cannot be built, and CheckpointError with
    every missing, unexpected and mis-shaped tensor.
    """
    build = load_plugin(ARCHITECTURES, checkpoint.architecture)
    with torch.random.fork_rng(devices=[]):  # most constructors draw weights, here for nothing
        with torch.device("meta"):  # a configuration may ask for any memory: shapes first
            _check_keys(build(checkpoint.config), checkpoint)
        module: nn.Module = build(checkpoint.config)
    module.to(device=device, dtype=dtype)
    module.load_state_dict(checkpoint.tensors, strict=False)  # _check_keys is the strict part
    for other, stored in checkpoint.aliases.items():
        owner, _, attribute = other.rpartition(".")
        setattr(module.get_submodule(owner), attribute, module.get_parameter(stored))
    return module.eval().requires_grad_(False)


def _check_keys(module: nn.Module, checkpoint: Checkpoint) -> None:
    expected, given = module.state_dict(), checkpoint.tensors
    tied = _ties(module)
    provided = {tied.get(name, name) for name in (*given, *checkpoint.aliases)}
    problems = [
        *(f"{name}: missing" for name in expected if tied.get(name, name) not in provided),
        *(f"{name}: unexpected" for name in given if name not in expected),
        *(
            f"{name}: an alias that is no parameter"
            for name in checkpoint.aliases.keys() - tied.keys()
        ),
        *(
            f"{name}: aliased but no parameter"
            for name in set(checkpoint.aliases.values()) - tied.keys()
        ),
        *(
            f"{name}: shape {tuple(given[source].shape)}, expected {tuple(expected[name].shape)}"
            for name, source in ({n: n for n in given} | checkpoint.aliases).items()
            if name in expected and source in given and given[source].shape != expected[name].shape
        ),
    ]
    if problems:
        raise CheckpointError(
            f'the tensors do not match architecture "{checkpoint.architecture}"',
            items=sorted(problems),
        )


def _ties(module: nn.Module) -> dict[str, str]:
    """Parameters that the module itself ties: name -> first name of the same parameter."""
    first: dict[int, str] = {}
    pairs = module.named_parameters(remove_duplicate=False)
    return {name: first.setdefault(id(parameter), name) for name, parameter in pairs}


def _json_object(path: Path, key: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: metadata {key} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: metadata {key} is not a JSON object")
    return value


def _aliases(path: Path, text: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    aliases = _json_object(path, ALIASES, text)
    bad = [
        f"{other}: {stored!r} is not a tensor of the file"
        if other not in tensors
        else f"{other}: also stored as a tensor"
        for other, stored in aliases.items()
        if other in tensors or not isinstance(stored, str) or stored not in tensors
    ]
    if bad:
        raise CheckpointError(f"{path}: aliases that lead nowhere", items=bad)
    return aliases
