"""What a training run came to, as a result to commit: its record without places.

    python benchmarks/training.py RUN_DIR -o OUT.json [--score NAME=SHARD ...]

Takes `train.json` of a finished run, drops paths, and adds a line of losses every tenth of the run.
`--score` also scores its checkpoint on the first 131,072 targets of other shards.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from qpack.checkpoint import load
from qpack.device import choose
from qpack.eval.bpb import score
from qpack.tokenizer import Tokenizer
from qpack.tokens import read_shard
from qpack.trainer.checks import MODEL, RECORD
from qpack.trainer.resume import PATH_KEYS

TARGETS = 131_072
CURVE = 10


def main() -> None:
    options = parse()
    record = json.loads((options.folder / RECORD).read_text("ascii"))
    for key in PATH_KEYS:
        record["config"]["data"].pop(key, None)
    record["curve"] = curve(options.folder)
    if options.score:
        record["scores"] = scores(options)
    options.out.write_text(json.dumps(record, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--score", nargs="+", metavar="NAME=SHARD", default=[])
    parser.add_argument("--tokenizer", type=Path, help="for --score")
    parser.add_argument("--device", default="auto", help="for --score")
    parser.add_argument("-o", "--out", type=Path, required=True)
    return parser.parse_args()


def curve(folder: Path) -> list[dict[str, Any]]:
    """Losses and speeds, evenly spread over the run."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in lines if "loss" in row]
    picked = {round(i * (len(rows) - 1) / CURVE) for i in range(CURVE + 1)}
    return [rows[i] for i in sorted(picked)]


def scores(options: argparse.Namespace) -> dict[str, Any]:
    """Bits per byte of the checkpoint, in float32, on each `NAME=SHARD`."""
    device, _ = choose(options.device)
    model = load(options.folder / MODEL, device=str(device))
    pieces = Tokenizer.load(options.tokenizer)
    record = json.loads((options.folder / RECORD).read_text("ascii"))
    window = record["config"]["loop"]["sequence"]
    found = {}
    for entry in options.score:
        name, _, shard = entry.partition("=")
        got = score(model, read_shard(Path(shard)), pieces, window=window, max_tokens=TARGETS)
        found[name] = {"bpb": got.bpb, "nats": got.nats, "bytes": got.bytes, "tokens": got.tokens}
    return found


if __name__ == "__main__":
    main()
