"""Tables of the evaluation of a packed model."""

from __future__ import annotations

from collections.abc import Callable

from tabulate_results import result, table


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


TABLES: dict[str, Callable[[], str]] = {
    "evaluation": evaluation,
    "proofs": proofs,
    "studies": studies,
}
