"""What pays? One preset, and the same with one technique switched off at a time.

    python benchmarks/ablation.py PRESET --seconds 45 --seeds 0 1 --text TEXT... --val TEXT
        --tokenizer MODEL -o OUT.json

Each row is a run of its own process with the same wall clock. The next run loads and compiles while
one trains, and a lock lets one at a time train, so that no run pays for another. A run that is
found finished in the working folder, with the same configuration, is not run again.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from qpack.environment import provenance
from qpack.presets import read_preset
from qpack.progress import Silent, Task
from qpack.trainer.config import TrainConfig
from qpack.trainer.loop import train

SWITCHES: dict[str, dict[str, dict[str, Any]]] = {
    "everything": {},
    "AdamW in place of Muon": {"optim": {"matrix": "adamw", "matrix_lr": 0.003}},
    "Muon without row normalisation": {"optim": {"normalize": "none"}},
    "no XSA": {"model": {"xsa_layers": []}},
    "no depth recurrence": {"phase": {}},
    "relu squared in place of leaky relu squared": {"model": {"mlp_slope": 0.0}},
    "no SmearGate": {"model": {"smear_gate": False, "smear_mask_bos": False}},
    "RoPE on all dimensions, no LN scale": {"model": {"rope_dims": None, "ln_scale": False}},
    "no parallel residuals": {"model": {"parallel": "off", "parallel_from": None}},
    "no U-Net skips": {"model": {"unet_skips": False, "skip_gates": False}},
}
"""Row -> what it changes in the preset. The EMA's row needs no run: both weights are scored."""


def main() -> None:
    options = parse()
    if options.worker:
        work(options)
        return
    jobs = [(name, seed) for seed in options.seeds for name in options.only or SWITCHES]
    with ThreadPoolExecutor(options.ahead) as pool:
        done = list(pool.map(lambda job: launch(options, *job), jobs))
    rows = summarize([run for run in done if run is not None])
    report = {
        "schema": "qpack.bench.ablation/1",
        "preset": options.preset,
        "seconds": options.seconds,
        "rows": rows,
        **provenance(torch.device(options.device)),
    }
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    for row in rows:
        print(row["name"], [f"{bpb:.4f}" for bpb in row["bpb"]], row["steps"])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("preset")
    parser.add_argument("--seconds", type=float, default=45.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", nargs="+", choices=list(SWITCHES))
    parser.add_argument("--train", nargs="+", required=True, help="token shards")
    parser.add_argument("--val", nargs="+", required=True, help="token shards")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--ahead", type=int, default=2, help="runs that are under way at a time")
    parser.add_argument("--work-dir", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--worker-seed", type=int, help=argparse.SUPPRESS)
    parser.add_argument("-o", "--out", type=Path, required=True)
    return parser.parse_args()


def launch(options: argparse.Namespace, name: str, seed: int) -> dict[str, Any] | None:
    """One run in a process of its own; None where it failed (its output is shown)."""
    command = [sys.executable, __file__, *sys.argv[1:], "--worker", name]
    done = subprocess.run(
        [*command, "--worker-seed", str(seed)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(f"{name}, seed {seed} failed:\n{done.stderr[-3000:]}", file=sys.stderr)
        return None
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(name, seed, found, file=sys.stderr, flush=True)
    return found


class OneAtATime(Silent):
    """Progress that takes a lock for as long as training itself lasts."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def stage(self, name: str, *, total: float | None = None, unit: str = "") -> Iterator[Task]:
        """As `Silent`, under the lock where the stage is the training."""
        with super().stage(name, total=total, unit=unit) as task:
            if name != "train":
                yield task
                return
            with self.path.open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield task


def work(options: argparse.Namespace) -> None:
    """Train one row and print what came of it as one line of JSON."""
    name, seed = options.worker, options.worker_seed
    folder = options.work_dir / f"{list(SWITCHES).index(name)}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    config = TrainConfig.from_mapping(changed(options, SWITCHES[name], seed))
    progress = OneAtATime(options.work_dir / "lock")
    table = config.model_dump(mode="json")
    done = folder / "row.json"
    if done.exists() and json.loads(done.read_text())["config"] == table:
        print(json.dumps(json.loads(done.read_text())["row"]))
        return
    result = train(config, folder, force=True, progress=progress)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    scores = {row["weights"]: row["val_bpb"] for row in lines if "val_bpb" in row}
    assert result.score is not None
    row = {
        "name": name,
        "seed": seed,
        "bpb": result.score.bpb,
        "scores": scores,
        "steps": result.steps,
        "tokens_per_second": result.tokens_per_second,
    }
    done.write_text(json.dumps({"config": table, "row": row}))
    print(json.dumps(row))


def changed(
    options: argparse.Namespace, switch: dict[str, dict[str, Any]], seed: int
) -> dict[str, Any]:
    """The preset's tables with the switch, this machine's data and the run's length."""
    table = tomllib.loads(read_preset(options.preset).text)
    table.pop("trainer", None)
    made = ("text", "val_text", "train", "val", "tokenizer", "documents_per_tokenizer")
    table["data"] = {key: value for key, value in table["data"].items() if key not in made}
    table["data"] |= {"train": options.train, "val": options.val, "tokenizer": options.tokenizer}
    for section, values in switch.items():
        table[section] = [] if section == "phase" else {**table.get(section, {}), **values}
    table["loop"] |= {"max_seconds": options.seconds, "seed": seed, "device": options.device}
    return table


def summarize(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each switch: every seed's score, their mean, and the change against everything."""
    rows = []
    for name in dict.fromkeys(run["name"] for run in runs):
        mine = [run for run in runs if run["name"] == name]
        rows.append(
            {
                "name": name,
                "seeds": [run["seed"] for run in mine],
                "bpb": [run["bpb"] for run in mine],
                "steps": [run["steps"] for run in mine],
                "tokens_per_second": [run["tokens_per_second"] for run in mine],
            }
        )
    whole = next(row for row in rows if row["name"] == "everything")
    last = [run["scores"]["last"] for run in runs if run["name"] == "everything"]
    rows.append({**whole, "name": "no EMA", "bpb": last})
    for row in rows:
        row["mean"] = mean(row["bpb"])
        row["change"] = row["mean"] - mean(whole["bpb"])
        row["spread"] = max(row["bpb"]) - min(row["bpb"])
    return rows


if __name__ == "__main__":
    main()
