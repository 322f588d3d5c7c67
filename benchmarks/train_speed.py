"""How fast is a training step, and where does its time go?

    python benchmarks/train_speed.py --train SHARD --tokenizer MODEL -o OUT.json

Trains the architecture that the field's scripts have in common (11 layers of 512, 8 query and 4
key/value heads, MLP 3x, BigramHash, SmearGate, 1,024 pieces, 262,144 tokens a step of sequences of
1,024) with Muon on real tokens: compiles, warms up, times `--steps` steps end to end, then profiles
two more and sorts the kernels' time by what they do.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from qpack.environment import provenance
from qpack.progress import SILENT
from qpack.trainer.config import TrainConfig
from qpack.trainer.finish import mfu_of
from qpack.trainer.loop import warm_up
from qpack.trainer.run import Run, prepare_run

MODEL = {
    "vocab_size": 1024,
    "num_layers": 11,
    "model_dim": 512,
    "num_heads": 8,
    "num_kv_heads": 4,
    "mlp_mult": 3.0,
    "bigram_vocab_size": 4096,
    "bigram_dim": 128,
    "smear_gate": True,
}
KINDS = (
    ("attention", ("flash", "fmha", "sdpa", "attention", "flex", "cudnn")),
    ("AdamW and lists of tensors", ("adam", "multi_tensor", "lerp", "foreach")),
    ("products", ("gemm", "nvjet", "cutlass", "xmma", "sm90_", "cublas", "splitk")),
    ("fused elementwise and norms", ("triton",)),
    ("sums of gradients, tables, reductions", ("elementwise", "reduce", "embedding", "index")),
    ("copies", ("memcpy", "memset", "copy", "cat")),
)
"""Part of a kernel's name -> what it does, the first that matches."""


def main() -> None:
    options = parse()
    config = TrainConfig.from_mapping(
        {
            "model": MODEL,
            "data": {"train": [options.train], "tokenizer": options.tokenizer},
            "loop": {
                "max_steps": 10_000,
                "sequence": 1024,
                "batch_tokens": options.batch_tokens,
                "accumulate": options.accumulate,
                "device": options.device,
            },
        }
    )
    with TemporaryDirectory() as folder:
        run = prepare_run(config, Path(folder), resume=False, force=False, progress=SILENT)
        with run.batches:
            began = time.perf_counter()
            warm_up(run)
            compiling = time.perf_counter() - began
            measured = measure(run, steps=options.steps)
            kernels = profiled(run) if run.device.type == "cuda" else {}
    report = {
        "schema": "qpack.bench.train_speed/1",
        "model": MODEL,
        "batch_tokens": options.batch_tokens,
        "accumulate": options.accumulate,
        "compile_seconds": compiling,
        **measured,
        "profile": kernels,
        **provenance(run.device),
    }
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({k: v for k, v in report.items() if k != "model"}, indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--train", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch-tokens", type=int, default=262_144)
    parser.add_argument("--accumulate", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("-o", "--out", type=Path, required=True)
    return parser.parse_args()


def step(run: Run) -> None:
    """One whole step, as the loop does it."""
    run.passes(run.parts(run.clock.steps))
    run.optimizers.step(lr_scale=1.0, step=run.clock.steps)
    run.averages.update(step=run.clock.steps, progress=0.0, lr_scale=1.0)
    run.clock.tick()


def measure(run: Run, *, steps: int, warm: int = 10) -> dict[str, Any]:
    """Mean and spread of a step, waiting for the device only at the ends."""
    for _ in range(warm):
        step(run)
    wait(run)
    if run.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    lengths = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(steps // 5):
            step(run)
        wait(run)
        lengths.append((time.perf_counter() - began) / (steps // 5))
    mean = sum(lengths) / len(lengths)
    speed = run.config.loop.batch_tokens / mean
    return {
        "steps": steps,
        "step_seconds": mean,
        "step_seconds_min": min(lengths),
        "step_seconds_max": max(lengths),
        "tokens_per_second": speed,
        "mfu": mfu_of(run, speed),
        "flops_per_token": run.model.num_matrix_flops(run.config.loop.sequence),
        "peak_memory_bytes": torch.cuda.max_memory_allocated()
        if run.device.type == "cuda"
        else None,
    }


def profiled(run: Run, *, steps: int = 2) -> dict[str, Any]:
    """Milliseconds a step of the device's time, by kind of kernel, and the largest kernels."""
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        began = time.perf_counter()
        for _ in range(steps):
            step(run)
        wait(run)
        wall = (time.perf_counter() - began) / steps
    by_kind: dict[str, float] = defaultdict(float)
    by_name: dict[str, float] = defaultdict(float)
    for event in found.events():
        if event.device_type == DeviceType.CUDA and not event.name.startswith("Optimizer."):
            took = event.time_range.elapsed_us() / 1e3 / steps
            by_name[event.name] += took
            by_kind[kind_of(event.name)] += took
    largest = sorted(by_name, key=lambda name: -by_name[name])[:25]
    return {
        "wall_ms": wall * 1e3,
        "busy_ms": sum(by_kind.values()),
        "by_kind_ms": dict(sorted(by_kind.items(), key=lambda item: -item[1])),
        "largest_ms": {name[:120]: by_name[name] for name in largest},
    }


def kind_of(name: str) -> str:
    lowered = name.lower()
    if lowered == "_kernel":
        return "loss kernel"
    for kind, parts in KINDS:
        if any(part in lowered for part in parts):
            return kind
    return "other"


def wait(run: Run) -> None:
    if run.device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
