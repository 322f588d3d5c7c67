"""Is the solver right, and how fast? GPTQ at the record recipe on a real checkpoint.

    python benchmarks/solver.py MODEL --calib SHARD --val SHARD --tokenizer MODEL -o OUT.json

Quantizes the block matrices to int6 rows at k = 12.85 and leaves everything else float, so that the
result compares with published figures: bits a weight (zero-order entropy plus 16 bits a row of
scale), KL to the float model, and the output error of every matrix beside round-to-nearest. Times
the factorization and the column loop apart; on CUDA also compares the integers with the CPU's.
"""

from __future__ import annotations

import argparse
import json
import statistics as stats
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qpack.checkpoint import build_model, fingerprint, read_model
from qpack.codec.entropy import zero_order_bits
from qpack.device import choose
from qpack.environment import provenance
from qpack.eval.bpb import compare
from qpack.inputs import token_batches
from qpack.quant import engine, grid
from qpack.quant.calibrate import collect
from qpack.quant.engine import Quantizer
from qpack.quant.plan import classify, make_plan
from qpack.quant.statistics import Statistics
from qpack.recipe import parse_recipe
from qpack.tensors import QuantizedTensor
from qpack.tokenizer import Tokenizer
from qpack.tokens import read_shard, sha256_file
from qpack.torch_tensors import to_torch

RECIPE = """
[knob]
name = "k"
[[rule]]
match = "re:blocks\\\\.\\\\d+\\\\.(attn|mlp)\\\\..*\\\\.weight"
bits = 6
scale = "sigma"
k = 12.85
knob = true
[[rule]]
match = "re:.*"
type = "keep"
"""
K = 12.85
REPEATS = 5


def main() -> None:
    options = parse()
    device, _ = choose(options.device)
    checkpoint = read_model(options.model)
    model = build_model(checkpoint, device=device)
    tokens = np.asarray(read_shard(options.calib)[: options.calib_tokens])
    begin = time.perf_counter()
    statistics = collect(
        model,
        token_batches(tokens, 1024),
        fingerprint=fingerprint(checkpoint.tensors),
        device=device,
    )
    synchronize(device)
    calibrate_seconds = time.perf_counter() - begin
    plan = make_plan(checkpoint.tensors, classify(model), {}, parse_recipe(RECIPE, name="solver"))
    begin = time.perf_counter()
    quantizer = Quantizer(checkpoint.tensors, plan, statistics, device=device)
    synchronize(device)
    prepare_seconds = time.perf_counter() - begin
    integers = quantizer.quantize(K)
    weights = sum(tensor.integers.size for tensor in integers.values())
    decoded = replace(
        checkpoint,
        tensors=checkpoint.tensors | {name: to_torch(t) for name, t in integers.items()},
    )
    reference, score = compare(
        model,
        build_model(decoded, device=device),
        read_shard(options.val),
        Tokenizer.load(options.tokenizer),
        max_tokens=options.val_tokens,
        device=device,
    )
    result = {
        "schema": "qpack.bench-solver/1",
        "model": options.model.name,
        "k": K,
        "weights": weights,
        "bits_per_weight": bits_per_weight(integers),
        "kl": score.kl,
        "gap": score.bpb - reference.bpb,
        "bpb_float": reference.bpb,
        "tokens": score.tokens,
        "calibration_tokens": options.calib_tokens,
        "calibrate_seconds": calibrate_seconds,
        "score_tokens_per_second": score.tokens / score.seconds,
        "factor_and_prepare_seconds": prepare_seconds,
        "seconds": pass_seconds(quantizer, device),
        "worst_error_over_rtn": worst_ratio(quantizer, integers),
        "integers_equal_to_cpu": cpu_agreement(checkpoint.tensors, plan, statistics, integers)
        if device.type != "cpu"
        else None,
        "inputs": {path.name: sha256_file(path) for path in (options.calib, options.val)},
        **provenance(device),
    }
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Check and time the solver.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--calib-tokens", type=int, default=65_536)
    parser.add_argument("--val", type=Path, required=True)
    parser.add_argument("--val-tokens", type=int, default=65_536)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("-o", "--out", type=Path)
    return parser.parse_args()


def bits_per_weight(integers: dict[str, QuantizedTensor]) -> float:
    """Zero-order entropy of each tensor plus 16 bits a row, over all weights."""
    bits = sum(zero_order_bits(t.integers) + 16 * len(t.row_codes) for t in integers.values())
    return bits / sum(tensor.integers.size for tensor in integers.values())


def pass_seconds(quantizer: Quantizer, device: torch.device) -> dict[str, float]:
    """Median seconds of one pass at another knob value, and of the column loops in it."""
    solve, loops = engine.quantize_columns, [0.0]

    def measured(*arguments: torch.Tensor) -> torch.Tensor:
        synchronize(device)
        begin = time.perf_counter()
        integers = solve(*arguments)
        synchronize(device)
        loops[-1] += time.perf_counter() - begin
        return integers

    whole = []
    engine.quantize_columns = measured
    try:
        for _ in range(REPEATS + 1):
            loops.append(0.0)
            begin = time.perf_counter()
            quantizer.quantize(K)
            whole.append(time.perf_counter() - begin)
    finally:
        engine.quantize_columns = solve
    return {"pass": stats.median(whole[1:]), "column_loop": stats.median(loops[2:])}


def worst_ratio(quantizer: Quantizer, integers: dict[str, QuantizedTensor]) -> dict[str, Any]:
    """The matrix whose output error comes nearest to round-to-nearest's with the same steps."""
    worst = ("", 0.0)
    for name, tensor in integers.items():
        W = quantizer.weights[name]
        codes = torch.from_numpy(tensor.row_codes).to(W.device)
        steps = grid.step_values(codes, tensor.octave)
        limits = torch.full_like(steps, grid.UNCLIPPED_MAX)
        solved = torch.from_numpy(tensor.integers).to(W.device).float()
        ours, nearest = (
            float(quantizer.errors(name, q * steps[:, None]).double().sum())
            for q in (solved, grid.round_to_nearest(W, steps, limits))
        )
        worst = max(worst, (name, ours / nearest), key=lambda pair: pair[1])
    return {"tensor": worst[0], "ratio": worst[1]}


def cpu_agreement(
    tensors: dict[str, torch.Tensor],
    plan: Any,
    statistics: Statistics,
    integers: dict[str, QuantizedTensor],
) -> float:
    """Share of integers that the CPU gives too, from the same statistics."""
    there = {name: H.cpu() for name, H in statistics.hessians.items()}
    on_cpu = Quantizer(tensors, plan, replace(statistics, hessians=there)).quantize(K)
    same = sum(int((on_cpu[n].integers == t.integers).sum()) for n, t in integers.items())
    return same / sum(tensor.integers.size for tensor in integers.values())


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
