"""Do three more levers pay? Sequential calibration, a low-rank correction, and free permutations.

    python benchmarks/extras.py MODEL --calib SHARD --val SHARD --tokenizer MODEL
        --stats STATISTICS -o OUT.json [--only NAME...]

sequential    (after Qronos, arXiv:2505.11695, and GPTQ's own order) block after block, H comes from
              the inputs that the blocks before give once they are quantized, and the weights to
              be rounded from `min |X W^T - Xq V^T|^2 + damping`, which makes up for what the
              inputs lost. Inputs within a block are those of its unquantized weights.
low rank      (LQER, arXiv:2402.02446) E = W - decoded, weighed as the loss weighs it, keeps what
              is left of its energy after the best rank-r part is stored at `FACTOR_BITS` a value.
              Finer steps for the same bytes would leave 2^(-2 bits a weight). Below 1 it would pay;
              factors are taken as exact, so this is the best it can do.
permutations  hidden units of an MLP may stand in any order. With a byte codec, rows of like step
              beside each other compress better: the bytes of the record recipe by brotli, before
              and after sorting units by the step of their row.

STATISTICS is what `qpack pack --save-stats` wrote.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qpack.artifact.encode import encode
from qpack.artifact.estimate import estimate_bytes
from qpack.artifact.writer import file_bytes
from qpack.checkpoint import Checkpoint, build_model, fingerprint, read_model
from qpack.codec.registry import resolve
from qpack.environment import provenance
from qpack.eval.bpb import compare
from qpack.inputs import token_batches
from qpack.quant.engine import Quantizer
from qpack.quant.plan import classify, make_plan
from qpack.quant.sensitivity import form_of
from qpack.quant.statistics import Statistics, load_statistics
from qpack.quant.tap import WeightTap
from qpack.recipe import read_recipe
from qpack.tensors import Contents, QuantizedTensor
from qpack.tokenizer import Tokenizer
from qpack.tokens import read_shard, sha256_file
from qpack.torch_tensors import to_raw, to_torch

KNOB, RECORD_K = 1.0, 12.85
RANKS = (1, 2, 4, 8, 16, 32)
FACTOR_BITS = 7.0
DAMPING = 0.01
MLP = re.compile(r"(blocks\.\d+\.mlp)\.fc\.weight")


def main() -> None:
    options = parse()
    bench = Bench(options)
    levers: dict[str, Callable[[], Any]] = {
        "permutations": bench.permutations,
        "low rank": bench.low_rank,
        "sequential": bench.sequential,
    }
    found = {}
    for name in options.only or levers:
        found[name] = levers[name]()
        print(name, json.dumps(found[name], indent=1), flush=True)
    files = (options.model, options.calib, options.val)
    document = {
        "schema": "qpack.bench-extras/1",
        "model": bench.checkpoint.name,
        "settings": {"c": KNOB, "k": RECORD_K, "damping": DAMPING, "factor_bits": FACTOR_BITS}
        | {key: getattr(options, key) for key in ("calib_tokens", "val_tokens")},
        "levers": found,
        "inputs": {path.name: sha256_file(path) for path in files},
        **provenance(torch.device("cpu")),
    }
    options.out.write_text(json.dumps(document, indent=1) + "\n", "utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--calib-tokens", type=int, default=16_384)
    parser.add_argument("--val", type=Path, required=True)
    parser.add_argument("--val-tokens", type=int, default=32_768)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--stats", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=["sequential", "low rank", "permutations"])
    parser.add_argument("-o", "--out", type=Path, required=True)
    return parser.parse_args()


class Bench:
    """The model, its statistics, and what all levers share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.checkpoint: Checkpoint = read_model(options.model)
        self.model = build_model(self.checkpoint, device="cpu")
        digest = fingerprint(self.checkpoint.tensors)
        self.statistics = load_statistics(options.stats, fingerprint=digest, device="cpu")

    def quantizer(
        self, recipe: str, tensors: dict[str, Tensor], statistics: Statistics
    ) -> Quantizer:
        chosen = read_recipe(recipe)
        rules = tuple(replace(r, trellis=0) if r.scale == "rd" else r for r in chosen.rules)
        kinds, aliases = classify(self.model), self.checkpoint.aliases
        plan = make_plan(tensors, kinds, aliases, replace(chosen, rules=rules))
        return Quantizer(tensors, plan, statistics)

    def contents(self, integers: dict[str, QuantizedTensor]) -> Contents:
        """A file's tensors: these integers, and the rest in float16."""
        rest = [
            to_raw(name, tensor.half())
            for name, tensor in self.checkpoint.tensors.items()
            if name not in integers
        ]
        tensors = (*integers.values(), *rest)
        return Contents(tensors=tensors, aliases=self.checkpoint.aliases, metadata={})

    # -- sequential calibration ----------------------------------------------------------------

    def sequential(self) -> dict[str, Any]:
        """The same c, calibrated once on the float model and block after block, H being of all
        inputs alike in either."""
        alike = replace(self.statistics, weighted={})
        plain = self.quantizer("default", self.checkpoint.tensors, alike)
        begin = plain.quantize(KNOB)
        blocks = sorted({int(n.split(".")[1]) for n in begin if n.startswith("blocks.")})
        rows = {"at once": self._scored(begin)}
        for name, targets in (("inputs", False), ("inputs and targets", True)):
            done = {n: q for n, q in begin.items() if not n.startswith("blocks.")}
            for block in blocks:
                names = [n for n in begin if n.startswith(f"blocks.{block}.")]
                done |= self._block(names, done, begin, targets=targets)
                print(f"sequential, {name}: block {block}", flush=True)
            rows[name] = self._scored(done)
        return rows

    def _block(
        self,
        names: list[str],
        done: dict[str, QuantizedTensor],
        begin: dict[str, QuantizedTensor],
        *,
        targets: bool,
    ) -> dict[str, QuantizedTensor]:
        """Integers of one block, calibrated behind those of `done`."""
        quantized = self._decoded({name: q for name, q in done.items() if name in begin})
        moments = self._moments(names, quantized)
        tensors, hessians = dict(self.checkpoint.tensors), dict(self.statistics.hessians)
        counts, members = dict(self.statistics.counts), dict(self.statistics.members)
        for name, (H, cross, count) in moments.items():
            hessians[name], counts[name], members[name] = H, count, name
            if targets:
                W = tensors[name].float()
                damped = H + DAMPING * H.diagonal().mean() * torch.eye(len(H))
                # Xq^T (X - Xq) W^T is what the quantized inputs leave out of the outputs.
                missing = (cross - H) @ W.T
                tensors[name] = W + torch.linalg.solve(damped, missing).T
        keep = {members[n] for n in members}
        statistics = replace(
            self.statistics,
            weighted={},
            hessians={n: H for n, H in hessians.items() if n in keep},
            counts={n: c for n, c in counts.items() if n in keep},
            members=members,
        )
        found = self.quantizer("default", tensors, statistics).quantize(KNOB)
        return {name: found[name] for name in names}

    def _moments(
        self, names: list[str], quantized: nn.Module
    ) -> dict[str, tuple[Tensor, Tensor, int]]:
        """Of each weight: Xq^T Xq, Xq^T X and the number of inputs."""
        sums: dict[str, tuple[Tensor, Tensor, int]] = {}
        for batch in self._batches():
            float_rows = captured(self.model, names, batch)
            rows = captured(quantized, names, batch)
            for name in names:
                X, Xq = float_rows[name], rows[name]
                H, cross, count = sums.get(name, (0.0, 0.0, 0))
                sums[name] = (H + Xq.T @ Xq, cross + Xq.T @ X, count + len(X))  # type: ignore[assignment]
        return sums

    def _batches(self) -> Iterator[Tensor]:
        shard = read_shard(self.options.calib)[: self.options.calib_tokens]
        yield from token_batches(np.asarray(shard), 1024)

    def _decoded(self, integers: dict[str, QuantizedTensor]) -> nn.Module:
        tensors = self.checkpoint.tensors | {n: to_torch(q) for n, q in integers.items()}
        return build_model(replace(self.checkpoint, tensors=tensors), device="cpu")

    def _scored(self, integers: dict[str, QuantizedTensor]) -> dict[str, Any]:
        """Estimated bytes of the file, and KL on the validation tokens."""
        _, score = compare(
            self.model,
            self._decoded(integers),
            read_shard(self.options.val),
            Tokenizer.load(self.options.tokenizer),
            max_tokens=self.options.val_tokens,
        )
        size = estimate_bytes(self.contents(integers), resolve(None), "qpk")
        return {"estimated_bytes": size, "kl": score.kl, "tokens": score.tokens}

    # -- low rank ------------------------------------------------------------------------------

    def low_rank(self) -> dict[str, Any]:
        """Of each matrix, the least of `left * 2^(2 bits)` over ranks; below 1 it would pay."""
        found = self.quantizer("default", self.checkpoint.tensors, self.statistics).quantize(KNOB)
        rows = {}
        for name, stored in found.items():
            form = form_of(name, self.statistics)
            if form is None or not form.known:
                continue
            W = self.checkpoint.tensors[name].float().reshape(len(form.weights), -1)
            values, vectors = torch.linalg.eigh(form.H.double())
            root = vectors * values.clamp_min(0).sqrt()
            E = (W - to_torch(stored).float().reshape(W.shape)).double()
            energy = torch.linalg.svdvals(form.weights.double().sqrt()[:, None] * (E @ root))
            energy = energy.square() / energy.square().sum()
            left = {rank: float(1 - energy[:rank].sum()) for rank in RANKS}
            bits = {rank: rank * FACTOR_BITS * sum(W.shape) / W.numel() for rank in RANKS}
            best = min(RANKS, key=lambda rank: left[rank] * 2 ** (2 * bits[rank]))
            ratio = left[best] * 2 ** (2 * bits[best])
            rows[name] = {"rank": best, "left": left[best], "against_finer_steps": ratio}
        ratios = [row["against_finer_steps"] for row in rows.values()]
        pays = [name for name, row in rows.items() if row["against_finer_steps"] < 1]
        return {
            "matrices": len(rows),
            "pays_at_best": pays,
            "least": min(ratios),
            "median": float(np.median(ratios)),
            "best": {name: rows[name] for name in pays},
        }

    # -- permutations --------------------------------------------------------------------------

    def permutations(self) -> dict[str, Any]:
        """Bytes of the record recipe's file by brotli, units as they are and sorted."""
        quantizer = self.quantizer("record", self.checkpoint.tensors, self.statistics)
        integers = quantizer.quantize(RECORD_K)
        sizes = {}
        for name, permuted in (("as it is", integers), ("sorted", sorted_units(integers))):
            encoded = encode(self.contents(permuted), codecs=resolve(("brotli",)))
            sizes[name] = file_bytes(encoded, "qpk")
        return {**sizes, "ratio": sizes["sorted"] / sizes["as it is"]}


def captured(model: nn.Module, names: list[str], batch: Tensor) -> dict[str, Tensor]:
    """The inputs (tokens, cols) of each named weight."""
    rows: dict[str, Tensor] = {}
    parameters = dict(model.named_parameters())
    wanted = {name: parameters[name] for name in names}

    def observe(name: str, x: Tensor, as_rows: Callable[[], Tensor]) -> None:
        rows[name] = as_rows().float()

    with torch.no_grad(), WeightTap(wanted, observe):
        model(batch)
    return rows


def sorted_units(integers: dict[str, QuantizedTensor]) -> dict[str, QuantizedTensor]:
    """Every MLP's hidden units by the step of their first matrix: the function stays the same."""
    out = dict(integers)
    for name in integers:
        found = MLP.fullmatch(name)
        if found is None:
            continue
        first, second = integers[name], integers[f"{found[1]}.proj.weight"]
        order = np.argsort(first.row_codes, kind="stable")
        out[name] = replace(
            first,
            integers=np.ascontiguousarray(first.integers[order]),
            row_codes=first.row_codes[order],
        )
        out[second.name] = replace(second, integers=np.ascontiguousarray(second.integers[:, order]))
    return out


if __name__ == "__main__":
    main()
