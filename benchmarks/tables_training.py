"""Tables of the trainer."""

from __future__ import annotations

from collections.abc import Callable

from tabulate_results import result, table


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
    for machine, run in (
        ("one H100, 250 s", "h100_250s"),
        ("one H100, 450 s", "h100_450s"),
        ("two H200, 150 s", "2h200_150s"),
    ):
        record = result(f"train_{run}")
        r, wiki = record["result"], record.get("scores", {}).get("wiki.val")
        rows.append(
            [
                machine,
                f"{r['steps']:,}",
                f"{r['tokens'] / 1e6:.0f} M",
                f"{r['tokens_per_second']:,.0f}",
                f"{len(record['model']['layer_order'])}",
                f"{r['score']['bpb']:.4f}",
                f"{wiki['bpb']:.4f}" if wiki else "",
            ]
        )
    head = ["time of training", "steps", "tokens", "tokens a second", "steps of layers"]
    return table([*head, "BPB, FineWeb validation", "BPB, Wikipedia"], rows)


def ablation() -> str:
    """What a technique is worth in a short run: the preset with one switched off at a time."""
    measured = result("ablation_h100_45s")
    rows = [
        [
            row["name"],
            f"{row['mean']:.4f}",
            f"{row['spread']:.4f}",
            "" if row["name"] == "everything" else f"{row['change']:+.4f}",
            f"{min(row['steps'])} to {max(row['steps'])}",
        ]
        for row in measured["rows"]
    ]
    head = ["`h100-10min`", "BPB, mean of two seeds", "spread", "change", "steps"]
    return table(head, rows)


TABLES: dict[str, Callable[[], str]] = {
    "training_speed": training_speed,
    "training_profile": training_profile,
    "muon": muon,
    "training_quality": training_quality,
    "ablation": ablation,
}
