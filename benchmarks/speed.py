"""How long does each stage of the quantizer take on this machine?

    python benchmarks/speed.py MODEL --calib SHARD --tokenizer MODEL -o OUT.json [--device D]

Calibration (Hessians on `--calib-tokens` tokens, sensitivities on `--sens-tokens` of them), the
first in the process and another, the factors, one pass of the default recipe without a trellis and
with each of `STATES`, coding the integers of the last as a whole file's segments, and decoding
them. A pass is the median of `REPEATS`, after one that compiles. On CUDA a first small product
starts the device beforehand.
"""

from __future__ import annotations

import argparse
import json
import statistics as stats
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from qpack.artifact.encode import encode
from qpack.artifact.reader import read
from qpack.artifact.writer import render
from qpack.checkpoint import build_model, fingerprint, read_model
from qpack.codec.registry import resolve
from qpack.device import choose
from qpack.environment import provenance
from qpack.inputs import token_batches
from qpack.quant.calibrate import Sensing, collect
from qpack.quant.engine import Quantizer
from qpack.quant.plan import classify, make_plan
from qpack.recipe import read_recipe
from qpack.tensors import Contents
from qpack.tokenizer import Tokenizer
from qpack.tokens import read_shard, sha256_file

REPEATS = 3
STATES = (0, 8)
KNOB = 1.0
"""Some 3.3 bits a weight of golf27m."""
Value = TypeVar("Value")


def main() -> None:
    options = options_of()
    device, _ = choose(options.device)
    checkpoint = read_model(options.model)
    model = build_model(checkpoint, device=device)
    Tokenizer.load(options.tokenizer).check_model(model.vocab_size)
    batches = token_batches(np.asarray(read_shard(options.calib)[: options.calib_tokens]), 1024)
    torch.ones(8, 8, device=device) @ torch.ones(8, 8, device=device)
    seconds: dict[str, Any] = {}
    for name in ("calibrate", "calibrate, again"):
        seconds[name], statistics = clocked(
            device,
            lambda: collect(
                model,
                batches,
                fingerprint=fingerprint(checkpoint.tensors),
                sensing=Sensing.of_tokens(batches, options.sens_tokens, seed=0),
                device=device,
            ),
        )
    kinds = classify(model)
    for states in STATES:
        recipe = read_recipe("default")
        rules = tuple(replace(r, trellis=states) if r.scale == "rd" else r for r in recipe.rules)
        plan = make_plan(
            checkpoint.tensors, kinds, checkpoint.aliases, replace(recipe, rules=rules)
        )
        name = f"trellis {states}" if states else "scalar"
        seconds["factors"], quantizer = clocked(
            device,
            lambda plan=plan: Quantizer(checkpoint.tensors, plan, statistics, device=device),
        )
        spent = [clocked(device, lambda q=quantizer: q.quantize(KNOB)) for _ in range(REPEATS + 1)]
        seconds[f"pass, {name}"] = stats.median(each for each, _ in spent[1:])
        contents = Contents(tensors=tuple(spent[-1][1].values()), aliases={}, metadata={})
        seconds[f"encode, {name}"], encoded = clocked(
            device, lambda c=contents: encode(c, codecs=resolve(None, stdlib_only=False))
        )
        data = render(encoded, form="qpk")
        seconds[f"decode, {name}"], _ = clocked(device, lambda d=data: read(d))
    result = {
        "schema": "qpack.bench-speed/1",
        "model": checkpoint.name,
        "settings": {
            "calib_tokens": options.calib_tokens,
            "sens_tokens": options.sens_tokens,
            "knob": KNOB,
            "threads": torch.get_num_threads(),
        },
        "seconds": seconds,
        "inputs": {path.name: sha256_file(path) for path in (options.model, options.calib)},
        **provenance(device),
    }
    print(json.dumps(seconds, indent=1))
    options.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def options_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--calib-tokens", type=int, default=65_536)
    parser.add_argument("--sens-tokens", type=int, default=16_384)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("-o", "--out", type=Path, required=True)
    return parser.parse_args()


def clocked(device: torch.device, work: Callable[[], Value]) -> tuple[float, Value]:
    """Seconds by the clock of `work`, the device's included, and what it gives."""
    synchronize(device)
    begin = time.perf_counter()
    value = work()
    synchronize(device)
    return time.perf_counter() - begin, value


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
