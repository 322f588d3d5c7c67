"""Tables of what quantizers and coders come to."""

from __future__ import annotations

from collections.abc import Callable

from tabulate_results import result, table


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


def gap() -> str:
    """Rounding against the Gaussian bound, a row a trellis: at its best and worst rate, then as
    bytes of a stream, and in columns of 512 rows."""
    by_states: dict[int, list[tuple[float, float, float]]] = {}
    for row in result("gap")["rows"]:
        streamed = row["gap"] + row["stream_bits"] - row["bits"]
        gaps = row["gap"], streamed, row["gap_short"]["512"]
        by_states.setdefault(row["states"], []).append(gaps)
    rows = []
    for states, gaps in by_states.items():
        whole, streamed, short = zip(*gaps, strict=True)
        name = f"{states} states" if states else "none"
        shown = min(whole), max(whole), max(streamed), max(short)
        rows.append([name, *(f"{value:.3f}" for value in shown)])
    head = ["trellis", "least bits over the bound", "most", "most, in a stream"]
    return table([*head, "most, 512 rows"], rows)


def rate_distortion() -> str:
    """Quantizers at the bytes of the record recipe."""
    return _at_bytes("golf27m")


def rate_distortion_own() -> str:
    """The same of a model that this project trained."""
    return _at_bytes("own36m")


def _at_bytes(model: str) -> str:
    rows = [
        [
            name,
            f"{row['bytes']:,}",
            f"{row['bits_per_weight']:.3f}",
            f"{row['kl']:.5f}",
            f"{row['kl_ratio']:.3f}",
            f"{row['gap']:+.5f}",
        ]
        for name, row in result(f"rate_distortion_{model}")["rows"].items()
        if "recipe's KL" not in name and name not in LEVERS
    ]
    head = [model, "bytes of the file", "bits a weight", "KL", "of the recipe's", "BPB gap"]
    return table(head, rows)


LEVERS = {
    "rd scalar, no tensor term": "tensor term",
    "rd scalar, no row term": "row term",
    "rd scalar, no column term": "column term",
    "rd scalar, equal relative steps": "all three terms, rows without feedback",
    "rd scalar, no row feedback": "row feedback",
}
"""Row without a lever -> what that lever is, in the rule without a trellis."""


def levers() -> str:
    """What each lever takes off the KL of each model, at equal bytes."""
    models = [result(f"rate_distortion_{name}")["rows"] for name in ("golf27m", "own36m")]
    models.append(result("third_party_antiberty")["rows"])
    whole = {"rd scalar, equal relative steps": "rd scalar, no row feedback"}  # has none either
    steps = [(name, row, whole.get(row, "rd scalar")) for row, name in LEVERS.items()]
    steps += [
        ("row feedback, along a trellis", "rd trellis 8, no row feedback", "rd trellis 8"),
        ("trellis of 8 states", "rd scalar", "rd trellis 8"),
        ("32 states for 8", "rd trellis 8", "rd trellis 32"),
        ("tuning, 32 states", "rd trellis 32", "rd trellis 32, tuned"),
        ("all", "record", "rd trellis 32, tuned"),
    ]
    rows = [
        [
            name,
            *(
                f"{rows[after]['kl'] / rows[before]['kl'] - 1:+.1%}"
                if before in rows and after in rows
                else ""
                for rows in models
            ),
        ]
        for name, before, after in steps
    ]
    return table(["KL, with the lever against without", "golf27m", "own36m", "AntiBERTy"], rows)


def equal_quality() -> str:
    """Quantizers at the KL of the record recipe."""
    rows = [
        [
            f"{model}, " + name.removesuffix(" at the recipe's KL").removesuffix(","),
            f"{row['bytes']:,}",
            f"{row['bits_per_weight']:.3f}",
            f"{row['kl_ratio']:.3f}",
            f"{row['bytes_ratio'] - 1:+.1%}",
        ]
        for model in ("golf27m", "own36m")
        for name, row in result(f"rate_distortion_{model}")["rows"].items()
        if name == "record" or "recipe's KL" in name
    ]
    head = ["quantizer", "bytes of the file", "bits a weight", "KL, of the recipe's"]
    return table([*head, "bytes against the recipe's"], rows)


def sweep() -> str:
    """What two recipes lose at the same budgets."""
    points = result("sweep_golf27m")["points"]
    by_budget: dict[int, dict[str, dict[str, float]]] = {}
    for point in points:
        by_budget.setdefault(point["budget_bytes"], {})[point["recipe"]] = point
    rows = [
        [
            f"{budget:,}",
            *(f"{found[recipe]['kl']:.5f}" for recipe in ("record", "default")),
            f"{found['default']['kl'] / found['record']['kl']:.3f}",
            *(f"{found[recipe]['gap']:+.5f}" for recipe in ("record", "default")),
        ]
        for budget, found in sorted(by_budget.items())
    ]
    head = ["budget", "KL, record", "KL, default", "ratio", "BPB gap, record"]
    return table([*head, "BPB gap, default"], rows)


def table_rows_and_gains() -> str:
    """The default recipe beside recipes that leave out or replace one thing of it."""
    names = {
        "default": "the default recipe",
        "equal_table_rows.toml": "rows of the token table by equal relative steps",
        "no_feedback.toml": "no feedback between rows",
        "gains.toml": "column gains in place of feedback between rows",
    }
    points = {point["recipe"]: point for point in result("levers_golf27m")["points"]}
    rows = [
        [
            name,
            f"{points[recipe]['bytes']:,}",
            f"{points[recipe]['kl']:.5f}",
            f"{points[recipe]['kl'] / points['default']['kl']:.3f}",
        ]
        for recipe, name in names.items()
    ]
    return table(["golf27m, 12,000,000 B", "bytes", "KL", "of the default's"], rows)


def peers() -> str:
    """Other quantizers and coders beside qpack, on one checkpoint."""
    rows = [
        [
            name,
            f"{row['bytes']:,}",
            f"{row['bits_per_weight']:.3f}",
            f"{row['kl']:.5f}",
            f"{row['gap']:+.5f}",
            f"{row['seconds']['encode']['cpu']:.1f} s",
            f"{row['seconds']['decode']['cpu']:.1f} s",
        ]
        for name, row in result("peers_golf27m")["rows"].items()
    ]
    head = ["golf27m", "bytes", "bits a weight", "KL", "BPB gap", "encode", "decode"]
    return table(head, rows)


def peers_gaussian() -> str:
    """Formats of others on normal samples."""
    rows = [
        [name, f"{row['bits']:.3f}", f"{row['gap']:.3f}"]
        for name, row in result("peers_gaussian")["rows"].items()
    ]
    return table(["format", "bits a sample", "bits over the bound"], rows)


def extras() -> str:
    """Levers that were tried and left out."""
    found = result("extras_golf27m")["levers"]
    at_once = found["sequential"]["at once"]
    rows = [
        [
            f"sequential calibration, {name}",
            "KL at the same c",
            f"{found['sequential'][name]['kl'] / at_once['kl']:.3f}x",
            f"{found['sequential'][name]['estimated_bytes'] / at_once['estimated_bytes']:.4f}x",
        ]
        for name in ("inputs", "inputs and targets")
    ]
    ranks, sorting = found["low rank"], found["permutations"]
    for which in ("median", "least"):
        name = f"low-rank correction, {which} of {ranks['matrices']} matrices"
        rows.append([name, "loss against finer steps", f"{ranks[which]:.3f}x", "1x"])
    rows.append(["hidden units sorted, brotli", "bytes", "", f"{sorting['ratio']:.4f}x"])
    return table(["lever", "measured", "loss", "bytes"], rows)


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
        if name not in LEVERS
    ]
    head = ["AntiBERTy", "bytes of the file", "bits a weight", "KL"]
    return table([*head, "of the recipe's"], rows)


def speed() -> str:
    """Seconds of each stage, on both kinds of machine."""
    cpu, gpu = (result(f"speed_golf27m_{name}")["seconds"] for name in ("cpu", "h100"))
    rows = [
        [name, *(f"{seconds[name]:.2f} s" if name in seconds else "" for seconds in (cpu, gpu))]
        for name in cpu
    ]
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
    "gap": gap,
    "rate_distortion": rate_distortion,
    "rate_distortion_own": rate_distortion_own,
    "levers": levers,
    "equal_quality": equal_quality,
    "sweep": sweep,
    "table_rows_and_gains": table_rows_and_gains,
    "peers": peers,
    "peers_gaussian": peers_gaussian,
    "extras": extras,
    "third_party": third_party,
    "speed": speed,
    "coder": coder,
}
