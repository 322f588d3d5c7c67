"""Every row of an evaluation on a real model, each beside its control, in one file.

    python benchmarks/evaluation.py MODEL --float FLOAT --tokens SHARD --tokenizer MODEL
        --work FOLDER -o OUT.json [--rows disjoint sliding+ppm ...] [--check] [--prove 8192]

A row is a reading, or a reading and what is built on it: `disjoint`, `sliding` (stride 64) or
`documents` (contexts end with their document), then `+ngram`, `+ppm` and so on, names as of
`qpack/eval/registry.py`; `float` is the float model in disjoint windows. A row's control is made
first if it is not there. Rows that OUT has are kept, so a run that was stopped goes on, and rows of
several machines stand in one file, each with its own provenance; a kept row of other settings, or
without the probes that are asked for, ends the run. FOLDER keeps the scores of single tokens, from
which a gain over a control gets its error, and a reading's rows, which all mixtures on it read:
their seconds are those of the network's own row and of mixing, `mixing_seconds`.

`--precision bfloat16` and `--compile` are for speed on CUDA; rows of bfloat16 stand beside the
others, as `disjoint@bfloat16`. Only windows of few shapes are compiled: not those of documents, and
no model that learns. Everything is run once on a part of the text before it is timed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qpack.checkpoint import build_model, read_model
from qpack.device import choose
from qpack.environment import provenance
from qpack.eval.checks import CheckSettings, check, refuse
from qpack.eval.coder import Setup
from qpack.eval.network import Network
from qpack.eval.predictor import LogProbs, Mixture, Tokens
from qpack.eval.prove import prove
from qpack.eval.registry import (
    ADAPTATIONS,
    Contender,
    build,
    check_settings,
    plain,
    section_of,
    settings_tables,
)
from qpack.eval.rows import Control, Row, evaluate_row
from qpack.progress import SILENT, Progress
from qpack.tokenizer import Tokenizer
from qpack.tokens import read_shard, sha256_file

WINDOW, STRIDE = 1024, 64
ROWS = (
    "float", "disjoint", "sliding", "documents",
    "disjoint+ngram", "disjoint+tilt", "disjoint+ppm", "sliding+ngram", "sliding+tilt",
    "sliding+ppm", "disjoint+sgd", "disjoint+adamw", "sliding+sgd", "documents+lora",
)  # fmt: skip
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}
WARM_TOKENS = {"cpu": 2 * WINDOW + 1, "cuda": 2 * 65_536 + 1}
"""Enough for a whole batch."""
BLOCK_TOKENS = 4_096
"""Rows in memory at a time."""
GRAPHS = 64
"""Of one function: batches that are full, or not, of windows that skip, or not."""


def main() -> None:
    options = parse()
    if options.compile:
        if options.check:
            raise SystemExit("--check reads token by token: every length would be compiled")
        torch._dynamo.config.recompile_limit = GRAPHS
    names = {name for spec in options.rows if (name := spec.partition("+")[2])}
    check_settings(sorted(names), settings_tables(options.set, names))
    book = Book(options)
    for spec in options.rows:
        book.row(spec)
    print(json.dumps([brief(row) for row in book.document["rows"].values()], indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, help="an artifact, or a checkpoint")
    parser.add_argument("--float", type=Path, help="the float checkpoint, for the row `float`")
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--max-tokens", type=int, default=131_072)
    parser.add_argument("--rows", nargs="+", metavar="ROW", default=ROWS)
    parser.add_argument("--set", nargs="+", metavar="KEY=VALUE", default=[])
    parser.add_argument("--check", action="store_true", help="probe each row first")
    parser.add_argument("--prove", type=int, metavar="BYTES", help="write and decode a file too")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, required=True)
    return parser.parse_args()


class Book:
    """The document under way, and what its rows need."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device, _ = choose(options.device)
        self.tokenizer = Tokenizer.load(options.tokenizer)
        self.tokens = np.array(read_shard(options.tokens)[: options.max_tokens + 1])
        self.models: dict[tuple[str, bool], torch.nn.Module] = {}
        inputs = {
            role: {"name": path.name, "sha256": sha256_file(path)}
            for role, path in self.paths().items()
        }
        self.document: dict[str, Any] = {
            "schema": "qpack.bench-evaluation/1",
            "inputs": inputs,
            "max_tokens": options.max_tokens,
            "rows": {},
            "proofs": {},
        }
        if options.out.exists():
            found = json.loads(options.out.read_text("utf-8"))
            same = all(found[key] == self.document[key] for key in ("inputs", "max_tokens"))
            if not same:
                raise SystemExit(f"{options.out} is of other inputs: move it away")
            self.document |= {key: found[key] for key in ("rows", "proofs")}
        options.work.mkdir(parents=True, exist_ok=True)

    def paths(self) -> dict[str, Path]:
        roles = ("model", "float", "tokens", "tokenizer")
        found = {role: getattr(self.options, role) for role in roles}
        return {role: path for role, path in found.items() if path is not None}

    def row(self, spec: str) -> Row:
        """The row of `spec`: as it is in the document, or measured now."""
        key = spec + self.suffix()
        scores = self.options.work / f"{key}.npy"
        known = self.document["rows"].get(key)
        contender = self.contender(spec)
        if known is not None and scores.exists():
            if known["settings"] != json.loads(json.dumps(dict(contender.settings))):
                raise SystemExit(f"{self.options.out}: {key} has other settings: move it away")
            if self.options.check and known["probes"] is None:
                raise SystemExit(f"{self.options.out}: {key} was not probed: move it away")
            self.prove_once(spec)
            return restored(known, np.load(scores))
        control = None if contender.control is None else self.row(self.control_of(spec))
        probes = None
        if self.options.check:
            probes = check(contender.rehearsal, self.tokens, self.tokenizer)
            refuse(contender.predictor, probes)
        predictor = contender.predictor
        predictor.score(self.tokens[: WARM_TOKENS[self.device.type]])
        if isinstance(predictor, Mixture):
            predictor = replace(predictor, base=self.kept(predictor.base, spec.partition("+")[0]))
        measured = evaluate_row(
            predictor,
            self.tokens,
            self.tokenizer,
            control=control,
            settings=contender.settings,
            probes=probes,
        )
        np.save(scores, measured.scores)
        how: dict[str, Any] = {
            "precision": self.options.precision,
            "compiled": self.compiles(spec),
        }
        if isinstance(predictor, Mixture) and control is not None:
            how["mixing_seconds"] = measured.seconds
            seconds = control.seconds + measured.seconds
            speed = measured.tokens / seconds
            measured = replace(measured, seconds=seconds, tokens_per_second=speed)
        self.document["rows"][key] = measured.to_dict() | how | provenance(self.device)
        self.write()
        self.prove_once(spec)
        print(json.dumps(brief(self.document["rows"][key])), flush=True)
        return measured

    def kept(self, network: Any, reading: str) -> Kept:
        """The network's rows from a file of FOLDER, which is made if it is not there."""
        path = self.options.work / f"{reading}{self.suffix()}.rows.npy"
        if not path.exists():
            partial = path.with_suffix(".partial")
            shape = (len(self.tokens) - 1, network.vocab_size)
            rows = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float64, shape=shape)
            end = 0
            for block, targets in network.rows(self.tokens):
                rows[end : end + len(targets)] = block
                end += len(targets)
            rows.flush()
            partial.rename(path)
        return Kept(network, np.load(path, mmap_mode="r"))

    def suffix(self) -> str:
        """What the names of rows end with."""
        precision = self.options.precision
        return "" if precision == "float32" else f"@{precision}"

    def contender(self, spec: str) -> Contender:
        reading, _, name = spec.partition("+")
        network = self.network(reading, self.compiles(spec))
        if not name:
            return plain(network)
        tables = settings_tables(self.changes(name), [name])
        rehearsal = CheckSettings().num_tokens
        settings = tables.get(section_of(name), {})
        return build(name, network, self.tokenizer, settings, rehearsal_tokens=rehearsal)

    def changes(self, name: str) -> list[str]:
        """What `--set` says of this name."""
        return [text for text in self.options.set if text.startswith(f"{section_of(name)}.")]

    def control_of(self, spec: str) -> str:
        reading, _, name = spec.partition("+")
        if name == "lora":  # its windows overlap as its chunks do
            return "lora-off"
        return reading if name else "disjoint"

    def compiles(self, spec: str) -> bool:
        reading, _, name = spec.partition("+")
        few_shapes = reading in ("float", "disjoint", "sliding") and name not in ADAPTATIONS
        return bool(self.options.compile) and few_shapes

    def network(self, reading: str, compiles: bool) -> Network:
        model = self.model("float" if reading == "float" else "model", compiles)
        bos = self.tokenizer.bos
        match reading:
            case "float" | "disjoint":
                return Network(model, window=WINDOW)
            case "sliding":
                return Network(model, window=WINDOW, stride=STRIDE)
            case "documents":
                return Network(model, window=WINDOW, isolate=bos)
            case "lora-off":
                lora = self.contender("documents+lora").predictor
                return lora.control  # type: ignore[attr-defined, no-any-return]
        raise SystemExit(f"no reading {reading!r}: float, disjoint, sliding or documents")

    def model(self, role: str, compiles: bool) -> torch.nn.Module:
        if (role, compiles) not in self.models:
            model: Any = build_model(read_model(self.paths()[role]), device=self.device)
            model.compute_dtype = PRECISIONS[self.options.precision]
            if compiles:
                model.compile_regions()
            self.models[role, compiles] = model
        return self.models[role, compiles]

    def prove_once(self, spec: str) -> None:
        """A proof, where one is asked for and there is none of as many bytes."""
        known = self.document["proofs"].get(spec, {})
        if self.options.prove and known.get("asked_bytes") != self.options.prove:
            self.prove(spec)
            self.write()

    def prove(self, spec: str) -> None:
        reading, _, name = spec.partition("+")
        setup = Setup(
            window=WINDOW,
            stride=STRIDE if reading == "sliding" else None,
            isolate=reading == "documents",
            name=name or None,
            settings=settings_tables(self.changes(name), [name]).get(section_of(name), {})
            if name
            else {},
        )
        model = self.paths()["float" if reading == "float" else "model"]
        proof = prove(
            model,
            self.tokens,
            setup,
            tokenizer=self.options.tokenizer,
            num_bytes=self.options.prove,
        )
        proof.check()
        self.document["proofs"][spec] = asdict(proof) | provenance(torch.device("cpu"))

    def write(self) -> None:
        document = self.document | provenance(self.device)
        self.options.out.write_text(json.dumps(document, indent=1) + "\n", "utf-8")


class Kept:
    """A network whose rows of one stream are known, as a `RowPredictor` of that stream."""

    def __init__(self, network: Network, known: LogProbs) -> None:
        self.name, self.vocab_size = network.name, network.vocab_size
        self.start, self.score = network.start, network.score
        self.known = known

    def rows(
        self, tokens: Tokens, *, progress: Progress = SILENT
    ) -> Iterator[tuple[LogProbs, Tokens]]:
        for i in range(0, len(tokens) - 1, BLOCK_TOKENS):
            targets = tokens[i + 1 : i + 1 + BLOCK_TOKENS]
            yield np.array(self.known[i : i + len(targets)]), targets


def restored(known: dict[str, Any], scores: NDArray[np.float64]) -> Row:
    """A row of the document, its scores with it."""
    fields = {key: known[key] for key in Row.__dataclass_fields__ if key in known}
    control = known["control"]
    fields["control"] = None if control is None else Control(**control)
    return Row(**fields, scores=scores)


def brief(row: dict[str, Any]) -> dict[str, Any]:
    keys = ("name", "bpb", "bpb_error", "control", "seconds", "tokens_per_second")
    return {key: row[key] for key in keys}


if __name__ == "__main__":
    main()
