"""What a byte buys: the field's recipe, and this quantizer with each lever alone, at equal bytes.

    python benchmarks/rate_distortion.py MODEL --calib SHARD --val SHARD --tokenizer MODEL
        --work FOLDER -o OUT.json [--rows NAME...]

The record recipe at k = 12.85, coded by brotli-11, sets the budget: the bytes of its whole file. At
that budget come the rd rule with and without trellis and tuning, and what is left when one lever is
taken away; then, for some, the bytes at which they reach the recipe's KL. Calibration tokens and
scored tokens are never the same.

Rows are written as they are done, and those that OUT already holds are not done again; statistics
are kept in FOLDER. Each row counts its seconds by the clock and by the processor.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from qpack.artifact.encode import encode
from qpack.artifact.reader import read
from qpack.artifact.writer import render, write_atomic
from qpack.codec.registry import resolve
from qpack.environment import provenance
from qpack.eval.remember import Remembering
from qpack.inputs import Inputs, read_inputs
from qpack.options import PackOptions
from qpack.pipeline import calibrate, calibration_batches, tuning_batches
from qpack.proof import check_decoded, decode_elsewhere
from qpack.quant.tune import Tuning, tune
from qpack.recipe import Recipe, read_recipe
from qpack.stages import RunLog
from qpack.sweep import make_fitter, make_quantizer, planned, score_contents
from qpack.tensors import Contents
from qpack.tokens import sha256_file
from qpack.tuned import fit_tuned

SCHEMA = "qpack.bench-rate-distortion/1"
RECORD, RECORD_K, RECORD_CODECS = "record", 12.85, ("brotli",)
SETTINGS = ("calib_tokens", "sens_tokens", "val_tokens", "window", "tune", "tune_tokens")
KEPT_LOGITS_BYTES = 4 << 30
NEAR = 0.01
"""A file that matches the recipe's KL has at most it, and at least this much less."""
TRIES = 5


@dataclass(frozen=True, kw_only=True)
class Row:
    """One quantizer: changes of the default recipe's rd rules, and what is done with it."""

    rule: dict[str, Any] = field(default_factory=dict)
    tuned: bool = False
    equal_kl: bool = False
    """find the bytes at which it has the recipe's KL, not its KL at the recipe's bytes"""


SCALAR: dict[str, Any] = {"trellis": 0}
GAINS: dict[str, Any] = {"gains": True, "row_feedback": False}
ROWS = {
    "rd scalar": Row(rule=SCALAR),
    "rd trellis 8": Row(rule={"trellis": 8}),
    "rd trellis 32": Row(rule={"trellis": 32}),
    "rd trellis 64": Row(rule={"trellis": 64}),
    "rd scalar, tuned": Row(rule=SCALAR, tuned=True),
    "rd trellis 8, tuned": Row(rule={"trellis": 8}, tuned=True),
    "rd trellis 32, tuned": Row(rule={"trellis": 32}, tuned=True),
    "rd scalar, no tensor term": Row(rule={**SCALAR, "terms": ("row", "column")}),
    "rd scalar, no row term": Row(rule={**SCALAR, "terms": ("tensor", "column")}),
    "rd scalar, no column term": Row(rule={**SCALAR, "terms": ("tensor", "row")}),
    "rd scalar, equal relative steps": Row(rule={**SCALAR, "terms": ()}),
    "rd scalar, no row feedback": Row(rule={**SCALAR, "row_feedback": False}),
    "rd trellis 8, no row feedback": Row(rule={"trellis": 8, "row_feedback": False}),
    "rd scalar, gains, no row feedback": Row(rule={**SCALAR, **GAINS}),
    "rd scalar, damping 0.001": Row(rule={**SCALAR, "damping": 0.001}),
    "rd trellis 8, gains, no row feedback": Row(rule={"trellis": 8, **GAINS}),
    "rd trellis 4": Row(rule={"trellis": 4}),
    "rd trellis 16": Row(rule={"trellis": 16}),
    "rd scalar at the recipe's KL": Row(rule=SCALAR, equal_kl=True),
    "rd trellis 8 at the recipe's KL": Row(rule={"trellis": 8}, equal_kl=True),
    "rd trellis 32 at the recipe's KL": Row(rule={"trellis": 32}, equal_kl=True),
    "rd trellis 8, tuned, at the recipe's KL": Row(rule={"trellis": 8}, tuned=True, equal_kl=True),
    "rd trellis 32, tuned, at the recipe's KL": Row(
        rule={"trellis": 32}, tuned=True, equal_kl=True
    ),
}


def main() -> None:
    options = parse()
    bench = Bench(options)
    for name in (RECORD, *(options.rows or ROWS)):
        if name not in bench.rows:
            print(f"{name} ...", flush=True)
            bench.add(name, bench.record() if name == RECORD else bench.row(ROWS[name]))
        row = bench.rows[name]
        print(f"{name:45} {row['bytes']:>12,} B  KL {row['kl']:.6f}  {row['kl_ratio']:.3f}x")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--calib-tokens", type=int, default=65_536)
    parser.add_argument("--sens-tokens", type=int, default=16_384)
    parser.add_argument("--val", type=Path, required=True)
    parser.add_argument("--val-tokens", type=int, default=131_072)
    parser.add_argument("--window", type=int, default=1_024)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--tune", type=int, default=120, metavar="STEPS")
    parser.add_argument("--tune-tokens", type=int, default=262_144)
    parser.add_argument("--rows", nargs="+", metavar="NAME", choices=sorted(ROWS))
    parser.add_argument("--work", type=Path, required=True, help="folder for what is used again")
    parser.add_argument("--device", default="auto")
    parser.add_argument("-o", "--out", type=Path, required=True)
    return parser.parse_args()


class Bench:
    """Inputs, statistics and the float model, shared by all rows."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        options.work.mkdir(parents=True, exist_ok=True)
        saved = options.work / "statistics.safetensors"
        self.pack = PackOptions(
            checkpoint=options.model,
            budget_bytes=1,
            out=options.work / "model.pyz",
            tokenizer=options.tokenizer,
            calib=options.calib,
            calib_tokens=options.calib_tokens,
            sens_tokens=options.sens_tokens,
            val=options.val,
            val_tokens=options.val_tokens,
            window=options.window,
            stats=saved if saved.exists() else None,
            save_stats=None if saved.exists() else saved,
            device=options.device,
            tune=options.tune,
            tune_tokens=options.tune_tokens,
        )
        self.inputs = read_inputs(self.pack)
        self.document = self._document()
        seconds: dict[str, Any] = {}
        with clocked(seconds, "calibrate"):
            self.batches, self.held_out = calibration_batches(self.inputs, self.pack, RunLog())
            self.tuning_batches = tuning_batches(self.inputs, self.batches, self.pack)
            self.statistics = calibrate(self.inputs, self.batches, self.pack, RunLog())
        if self.pack.stats is None:
            self.document["seconds"] = seconds
            self.write()
        self.reference = Remembering(self.inputs.model, limit_bytes=KEPT_LOGITS_BYTES)

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        """What is done."""
        done: dict[str, dict[str, Any]] = self.document["rows"]
        return done

    def add(self, name: str, row: dict[str, Any]) -> None:
        """Keep a row, in memory and on disk."""
        self.rows[name] = row
        row["kl_ratio"] = row["kl"] / self.rows[RECORD]["kl"]
        row["bytes_ratio"] = row["bytes"] / self.rows[RECORD]["bytes"]
        self.write()

    def write(self) -> None:
        """All that is known so far."""
        data = json.dumps(self.document, indent=1, allow_nan=False) + "\n"
        write_atomic(self.options.out, data.encode(), force=True)

    def record(self) -> dict[str, Any]:
        """The field's recipe at its own k, coded by its codec."""
        inputs = replace(planned(self.inputs, read_recipe(RECORD)), codecs=resolve(RECORD_CODECS))
        work = Work(self, inputs, tune_steps=0)
        return work.finished(RECORD_K, work.fitter.contents(RECORD_K), None)

    def row(self, row: Row) -> dict[str, Any]:
        """One row of the table, after the recipe's."""
        inputs = planned(self.inputs, changed(read_recipe("default"), row.rule))
        work = Work(self, inputs, tune_steps=self.options.tune if row.tuned else 0)
        if row.equal_kl:
            return work.at_kl(self.rows[RECORD]["kl"])
        return work.at_bytes(self.rows[RECORD]["bytes"])

    def _document(self) -> dict[str, Any]:
        """The result so far, if it is one of the same setup, else an empty one."""
        o = self.options
        files = (o.model, o.calib, o.val, o.tokenizer)
        fresh = {
            "schema": SCHEMA,
            "model": self.inputs.checkpoint.name,
            "weights": self.inputs.plan.num_weights,
            "record": {"k": RECORD_K, "codecs": list(RECORD_CODECS)},
            "settings": {key: getattr(o, key) for key in SETTINGS},
            "inputs": {path.name: sha256_file(path) for path in files},
            **provenance(self.inputs.device),
        }
        if not o.out.exists():
            return {**fresh, "rows": {}}
        known: dict[str, Any] = json.loads(o.out.read_text("utf-8"))
        other = [key for key, value in fresh.items() if known.get(key) != value]
        if other:
            raise SystemExit(f"{o.out} differs in {', '.join(other)}: remove it first")
        return known


class Work:
    """One row under way: its quantizer, and the seconds of each thing it does."""

    def __init__(self, bench: Bench, inputs: Inputs, *, tune_steps: int) -> None:
        self.bench, self.inputs, self.tune_steps = bench, inputs, tune_steps
        self.seconds: dict[str, Any] = {}
        with clocked(self.seconds, "prepare"):
            self.quantizer = make_quantizer(inputs, bench.statistics, RunLog())
        self.fitter = make_fitter(inputs, self.quantizer, RunLog())

    def at_bytes(self, budget: int) -> dict[str, Any]:
        """The finest file of at most `budget` bytes."""
        with clocked(self.seconds, "fit"):
            fitted = self.fitter.fit(budget)
        record = None
        if self.tune_steps:
            form, codecs = self.inputs.form, self.inputs.codecs
            with clocked(self.seconds, "tune"):
                fitted, tuned = fit_tuned(
                    self.fitter,
                    fitted,
                    self.tuning(),
                    budget,
                    form=form,
                    codecs=codecs,
                    progress=RunLog(),
                )
            record = tuned.describe()
        return self.finished(fitted.search.value, fitted.contents, record)

    def at_kl(self, target: float) -> dict[str, Any]:
        """The coarsest file found whose KL is at most `target`, and hardly less.

        KL grows about as the square of the knob: a secant on logarithms, from there.
        """
        points: list[tuple[float, float, dict[str, Any]]] = []
        value = 1.0
        for _ in range(TRIES):
            contents, tuned = self.tuned(self.fitter.contents(value))
            row = self.finished(value, contents, tuned)
            miss = math.log(row["kl"] / (target * (1 - NEAR / 2)))
            points.append((math.log(value), miss, row))
            if -NEAR <= math.log(row["kl"] / target) <= 0:
                break
            slope = 2.0
            if len(points) > 1:
                (x0, y0, _), (x1, y1, _) = sorted(points, key=lambda point: abs(point[1]))[:2]
                slope = (y1 - y0) / (x1 - x0)
            nearest = min(points, key=lambda point: abs(point[1]))
            value = math.exp(nearest[0] - nearest[1] / slope)
        good = [row for *_, row in points if row["kl"] <= target]
        return min(good, key=lambda row: int(row["bytes"]))

    def tuned(self, contents: Contents) -> tuple[Contents, dict[str, Any] | None]:
        """Contents after tuning, and what it did, where the row asks for it."""
        if not self.tune_steps:
            return contents, None
        with clocked(self.seconds, "tune"):
            done = tune(contents, self.tuning())
        return done.contents, {"steps": done.steps, "before": done.before, "after": done.after}

    def tuning(self) -> Tuning:
        """How contents are tuned."""
        return Tuning(
            model=self.inputs.model,
            batches=self.bench.tuning_batches,
            held_out=self.bench.held_out,
            steps=self.tune_steps,
        )

    def rendered(self, contents: Contents) -> bytes:
        """The whole file."""
        with clocked(self.seconds, "encode"):
            encoded = encode(contents, codecs=self.inputs.codecs)
        return render(encoded, form=self.inputs.form)

    def finished(
        self, value: float, contents: Contents, tuned: dict[str, Any] | None
    ) -> dict[str, Any]:
        """The row: the file decoded twice and compared, timed, and scored."""
        data = self.rendered(contents)
        path = self.bench.pack.out
        path.write_bytes(data)
        with clocked(self.seconds, "decode"):
            read(path)
        with clocked(self.seconds, "decode elsewhere, checked"):
            check_decoded(decode_elsewhere(path)[0], contents)
        with clocked(self.seconds, "pass"):
            self.quantizer.quantize(value)
        with clocked(self.seconds, "score"):
            before, after = score_contents(
                self.inputs,
                contents,
                self.bench.reference,
                window=self.bench.options.window,
                log=RunLog(),
            )
        return {
            "knob": self.inputs.plan.recipe.knob.name,
            "value": value,
            "bytes": len(data),
            "bits_per_weight": 8 * len(data) / self.inputs.plan.num_weights,
            "bpb_float": before.bpb,
            "bpb": after.bpb,
            "gap": after.bpb - before.bpb,
            "kl": after.kl,
            "tuned": tuned,
            "rules": [rule.label() for rule in self.inputs.plan.recipe.rules],
            "seconds": {name: dict(spent) for name, spent in self.seconds.items()},
        }


def changed(recipe: Recipe, values: dict[str, Any]) -> Recipe:
    """`recipe` with other values in its rd rules; what it says is done, with no second thoughts."""
    rules = tuple(replace(r, **values) if r.scale == "rd" else r for r in recipe.rules)
    return replace(recipe, rules=rules, knob=replace(recipe.knob, choose=False))


@contextmanager
def clocked(seconds: dict[str, Any], name: str) -> Iterator[None]:
    """Put the seconds of what happens within, by the clock and of the processor, under `name`:
    those of the last time, and how often it happened."""
    settle()
    begin, busy = time.perf_counter(), time.process_time()
    yield
    settle()
    seconds[name] = {
        "wall": time.perf_counter() - begin,
        "cpu": time.process_time() - busy,
        "times": seconds.get(name, {"times": 0})["times"] + 1,
    }


def settle() -> None:
    """Wait for what a CUDA device still has to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
