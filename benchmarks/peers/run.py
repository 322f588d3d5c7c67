"""Other quantizers and coders beside qpack, on one checkpoint: bytes, what they lose, seconds.

    python benchmarks/peers/run.py CHECKPOINT --tokenizer MODEL --calib SHARD --val SHARD
        -o OUT.json [--only NAME...] [--environments FOLDER] [--work FOLDER] [--threads N]

Every peer (`rows.py`) gets the same task: the weights that qpack's default recipe quantizes, the
token table among them, and their Hessians from qpack's calibration. It quantizes them in its own
interpreter with its own public functions, writes what it would store, and decodes that. All other
tensors are float16 and counted at 2 bytes each. qpack's rows are whole files, decoder included. The
model with the decoded weights is scored against the float one on tokens that calibration never saw.

Scripts are held to N threads, for encoding and decoding alike; calibration, in which all share, is
not in their seconds. Rows are written as they are done; those that OUT already holds are not done
again. A row that fails is told and left out; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import launch
from rows import Row, chosen
from torch import Tensor

from qpack.artifact.writer import write_atomic
from qpack.checkpoint import build_model
from qpack.environment import provenance
from qpack.eval.bpb import compare
from qpack.eval.remember import Remembering
from qpack.inputs import Inputs, read_inputs
from qpack.options import PackOptions
from qpack.pipeline import calibrate, calibration_batches
from qpack.quant.sensitivity import mean_hessian
from qpack.quant.statistics import Statistics
from qpack.stages import RunLog
from qpack.tokens import sha256_file

SCHEMA = "qpack.bench-peers/1"
ENVIRONMENTS = Path("runs/peers")
FLOAT16_BYTES = 2
KEPT_LOGITS_BYTES = 4 << 30


def main() -> None:
    options = parse()
    rows = chosen(options.only)
    if any(row.peer == "lrzip" for row in rows.values()) and not shutil.which("lrzip"):
        print("no lrzip on this machine: its row is LEFT OUT (Debian's package is lrzip)")
        rows = {name: row for name, row in rows.items() if row.peer != "lrzip"}
    bench = Bench(options)
    failed = []
    for name, row in rows.items():
        if name not in bench.rows:
            print(f"{name} ...", flush=True)
            try:
                bench.add(name, bench.measured(row))
            except launch.PeerError as failure:
                failed.append(name)
                print(f"{name}: FAILED\n{failure}")
                continue
        print(line(name, bench.rows[name]), flush=True)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--calib-tokens", type=int, default=65_536)
    parser.add_argument("--val", type=Path, required=True)
    parser.add_argument("--val-tokens", type=int, default=131_072)
    parser.add_argument("--window", type=int, default=1_024)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="rows, or all of a peer")
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS)
    parser.add_argument("--work", type=Path, default=ENVIRONMENTS / "work")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--out", type=Path, required=True)
    return parser.parse_args()


class Bench:
    """Inputs, statistics and the float model, shared by all rows; the result so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        options.work.mkdir(parents=True, exist_ok=True)
        saved = options.work / "statistics.safetensors"
        pack = PackOptions(
            checkpoint=options.checkpoint,
            budget_bytes=1,
            out=options.work / "model.pyz",
            tokenizer=options.tokenizer,
            calib=options.calib,
            calib_tokens=options.calib_tokens,
            val=options.val,
            val_tokens=options.val_tokens,
            window=options.window,
            stats=saved if saved.exists() else None,
            save_stats=None if saved.exists() else saved,
            device="cpu",
        )
        self.inputs = read_inputs(pack)
        self.document = document(options, self.inputs)
        batches, _ = calibration_batches(self.inputs, pack, RunLog())
        statistics = calibrate(self.inputs, batches, pack, RunLog())
        self.weights = quantized(self.inputs)
        self.task = options.work / "task.safetensors"
        self.write_task(statistics, saved)
        self.reference = Remembering(self.inputs.model, limit_bytes=KEPT_LOGITS_BYTES)

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        """What is done."""
        done: dict[str, dict[str, Any]] = self.document["rows"]
        return done

    def add(self, name: str, row: dict[str, Any]) -> None:
        """Keep a row, in memory and on disk."""
        self.rows[name] = row
        data = json.dumps(self.document, indent=1, allow_nan=False) + "\n"
        write_atomic(self.options.out, data.encode(), force=True)

    def write_task(self, statistics: Statistics, saved: Path) -> None:
        """What the peers get; qpack's own rows read the checkpoint and statistics themselves."""
        hessians, members = {}, {}
        for name in self.weights:
            H = mean_hessian(name, statistics)
            if H is not None:
                members[name] = statistics.members[name]
                hessians.setdefault(members[name], H)
        o = self.options
        files = {"checkpoint": o.checkpoint, "tokenizer": o.tokenizer, "val": o.val, "stats": saved}
        launch.write_task(
            self.task,
            self.weights,
            hessians=hessians,
            members=members,
            tables=[e.name for e in self.inputs.plan.tensors if e.kind == "embedding"],
            files={name: str(path.absolute()) for name, path in files.items()},
        )

    def measured(self, row: Row) -> dict[str, Any]:
        """One row of the table."""
        settings = dict(row.settings)
        if row.at_bytes_of is not None:
            if row.at_bytes_of not in self.rows:
                raise launch.PeerError(f"needs the row {row.at_bytes_of!r} first")
            settings["budget_bytes"] = self.rows[row.at_bytes_of]["bytes"]
        decoded, result = launch.run(
            row.peer,
            self.task,
            settings,
            environments_folder=self.options.environments,
            threads=self.options.threads,
        )
        tensors = self.inputs.checkpoint.tensors
        absent = tensors.keys() - decoded.keys()
        other = sum(FLOAT16_BYTES * tensors[name].numel() for name in absent)
        size = result["stored_bytes"] + other
        return {
            "peer": row.peer,
            "settings": settings,
            "bytes": size,
            "bits_per_weight": 8 * size / self.inputs.plan.num_weights,
            "relative_mse": launch.relative_error(self.weights, decoded),
            **self.scored(decoded),
            **result,
        }

    def scored(self, decoded: dict[str, Tensor]) -> dict[str, float | None]:
        """What the model with the decoded weights loses; the rest of it is float16."""
        tensors = {
            name: decoded[name].reshape(tensor.shape) if name in decoded else tensor.half().float()
            for name, tensor in self.inputs.checkpoint.tensors.items()
        }
        before, after = compare(
            self.reference,
            build_model(replace(self.inputs.checkpoint, tensors=tensors)),
            self.inputs.validation,
            self.inputs.tokenizer,
            window=self.options.window,
        )
        return {
            "bpb_float": before.bpb,
            "bpb": after.bpb,
            "gap": after.bpb - before.bpb,
            "kl": after.kl,
        }


def quantized(inputs: Inputs) -> dict[str, Tensor]:
    """The weights (rows, cols) float32 that the default recipe quantizes."""
    return {
        entry.name: inputs.checkpoint.tensors[entry.name].float().flatten(1)
        for entry in inputs.plan.tensors
        if entry.rule.type == "int"
    }


def document(options: argparse.Namespace, inputs: Inputs) -> dict[str, Any]:
    """The result so far, if it is one of the same setup, else an empty one."""
    files = (options.checkpoint, options.calib, options.val, options.tokenizer)
    settings = ("calib_tokens", "val_tokens", "window", "threads")
    fresh = {
        "schema": SCHEMA,
        "model": inputs.checkpoint.name,
        "weights": inputs.plan.num_weights,
        "quantized_weights": sum(weight.numel() for weight in quantized(inputs).values()),
        "settings": {name: getattr(options, name) for name in settings},
        "inputs": {path.name: sha256_file(path) for path in files},
        **provenance(inputs.device),
    }
    if not options.out.exists():
        return {**fresh, "rows": {}}
    known: dict[str, Any] = json.loads(options.out.read_text("utf-8"))
    other = [key for key, value in fresh.items() if known.get(key) != value]
    if other:
        raise SystemExit(f"{options.out} differs in {', '.join(other)}: remove it first")
    return known


def line(name: str, row: dict[str, Any]) -> str:
    """One line of the table."""
    encode, decode = (row["seconds"][what] for what in ("encode", "decode"))
    return (
        f"{name:30} {row['bytes']:>12,} B {row['bits_per_weight']:6.3f} bits  KL {row['kl']:.5f}  "
        f"BPB {row['gap']:+.5f}  encode {encode['cpu']:6.1f} s  decode {decode['cpu']:5.1f} s"
    )


if __name__ == "__main__":
    main()
