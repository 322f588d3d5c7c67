"""Fitting a plan to a budget: quantize, estimate, encode, until the file just fits.

Joins the three parts that know nothing of each other: the quantizer (integers at a knob value), the
artifact's encoder (bytes of those integers) and the search (which value next).
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qpack.artifact.encode import Encoded, encode
from qpack.artifact.estimate import estimate_bytes, tensor_entropy_bytes
from qpack.artifact.writer import file_bytes
from qpack.codec.base import Codec
from qpack.codec.select import Choices, Trial
from qpack.progress import SILENT, Progress
from qpack.quant.budget import Probe, SearchResult, check_fits, search
from qpack.quant.engine import Quantizer
from qpack.quant.plan import Plan
from qpack.tensors import Contents, EmbeddedFile, RawTensor, StoredTensor
from qpack.torch_tensors import to_raw

NO_KNOB = "this recipe, which no knob turns"

LOW_USE = 0.95
"""Below this share of the budget a file without a knob earns a warning."""

FLOOR_MARGIN = 0.9
"""Estimates are this sure: what is over the budget by more than a tenth is refused at once."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Fitted:
    """The winner: its knob value, its contents, and the bytes they were encoded to."""

    search: SearchResult
    contents: Contents
    encoded: Encoded
    trials: tuple[Trial, ...]
    """of the first encoding, which chooses each stream's codec for all that follow"""


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
        self._budget_bytes = 0
        self._choices: Choices | None = None
        self._last: tuple[float, Contents] | None = None
        self._estimates: dict[float, int] = {}
        self._best: tuple[float, int, Encoded] | None = None
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
        """Bytes of the file as its streams' models have them, without coding the weights."""
        if value not in self._estimates:
            contents = self.contents(value)
            self._estimates[value] = estimate_bytes(contents, self._codecs, self._form)
        return self._estimates[value]

    def encode(self, value: float) -> int:
        """Bytes of the real file. The first call tries codecs; later ones keep each winner."""
        encoded = encode(
            self.contents(value),
            codecs=self._codecs,
            choices=self._choices,
            progress=self._progress,
        )
        self._choices = encoded.choices
        size = file_bytes(encoded, self._form)
        self._trials = self._trials or list(encoded.trials)
        return self._remember(value, size, encoded)

    def _remember(self, value: float, size: int, encoded: Encoded) -> int:
        """Keep what the search will return: the largest file that fits, else the smallest."""
        rank = (size <= self._budget_bytes, size if size <= self._budget_bytes else -size)
        if self._best is not None:
            _, known, _ = self._best
            fits = known <= self._budget_bytes
            if (fits, known if fits else -known) >= rank:
                return size
        self._best = (value, size, encoded)
        return size

    def largest(self, value: float) -> list[str]:
        """The five largest tensors and files, a line each: by entropy, and by deflate."""
        sizes = {
            tensor.name: tensor_entropy_bytes(tensor) for tensor in self.contents(value).tensors
        }
        sizes |= {f"file {file.name}": len(zlib.compress(file.data)) for file in self._files}
        top = sorted(sizes, key=lambda name: (-sizes[name], name))[:5]
        return [f"{name}  about {sizes[name]:,} B" for name in top]

    def fit(self, budget_bytes: int) -> Fitted:
        """Search the knob, or encode once where nothing follows one.

        Raises `BudgetError` if even the smallest file does not fit.
        """
        self._budget_bytes, self._best = budget_bytes, None
        knob = self._plan.recipe.knob
        if knob.name == "none" or not self._plan.turned:
            found = self._without_knob(budget_bytes)
        else:
            found = search(
                knob,
                budget_bytes,
                estimate=self.estimate,
                encode=self._encode_for_search,
                largest=self.largest,
                start=self._plan.knob_start,
                num_weights=self._plan.turned_weights,
            )
        assert self._best is not None
        assert self._best[0] == found.value
        encoded = self._best[2]
        return Fitted(
            search=found, contents=encoded.contents, encoded=encoded, trials=tuple(self._trials)
        )

    def _without_knob(self, budget_bytes: int) -> SearchResult:
        """The one file that a recipe without a knob gives."""
        value = self._plan.recipe.knob.bounds[1]
        begin = time.perf_counter()
        size = self.encode(value)
        seconds = time.perf_counter() - begin
        check_fits(size, budget_bytes, NO_KNOB, self.largest(value))
        if size < LOW_USE * budget_bytes:
            self._progress.warn(
                f"the file uses {size / budget_bytes:.1%} of the budget: no rule follows the knob; "
                "put knob = true in one"
            )
        probe = Probe(value=value, kind="codec", num_bytes=size, fits=True, seconds=seconds)
        reason = "no rule of the recipe follows the knob"
        return SearchResult(value=value, num_bytes=size, reason=reason, probes=(probe,))

    def check_floor(self, budget_bytes: int) -> None:
        """Refuse a budget that is clearly out of reach, by entropy, before anything slow."""
        knob = self._plan.recipe.knob
        low, high = knob.bounds
        coarse = low if knob.finer_upwards else high
        smallest = self.estimate(coarse)
        if smallest * FLOOR_MARGIN > budget_bytes:
            turned = knob.name != "none" and self._plan.turned
            where = f"{knob.name} = {coarse:g}" if turned else NO_KNOB
            where += " (estimated, before calibration)"
            check_fits(smallest, budget_bytes, where, self.largest(coarse))

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
