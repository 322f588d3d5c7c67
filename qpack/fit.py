"""Fitting a plan to a budget: quantize, estimate, encode, until the file just fits.

Joins the three parts that know nothing of each other: the quantizer (integers at a knob value), the
artifact's encoder (bytes of those integers) and the search (which value next).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qpack.artifact.contents import group
from qpack.artifact.encode import Encoded, encode
from qpack.artifact.layout import FILES, RAW
from qpack.artifact.writer import file_bytes
from qpack.codec.base import Codec
from qpack.codec.entropy import zero_order_bits
from qpack.codec.select import Choices, Trial
from qpack.progress import SILENT, Progress
from qpack.quant.budget import SearchResult, search
from qpack.quant.engine import Quantizer
from qpack.quant.plan import Plan
from qpack.tensors import Contents, EmbeddedFile, RawTensor, StoredTensor
from qpack.torch_tensors import to_raw

CONTAINER_BYTES = {"qpk": 3_000, "pyz": 9_000}
"""Header, digest and decoder, roughly: for estimates alone."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Fitted:
    """The winner: its knob value, its contents, and the bytes they were encoded to."""

    search: SearchResult
    contents: Contents
    encoded: Encoded
    trials: tuple[Trial, ...]
    """every codec trial of the search; the first encoding tries all of them"""


class Fitter:
    """Contents of the artifact as a function of the knob, and their size by entropy or codec."""

    def __init__(
        self,
        quantizer: Quantizer,
        tensors: Mapping[str, Tensor],
        *,
        aliases: Mapping[str, str],
        metadata: Mapping[str, str],
        files: Sequence[EmbeddedFile],
        form: str,
        codecs: Sequence[Codec],
        progress: Progress = SILENT,
    ) -> None:
        """`tensors` are the checkpoint's; `form` is `qpk` or `pyz`."""
        self._quantizer = quantizer
        self._plan: Plan = quantizer.plan
        self._raw = raw_tensors(self._plan, tensors)
        self._aliases, self._metadata = dict(aliases), dict(metadata)
        self._files = tuple(files)
        self._form, self._codecs, self._progress = form, tuple(codecs), progress
        self._choices: Choices | None = None
        self._last: tuple[float, Contents] | None = None
        self._encoded: dict[float, Encoded] = {}
        self._trials: list[Trial] = []

    def contents(self, value: float) -> Contents:
        """Everything that the artifact would hold with the knob at `value`."""
        if self._last is not None and self._last[0] == value:
            return self._last[1]
        integers = self._quantizer.quantize(value)
        stored: list[StoredTensor] = [
            integers[entry.name] if entry.rule.type == "int" else self._raw[entry.name]
            for entry in self._plan.tensors
        ]
        contents = Contents(
            tensors=tuple(stored),
            aliases=self._aliases,
            metadata=self._metadata,
            files=self._files,
        )
        self._last = (value, contents)
        return contents

    def estimate(self, value: float) -> int:
        """Bytes by zero-order entropy: what a good static coder would need."""
        return CONTAINER_BYTES[self._form] + entropy_bytes(self.contents(value))

    def encode(self, value: float) -> int:
        """Bytes of the real file. The first call tries codecs; later ones keep each winner."""
        encoded = encode(
            self.contents(value),
            codecs=self._codecs,
            choices=self._choices,
            progress=self._progress,
        )
        self._choices = encoded.choices
        self._encoded[value] = encoded
        self._trials += encoded.trials
        return file_bytes(encoded, self._form)

    def largest(self, value: float) -> list[str]:
        """The five largest tensors and files, a line each: by entropy, and by deflate."""
        sizes = {
            tensor.name: tensor_entropy_bytes(tensor) for tensor in self.contents(value).tensors
        }
        sizes |= {f"file {file.name}": len(zlib.compress(file.data)) for file in self._files}
        top = sorted(sizes, key=lambda name: (-sizes[name], name))[:5]
        return [f"{name}  about {sizes[name]:,} B" for name in top]

    def fit(self, budget_bytes: int) -> Fitted:
        """Search the knob. Raises `BudgetError` if the coarsest value does not fit."""
        found = search(
            self._plan.recipe.knob,
            budget_bytes,
            estimate=self.estimate,
            encode=self._encode_for_search,
            largest=self.largest,
        )
        return Fitted(
            search=found,
            contents=self.contents(found.value),
            encoded=self._encoded[found.value],
            trials=tuple(self._trials),
        )

    def _encode_for_search(self, value: float) -> int:
        size = self.encode(value)
        self._progress.note(f"{self._plan.recipe.knob.name} = {value:g}: {size:,} B")
        return size


def raw_tensors(plan: Plan, tensors: Mapping[str, Tensor]) -> dict[str, RawTensor]:
    """Tensors that are stored as floats or kept, converted to their stored dtype."""
    targets = {"float16": torch.float16, "float32": torch.float32}
    out = {}
    for entry in plan.tensors:
        if entry.rule.type == "int":
            continue
        tensor = tensors[entry.name].detach().cpu()
        if entry.rule.type in targets:
            tensor = tensor.to(targets[entry.rule.type])
        out[entry.name] = to_raw(entry.name, tensor)
    return out


def entropy_bytes(contents: Contents) -> int:
    """Zero-order entropy in bytes of every stream that the encoder forms, wide floats by plane."""
    bits = 0.0
    for part in group(contents):
        array = part.stream.array
        wide = part.kind in (RAW, FILES) and array.dtype.itemsize > 1
        planes = array.view(np.uint8).reshape(-1, array.dtype.itemsize).T if wide else array[None]
        bits += math.fsum(zero_order_bits(plane) for plane in planes)
    return int(bits / 8) + 1


def tensor_entropy_bytes(tensor: StoredTensor) -> int:
    """As `entropy_bytes`, for one tensor alone."""
    return entropy_bytes(Contents(tensors=(tensor,), aliases={}, metadata={}))
