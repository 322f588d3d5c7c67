"""How far is each peer's format from the Gaussian rate-distortion bound?

    python benchmarks/peers/gaussian.py -o OUT.json [--environments FOLDER] [--only NAME...]

The gap is `bits - 0.5 log2(1 / relative MSE)` on one matrix of normal samples, with the identity as
its Hessian, everything that the peer stores counted. The matrix has the deviation that weights of
the real model have, so that the rows of `run.py` mean the same here; `benchmarks/gap.py` has
qpack's own.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from launch import PeerError, relative_error, run, write_task
from rows import OWN, chosen

from qpack.environment import provenance

SIDE, DEVIATION, SEED = 1024, 1 / 7, 0
NAME = "normal"
ENVIRONMENTS = Path("runs/peers")


def main() -> None:
    options = parse()
    generator = torch.Generator().manual_seed(SEED)
    weights = {NAME: torch.randn(SIDE, SIDE, generator=generator) * DEVIATION}
    rows: dict[str, Any] = {}
    result = {
        "schema": "qpack.bench-peers-gaussian/1",
        "samples": SIDE * SIDE,
        "rows": rows,
        **provenance(torch.device("cpu")),
    }
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        task = Path(folder, "task.safetensors")
        write_task(task, weights, hessians={}, members={}, tables=(), files={})
        for name, row in chosen(options.only).items():
            if row.peer in OWN or "table_bits" in row.settings:  # there is no table here
                continue
            try:
                decoded, measured = run(
                    row.peer,
                    task,
                    row.settings,
                    environments_folder=options.environments,
                    threads=options.threads,
                )
            except PeerError as failure:
                failed.append(name)
                print(f"{name}: failed\n{failure}")
                continue
            bits = 8 * measured["stored_bytes"] / (SIDE * SIDE)
            error = relative_error(weights, decoded)
            gap = bits - 0.5 * math.log2(1 / error)
            rows[name] = {"bits": bits, "relative_mse": error, "gap": gap, **measured}
            print(f"{name:30} {bits:7.4f} bits  MSE {error:.6f}  gap {gap:.4f}", flush=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS)
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
