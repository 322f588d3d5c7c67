"""A model that nobody here trained, through the module API's own parts: a BERT of antibodies.

    pip download --no-deps antiberty==0.1.3
    python benchmarks/third_party.py antiberty-0.1.3-py3-none-any.whl -o OUT.json

As `rate_distortion.py`: the record recipe at k = 12.85, coded by brotli, sets the bytes; the other
rows fill them. KL is of the residue at every position, on sequences that calibration never saw.
Rows are written as they are done, and those that OUT already holds are not done again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import antiberty
import torch
from torch import Tensor

from qpack.artifact.encode import encode
from qpack.artifact.writer import render, write_atomic
from qpack.checkpoint import fingerprint
from qpack.choose import Judge
from qpack.codec.registry import resolve
from qpack.environment import provenance
from qpack.fit import Fitter
from qpack.progress import Silent
from qpack.proof import check_decoded, decode_elsewhere
from qpack.quant.calibrate import Sensing, collect
from qpack.quant.engine import Quantizer
from qpack.quant.plan import classify, make_plan, untied
from qpack.quant.statistics import Statistics
from qpack.quant.tune import Tuning
from qpack.recipe import Recipe, read_recipe
from qpack.tensors import Contents
from qpack.tuned import fit_tuned

RECORD_K, FORM = 12.85, "pyz"
CALIBRATED, HELD_OUT, SCORED = 60, 8, 20
"""Sequences of each antibody."""
BATCH = 20
SCALAR: dict[str, Any] = {"trellis": 0}
ROWS: dict[str, dict[str, Any]] = {
    "rd scalar": SCALAR,
    "rd trellis 8": {"trellis": 8},
    "rd trellis 32": {"trellis": 32},
    "rd trellis 32, tuned": {"trellis": 32},
    "rd scalar, no tensor term": {**SCALAR, "terms": ("row", "column")},
    "rd scalar, no row term": {**SCALAR, "terms": ("tensor", "column")},
    "rd scalar, no column term": {**SCALAR, "terms": ("tensor", "row")},
    "rd scalar, equal relative steps": {**SCALAR, "terms": ()},
    "rd scalar, no row feedback": {**SCALAR, "row_feedback": False},
    "rd trellis 8, no row feedback": {"trellis": 8, "row_feedback": False},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--tune", type=int, default=120, metavar="STEPS")
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    bench = Bench(options)
    for name in ("record", *ROWS):
        if name not in bench.rows:
            bench.add(name, bench.record() if name == "record" else bench.row(name))
        row = bench.rows[name]
        print(f"{name:34} {row['bytes']:>12,} B  KL {row['kl']:.6f}  {row['kl_ratio']:.3f}x")


class Bench:
    """The model, its statistics and the rows so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.model = antiberty.load(options.wheel)
        self.tensors, self.aliases = untied(self.model)
        drawn = antiberty.sequences(self.model, CALIBRATED + HELD_OUT + SCORED, seed=0)
        generator = torch.Generator().manual_seed(1)
        masked = [antiberty.mask(tokens, generator)[0] for tokens in drawn]
        self.calibration = batches(masked, 0, CALIBRATED)
        self.held_out = batches(masked, CALIBRATED, CALIBRATED + HELD_OUT)
        scored = batches(masked, CALIBRATED + HELD_OUT, CALIBRATED + HELD_OUT + SCORED)
        self.judge = Judge(model=self.model, held_out=scored)
        begin = time.perf_counter()
        self.statistics = self.calibrate()
        self.document: dict[str, Any] = {
            "schema": "qpack.bench-third-party/1",
            "model": "antiberty 0.1.3",
            "wheel_sha256": hashlib.sha256(options.wheel.read_bytes()).hexdigest(),
            "weights": sum(tensor.numel() for tensor in self.tensors.values()),
            "calibration_tokens": sum(batch.numel() for batch in self.calibration),
            "scored_tokens": sum(batch.numel() for batch in scored),
            "record": {"k": RECORD_K, "codecs": ["brotli"]},
            "tune_steps": options.tune,
            "calibrate_seconds": time.perf_counter() - begin,
            **provenance(torch.device("cpu")),
            "rows": {},
        }
        if options.out.exists():
            self.document["rows"] = self._known_rows(json.loads(options.out.read_text("utf-8")))

    def _known_rows(self, known: dict[str, Any]) -> dict[str, Any]:
        """The rows of an earlier run, if it was one of the same setup."""
        differing = {"rows", "calibrate_seconds"}
        other = [k for k, v in self.document.items() if k not in differing and known.get(k) != v]
        if other:
            raise SystemExit(f"{self.options.out} differs in {', '.join(other)}: remove it first")
        rows: dict[str, Any] = known["rows"]
        return rows

    @property
    def rows(self) -> dict[str, Any]:
        done: dict[str, Any] = self.document["rows"]
        return done

    def add(self, name: str, row: dict[str, Any]) -> None:
        """Keep a row, in memory and on disk."""
        self.rows[name] = row
        row["kl_ratio"] = row["kl"] / self.rows["record"]["kl"]
        data = json.dumps(self.document, indent=1, allow_nan=False) + "\n"
        write_atomic(self.options.out, data.encode(), force=True)

    def calibrate(self) -> Statistics:
        return collect(
            self.model,
            self.calibration,
            fingerprint=fingerprint(self.tensors),
            sensing=Sensing(likelihood="categorical"),
        )

    def record(self) -> dict[str, Any]:
        """The field's recipe at its own k, coded by its codec."""
        fitter = self.fitter(read_recipe("record"), ("brotli",))
        return self.scored(fitter.contents(RECORD_K), ("brotli",), RECORD_K)

    def row(self, name: str) -> dict[str, Any]:
        """One row at the record's bytes."""
        recipe = read_recipe("default")
        rules = tuple(replace(r, **ROWS[name]) if r.scale == "rd" else r for r in recipe.rules)
        fitter = self.fitter(replace(recipe, rules=rules), None)
        budget = self.rows["record"]["bytes"]
        fitted = fitter.fit(budget)
        if "tuned" in name:
            codecs, progress = resolve(None), Silent()
            fitted, _ = fit_tuned(
                fitter, fitted, self.tuning(), budget, form=FORM, codecs=codecs, progress=progress
            )
        return self.scored(fitted.contents, None, fitted.search.value)

    def fitter(self, recipe: Recipe, codecs: tuple[str, ...] | None) -> Fitter:
        plan = make_plan(self.tensors, classify(self.model), self.aliases, recipe)
        return Fitter(
            Quantizer(self.tensors, plan, self.statistics, progress=Silent()),
            self.tensors,
            aliases=self.aliases,
            metadata={"model_name": "AntiBERTy"},
            files=(),
            form=FORM,
            codecs=resolve(codecs),
            progress=Silent(),
        )

    def tuning(self) -> Tuning:
        """How contents are tuned."""
        return Tuning(
            model=self.model,
            batches=self.calibration,
            held_out=self.held_out,
            steps=self.options.tune,
        )

    def scored(
        self, contents: Contents, codecs: tuple[str, ...] | None, value: float
    ) -> dict[str, Any]:
        """A row: the file decoded in another process and compared, and its KL."""
        data = render(encode(contents, codecs=resolve(codecs)), form=FORM)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"model.{FORM}")
            path.write_bytes(data)
            check_decoded(decode_elsewhere(path)[0], contents)
        return {
            "value": value,
            "bytes": len(data),
            "bits_per_weight": 8 * len(data) / self.document["weights"],
            "kl": self.judge.distances([contents])[0],
        }


def batches(drawn: list[Tensor], begin: int, end: int) -> list[Tensor]:
    """Sequences begin to end of every antibody, in batches of one length."""
    return [part for tokens in drawn for part in tokens[begin:end].split(BATCH)]


if __name__ == "__main__":
    main()
