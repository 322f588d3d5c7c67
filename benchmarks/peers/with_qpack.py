"""qpack's own rows: a whole file that decodes itself, float tensors and decoder included.

A recipe at a value of its knob, or at the finest one that fits a number of bytes; that search is
not timed, one encoding at its result is. The Viterbi search is compiled before the clock starts,
which takes a second or two in every process.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from worker import Peer, Task, Weights, main

from qpack.artifact.encode import encode
from qpack.artifact.reader import read
from qpack.artifact.writer import render
from qpack.inputs import read_inputs
from qpack.options import PackOptions
from qpack.quant.tcq import round_column
from qpack.stages import RunLog
from qpack.sweep import make_fitter, make_quantizer
from qpack.tensors import Contents
from qpack.torch_tensors import to_torch

FILE = "model.pyz"


class Qpack(Peer):
    """Settings: `recipe`; `value` or `budget_bytes`; `codecs`, else all."""

    def __init__(self, task: Task, settings: dict[str, Any]) -> None:
        super().__init__(task, settings)
        codecs = settings.get("codecs")
        self.inputs = read_inputs(
            PackOptions(
                **{name: Path(path) for name, path in task.known["files"].items()},
                calib=None,
                budget_bytes=1,
                out=Path(FILE),
                val_tokens=1,
                recipe=settings["recipe"],
                codecs=None if codecs is None else tuple(codecs),
            )
        )
        self.value = settings["value"] if "value" in settings else self._fitted()
        self.facts |= {"knob": self.inputs.plan.recipe.knob.name, "value": self.value}
        nothing = torch.zeros(1, 1)
        for states in {entry.rule.trellis for entry in self.inputs.plan.tensors} - {0}:
            round_column(nothing, nothing, (0,), states)

    def contents(self, value: float) -> Contents:
        """Factors and one pass."""
        assert self.inputs.statistics is not None
        quantizer = make_quantizer(self.inputs, self.inputs.statistics, RunLog())
        return make_fitter(self.inputs, quantizer, RunLog()).contents(value)

    def encode(self, folder: Path) -> None:
        encoded = encode(self.contents(self.value), codecs=self.inputs.codecs)
        (folder / FILE).write_bytes(render(encoded, form=self.inputs.form))

    def decode(self, folder: Path) -> Weights:
        tensors = read(folder / FILE).tensors
        return {tensor.name: to_torch(tensor).float().numpy() for tensor in tensors}

    def _fitted(self) -> float:
        assert self.inputs.statistics is not None
        quantizer = make_quantizer(self.inputs, self.inputs.statistics, RunLog())
        begin = time.perf_counter()
        search = make_fitter(self.inputs, quantizer, RunLog()).fit(self.settings["budget_bytes"])
        self.facts["search_seconds"] = time.perf_counter() - begin
        return search.search.value


if __name__ == "__main__":
    main(Qpack, ("qpack-lm", "brotli", "torch", "numpy"))
