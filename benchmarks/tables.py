"""The tables of the documents, made from `results/*.json`.

    python benchmarks/tables.py           checks that every document is up to date
    python benchmarks/tables.py --write   rewrites the tables between their markers

A document marks a table with `<!-- table: NAME -->` and `<!-- end -->`; nothing in between is
written by hand.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = ("README.md", "docs/TRAINING.md", "docs/QUANTIZATION.md", "docs/EVALUATION.md")
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def result(name: str) -> dict[str, Any]:
    """One committed measurement."""
    loaded: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    return loaded


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; every column but the first is right-aligned."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def headline() -> str:
    """The pack of the 27 M-parameter model, and the demo."""
    rows = []
    for name, file in (("golf27m, 27.1 M parameters", "pack_golf27m_12MB"), ("the demo", "demo")):
        r = result(file)
        rows.append(
            [
                name,
                f"{r['budget_bytes']:,} B",
                f"{r['artifact_bytes']:,} B",
                f"{r['bits_per_weight']:.3f}",
                f"{r['bpb_float']:.4f}",
                f"{r['bpb_decoded']:.4f}",
                f"{r['kl']:.4f}",
                f"{sum(stage['seconds'] for stage in r['stages']):.0f} s",
                f"{max(stage['peak_rss_bytes'] for stage in r['stages']) / 1e9:.1f} GB",
            ]
        )
    head = ["model", "budget", "file, decoder included", "bits a weight", "BPB before"]
    return table([*head, "BPB after", "KL", "pack time, 2 cores", "peak memory"], rows)


def bits() -> str:
    """Bit widths of the matrices."""
    rows = [
        [
            row["name"],
            f"{row['bytes']:,}",
            f"{row['bits_per_weight']:.3f}",
            f"{row['bpb']:.5f}",
            f"{row['gap']:+.5f}",
            f"{row['kl']:.5f}",
        ]
        for row in result("bits_golf27m")["rows"]
    ]
    return table(["matrices", "bytes", "bits a weight", "BPB", "gap", "KL"], rows)


def codecs() -> str:
    """All integer streams together, a row a codec."""
    measured = result("codecs_golf27m")
    rows = [
        [
            row["codec"],
            f"{row['bytes']:,}",
            f"{row['bits_per_weight']:.4f}",
            # Storing is a copy: its speed is the memory's.
            "" if row["codec"] == "store" else f"{row['encode_mb_s']:.2f}",
            "" if row["codec"] == "store" else f"{row['decode_mb_s']:.0f}",
        ]
        for row in measured["rows"]
        if row["stream"] == "all"
    ]
    entropy = measured["entropy_bits_per_weight"]
    rows.append(["zero-order entropy", "", f"{entropy:.4f}", "", ""])
    return table(["codec", "bytes", "bits a weight", "encode MB/s", "decode MB/s"], rows)


def solver() -> str:
    """GPTQ at the record recipe, on both kinds of machine."""
    rows = []
    for name, file in (("2 CPU cores", "solver_golf27m_cpu"), ("one H100", "solver_golf27m_h100")):
        r = result(file)
        rows.append(
            [
                name,
                f"{r['bits_per_weight']:.3f}",
                f"{r['kl']:.5f}",
                f"{r['worst_error_over_rtn']['ratio']:.2f}",
                f"{r['calibrate_seconds']:.1f} s",
                f"{r['factor_and_prepare_seconds']:.2f} s",
                f"{r['seconds']['column_loop']:.2f} s",
            ]
        )
    head = ["machine", "bits a weight", "KL", "worst error over RTN", "calibration"]
    return table([*head, "factors", "column loop"], rows)


def training_speed() -> str:
    """A step of the architecture that the field has in common."""
    r = result("train_speed_h100")
    row = [
        f"{r['tokens_per_second']:,.0f}",
        f"{r['step_seconds'] * 1e3:.1f} ms",
        f"{r['mfu']:.1%}",
        f"{r['compile_seconds']:.0f} s",
        f"{r['peak_memory_bytes'] / 1e9:.0f} GB",
    ]
    head = ["machine", "tokens a second", "step", "MFU", "compiling, once", "memory"]
    return table(head, [["one H100", *row]])


def training_profile() -> str:
    """Where a step's time goes."""
    profile = result("train_speed_h100")["profile"]
    kinds = profile["by_kind_ms"]
    rows = [[kind, f"{ms:.1f} ms", f"{ms / profile['wall_ms']:.1%}"] for kind, ms in kinds.items()]
    idle = profile["wall_ms"] - profile["busy_ms"]
    rows.append(["the device waits", f"{idle:.1f} ms", f"{idle / profile['wall_ms']:.1%}"])
    return table(["kernels", "a step", "share"], rows)


def muon() -> str:
    """How far updates of torch's Muon and of the trainer's are apart."""
    rows = []
    agreement = result("muon_cpu")["agreement"]
    for name, key in (
        ("one step", "one_step"),
        ("five steps", "five_steps"),
        ("five steps, momentum rising", "five_steps_momentum_rising"),
    ):
        worst = {pair: max(by_shape.values()) for pair, by_shape in agreement[key].items()}
        rows.append(
            [
                name,
                f"{worst['torch_to_ours']:.1%}",
                f"{worst['torch_to_exact']:.1%}",
                f"{worst['ours_to_exact']:.1e}",
            ]
        )
    head = ["update, relative distance", "torch to ours", "torch to float64", "ours to float64"]
    return table(head, rows)


def training_quality() -> str:
    """What the preset reaches."""
    rows = []
    for seconds in (250, 450):
        record = result(f"train_h100_{seconds}s")
        r, wiki = record["result"], record.get("scores", {}).get("wiki.val")
        rows.append(
            [
                f"{seconds} s of training",
                f"{r['steps']:,}",
                f"{r['tokens'] / 1e6:.0f} M",
                f"{r['tokens_per_second']:,.0f}",
                f"{len(record['model']['layer_order'])}",
                f"{r['score']['bpb']:.4f}",
                f"{wiki['bpb']:.4f}" if wiki else "",
            ]
        )
    head = ["one H100", "steps", "tokens", "tokens a second", "steps of layers"]
    return table([*head, "BPB, FineWeb validation", "BPB, Wikipedia"], rows)


def gap() -> str:
    """Rounding against the Gaussian bound, a row a trellis."""
    by_states: dict[int, list[float]] = {}
    for row in result("gap")["rows"]:
        by_states.setdefault(row["states"], []).append(row["gap"])
    rows = [
        [f"{states} states" if states else "none", f"{min(gaps):.3f}", f"{max(gaps):.3f}"]
        for states, gaps in by_states.items()
    ]
    return table(["trellis", "least bits over the bound", "most"], rows)


def rate_distortion() -> str:
    """Quantizers at the bytes of the record recipe."""
    rows = [
        [
            name,
            f"{row['bytes']:,}",
            f"{row['bits_per_weight']:.3f}",
            f"{row['kl']:.5f}",
            f"{row['kl_ratio']:.3f}",
            f"{row['gap']:+.5f}",
        ]
        for name, row in result("rate_distortion_golf27m")["rows"].items()
        if "recipe's KL" not in name
    ]
    head = ["golf27m", "bytes of the file", "bits a weight", "KL", "of the recipe's", "BPB gap"]
    return table(head, rows)


def third_party() -> str:
    """AntiBERTy at the bytes of the record recipe."""
    rows = [
        [
            name,
            f"{r['bytes']:,}",
            f"{r['bits_per_weight']:.3f}",
            f"{r['kl']:.5f}",
            f"{r['kl_ratio']:.3f}",
        ]
        for name, r in result("third_party_antiberty")["rows"].items()
    ]
    head = ["AntiBERTy", "bytes of the file", "bits a weight", "KL"]
    return table([*head, "of the recipe's"], rows)


def evaluation() -> str:
    """Every row of the evaluation of the packed 27 M-parameter model, the best first."""
    rows, measured = [], result("evaluation_golf27m")["rows"]
    for spec, r in sorted(measured.items(), key=lambda item: float(item[1]["bpb"])):
        control = r["control"]
        quick = ", bfloat16" if r["precision"] == "bfloat16" else ""
        rows.append(
            [
                ("float, " if spec == "float" else "") + r["name"] + quick,
                f"{r['bpb']:.4f}",
                f"{r['bpb_error']:.3f}",
                "" if control is None else control["name"],
                "" if control is None else f"{control['gain']:+.4f}",
                "" if control is None else f"{control['gain_error']:.4f}",
                f"{r['tokens_per_second']:,.0f}",
                f"{r['tokens'] / mixing:,.0f}" if (mixing := r.get("mixing_seconds")) else "",
                "one H100" if "accelerator" in r["hardware"] else "2 CPU cores",
            ]
        )
    head = ["row", "BPB", "s.e.", "control", "gain", "its s.e."]
    return table([*head, "tokens a second", "mixing alone", "machine"], rows)


def proofs() -> str:
    """Files that were written and decoded."""
    rows = [
        [
            r["predictor"],
            f"{r['text_bytes']:,}",
            f"{r['file_bytes']:,}",
            f"{r['header_bytes']:,}",
            f"{r['stream_bpb']:.4f}",
            f"{r['computed_bpb']:.4f}",
            f"{r['excess_bits']:.0f}",
            f"{r['allowed_bits']:.0f}",
        ]
        for r in result("evaluation_golf27m")["proofs"].values()
    ]
    head = ["predictor", "bytes of text", "of the file", "of its header", "code, bits a byte"]
    return table([*head, "computed BPB", "bits more", "allowed"], rows)


def studies() -> str:
    """Claims that are no scores, and what is wrong with them."""
    hashed, spread, first = (
        result(f"study_{name}") for name in ("hashed_ngram", "byte_spread", "train_first")
    )
    sums = [row["sum_over_alphabet"] for row in hashed["violation"]["by_order"]]
    mean, most = (spread["violation"][f"{which}_sum_over_tokens"] for which in ("mean", "largest"))
    leak = first["violation"]["leak_nats_per_token"]
    rows = [
        [
            "hashed n-gram cache",
            f"{hashed['claimed']['claimed_bits_per_byte']:.4f}",
            f"{hashed['honest']['bpb_network']:.4f}",
            f"{hashed['honest']['bpb']:.4f} (exact counts)",
            f"sums to {sums[0]:.0f} at order 2, {min(sums[1:]):.0f} to {max(sums):.0f} above",
        ],
        [
            "byte-spread PPM",
            f"{spread['claimed']['claimed_bits_per_byte']:.4f}",
            f"{spread['honest']['bpb_network']:.4f}",
            f"{spread['honest']['bpb_learned_gate']:.4f} (trie)",
            f"sums to {mean:.2f}, at most {most:.1f}",
        ],
        [
            "trained on the text first",
            f"{first['claimed']['claimed_bits_per_byte']:.4f}",
            f"{first['honest']['bpb_network']:.4f}",
            f"{first['honest']['bpb_score_first']:.4f} (score first)",
            f"{leak:.3f} nats a token not there on text that was held out",
        ],
    ]
    head = ["study", "claimed", "network alone", "an honest form", "what is wrong, measured"]
    return table(head, rows)


def speed() -> str:
    """Seconds of each stage, on both kinds of machine."""
    cpu, gpu = (result(f"speed_golf27m_{name}")["seconds"] for name in ("cpu", "h100"))
    rows = [[name, f"{cpu[name]:.2f} s", f"{gpu[name]:.2f} s"] for name in cpu]
    return table(["golf27m", "2 CPU cores", "one H100"], rows)


def coder() -> str:
    """The entropy coder beside others, on the same integers."""
    rows = []
    for kind, file in (("scalar", "scalar"), ("trellis of 8 states", "trellis8")):
        r = result(f"coder_golf27m_{file}")
        for row in r["rows"]:
            rows.append(
                [
                    f"{row['codec']}, {kind}",
                    f"{row['bytes']:,}",
                    f"{row['over_ours']:+.2%}",
                    f"{row['bytes'] / r['ideal_bytes'] - 1:+.3%}",
                    f"{row['encode_symbols_per_second'] / 1e6:.1f}",
                    f"{row['decode_symbols_per_second'] / 1e6:.0f}",
                ]
            )
    head = ["coder, golf27m's integers", "bytes", "over ours", "over the ideal"]
    return table([*head, "encode M/s", "decode M/s"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "headline": headline,
    "bits": bits,
    "codecs": codecs,
    "solver": solver,
    "training_speed": training_speed,
    "training_profile": training_profile,
    "training_quality": training_quality,
    "muon": muon,
    "gap": gap,
    "rate_distortion": rate_distortion,
    "third_party": third_party,
    "evaluation": evaluation,
    "proofs": proofs,
    "studies": studies,
    "speed": speed,
    "coder": coder,
}


def refreshed(text: str) -> str:
    """`text` with every marked table made anew."""
    return MARKED.sub(lambda found: found[1] + TABLES[found[2]]() + found[3], text)


def main() -> int:
    """Check or rewrite every document."""
    parser = argparse.ArgumentParser(description="Tables of the documents.")
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    stale = 0
    for name in DOCUMENTS:
        path = ROOT / name
        text = path.read_text("utf-8")
        if refreshed(text) == text:
            continue
        if write:
            path.write_text(refreshed(text), "utf-8")
        else:
            stale += 1
            print(f"{name}: tables differ from the results", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
