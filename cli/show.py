"""Results as text for a person. Each function takes the document that `--json` would print."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qpack.report.tables import (
    describe_bytes,
    format_bytes,
    format_cell,
    format_float,
    rows_table,
    text_table,
)

Document = Mapping[str, Any]


def show_pack(report: Document) -> str:
    """The report in ten lines; the rest is in the JSON and Markdown."""
    size, budget = report["artifact_bytes"], report["budget_bytes"]
    knob = report["knob"]
    lines = [
        f"{report['path']}  {describe_bytes(size)}",
        f"{100 * size / budget:.2f} % of {format_bytes(budget)}, "
        f"{budget - size:,} B to spare; {knob['name']} = {format_float(knob['value'])}",
        "",
        show_quality(report),
        "",
        f"{report['bits_per_weight']:.3f} bits a weight, everything included",
        f"sha256 {report['sha256']}",
    ]
    return "\n".join(lines)


def show_quality(report: Document) -> str:
    """Bits per byte before and after, on the same tokens."""
    tokens = report["quality"]["tokens"]
    rows = [
        ("float", report["bpb_float"], None, None),
        ("decoded", report["bpb_decoded"], report["gap"], report["kl"]),
    ]
    cells = [
        (
            name,
            f"{bpb:.6f}",
            "" if gap is None else f"{gap:+.6f}",
            "" if kl is None else f"{kl:.6f}",
        )
        for name, bpb, gap, kl in rows
    ]
    table = text_table(["", "bits per byte", "gap", "KL (nats/token)"], cells)
    return f"{table}\non {tokens:,} tokens"


def show_plan(plan: Document) -> str:
    """The plan of `--dry-run`: a row a tensor, then the sum against the budget."""
    predicted, budget = plan["predicted_bytes"], plan["budget_bytes"]
    verdict = "fits" if predicted <= budget else f"{predicted - budget:,} B too many"
    return "\n".join([
        rows_table(plan["tensors"]),
        "",
        f"predicted {describe_bytes(predicted)} of {format_bytes(budget)}: {verdict}; "
        f"{plan['bits_per_weight']:.2f} bits a weight",
        *(f"warning: {text}" for text in plan.get("warnings", ())),
    ])  # fmt: skip


def show_score(score: Document) -> str:
    """Bits per byte first, then what it is made of."""
    kl = score["kl"]
    lines = [
        f"{score['bpb']:.6f} bits per byte",
        f"{score['nats']:.3f} nats over {score['tokens']:,} tokens "
        f"({score['nats'] / score['tokens']:.6f} a token), {score['bytes']:,} bytes of text",
        *([] if kl is None else [f"KL {kl:.6f} nats a token to the float model"]),
        f"windows of {score['window']:,}, stride {score['stride']:,}, {score['seconds']:.1f} s "
        f"on {score['device']['value']}",
    ]
    return "\n".join(lines)


def show_evaluation(document: Document) -> str:
    """The score, then the rows where there are more, what the probes say, and the proofs."""
    rows = document["rows"]
    parts = [show_score(document)]
    if len(rows) > 1 or rows[0]["bpb_error"] is not None:
        parts.append(show_rows(rows))
    checked = [row for row in rows if row["probes"] is not None]
    if checked:
        count = len(checked[0]["probes"])
        names = ", ".join(row["name"] for row in checked)
        where = f"on the first {document['probed_tokens']:,} tokens"
        parts.append(f"{count} probes, {where}, passed by each of: {names}")
    parts += [show_proof(proof) for proof in document.get("proofs", ())]
    return "\n\n".join(parts)


def show_rows(rows: Sequence[Document]) -> str:
    """A line for each predictor: what it scores, beside its control."""
    cells = []
    for row in rows:
        control = row["control"]
        cells.append((
            row["name"],
            f"{row['bpb']:.6f}",
            _or_nothing(row["bpb_error"], ".4f"),
            "" if control is None else f"{control['gain']:+.6f}",
            "" if control is None else _or_nothing(control["gain_error"], ".6f"),
            "" if control is None else control["name"],
            f"{row['tokens_per_second']:,.0f}",
        ))  # fmt: skip
    heads = ["", "bits per byte", "s.e.", "gain", "s.e.", "over", "tokens/s"]
    return text_table(heads, cells)


def show_proof(proof: Document) -> str:
    """What a file showed, in two lines."""
    return (
        f"proved by a file: {proof['predictor']}\n"
        f"{proof['text_bytes']:,} bytes of text came back from another process; "
        f"code {proof['stream_bpb']:.6f} bits per byte, computed {proof['computed_bpb']:.6f}; "
        f"file {proof['file_bytes']:,} B or {proof['file_bpb']:.6f} bits per byte, "
        f"{proof['header_bytes']:,} B of it header and digest"
    )


def show_compressed(made: Document) -> str:
    """A compressed file: its size and what it is made of."""
    share = (
        f", {8 * made['bytes'] / made['text_bytes']:.3f} bits a byte" if made["text_bytes"] else ""
    )
    return (
        f"{made['path']}  {describe_bytes(made['bytes'])} of {made['text_bytes']:,} B{share}\n"
        f"{made['stream_bytes']:,} B for {made['tokens']:,} tokens, "
        f"{made['residual_bytes']:,} B for what the tokenizer loses, "
        f"{made['header_bytes']:,} B of header and digest"
    )


def _or_nothing(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def show_study(document: Document) -> str:
    """What was claimed and why that is no score, what was measured, and the honest figures."""
    measured = document["violation"]
    tables = [rows_table(value) for value in measured.values() if isinstance(value, list)]
    plain = {name: value for name, value in measured.items() if not isinstance(value, list)}
    parts = [
        f"claimed, and no score\n{indent(show_facts(document['claimed']))}\n"
        f"{indent(document['wrong'])}",
        f"measured\n{indent(show_facts(plain))}",
        *(indent(table) for table in tables),
        f"honest, on the same tokens\n{indent(show_facts(document['honest']))}",
        f"{document['tokens']:,} tokens, {document['bytes']:,} bytes of text, "
        f"{document['seconds']:.1f} s on {document['device']['value']}",
    ]
    return "\n\n".join(parts)


def show_inspection(found: Document) -> str:
    """Sizes and digests, then streams, tensors, metadata and files."""
    parts = [show_facts(found)]
    parts += [
        f"{name}\n{indent(rows_table(found[name]))}"
        for name in ("streams", "tensors", "files")
        if found.get(name)
    ]
    if found.get("metadata"):
        lines = "\n".join(f"{key}: {shorten(text)}" for key, text in found["metadata"].items())
        parts.append(f"metadata\n{indent(lines)}")
    return "\n\n".join(parts)


def show_verification(checked: Document) -> str:
    """What was checked, one fact a line, and the verdict in words."""
    return f"{show_facts(checked)}\nEvery digest, bound and value holds."


def show_facts(document: Document) -> str:
    """The document's plain values, one a line, labels in a column; no tables, no metadata."""
    facts = list(facts_of(document))
    width = max((len(label) for label, _ in facts), default=0)
    return "\n".join(f"{label:{width}}  {text}" for label, text in facts)


def facts_of(document: Document, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Label and text of each fact; a mapping such as `decoder` gives its parts one by one."""
    for key, value in document.items():
        label = prefix + key.replace("_", " ")
        if isinstance(value, Mapping):
            if key != "metadata":
                yield from facts_of(value, f"{label} ")
        elif isinstance(value, (list, tuple)):
            if value and all(isinstance(item, str) for item in value):
                yield label, ", ".join(value)
        elif value is not None and key != "schema":
            yield label, show_fact(key, value)


def show_fact(key: str, value: Any) -> str:
    """One value: sizes with units, other integers with commas."""
    if isinstance(value, int) and not isinstance(value, bool) and key.endswith("bytes"):
        return describe_bytes(value)
    return format_cell(value) if isinstance(value, (bool, int, float)) else str(value)


def indent(text: str) -> str:
    """Every line moved right by two."""
    return "\n".join(f"  {line}" for line in text.splitlines())


def shorten(text: str, *, limit: int = 200) -> str:
    """At most `limit` characters, saying how many are missing."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}... ({len(text) - limit:,} characters more, see --json)"
