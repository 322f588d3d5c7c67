"""The report as Markdown: the JSON's numbers in reading order, nothing computed anew.

What matters comes first: size against budget, bits per byte before and after. `render` takes the
report that `qpack pack --json` prints (`qpack.report/1`). A model that is not a language model has
no scores; then those lines are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from qpack.report.tables import (
    Cell,
    describe_bytes,
    flatten,
    format_bytes,
    format_cell,
    format_float,
    markdown_table,
)

Report = Mapping[str, Any]

TENSOR_COLUMNS = (
    "name", "shape", "kind", "rule", "mean_step", "max_abs", "clipped", "bits_per_weight", "bytes",
    "predicted_nats", "error", "error_rtn", "damping", "damping_retries", "dead_columns",
    "floored_rows", "fallback",
)  # fmt: skip
STREAM_COLUMNS = ("name", "elements", "dtype", "codec", "filter", "raw_bytes", "bytes")


def render(report: Report) -> str:
    """The whole document; ends with a newline."""
    sections = [
        f"# {PurePath(report['path']).name}",
        summary(report),
        quality(report) if "quality" in report else "",
        training(report) if "training" in report else "",
        search(report),
        ledger(report),
        streams(report),
        tensors(report),
        stages(report),
        complaints(report),
        provenance(report),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def summary(report: Report) -> str:
    """The headline table: the numbers that people compare."""
    size, budget = report["artifact_bytes"], report["budget_bytes"]
    rows: list[tuple[str, Cell]] = [
        ("artifact", describe_bytes(size)),
        ("budget", f"{format_bytes(budget)}, {100 * report['budget_use']:.3f} % used"),
        *(scores(report) if report.get("bpb_float") is not None else ()),
        ("bits a weight", f"{report['bits_per_weight']:.4f}"),
        ("SHA-256", f"`{report['sha256']}`"),
    ]
    return markdown_table(["", "value"], rows)


def scores(report: Report) -> list[tuple[str, Cell]]:
    """Bits per byte before and after."""
    return [
        ("bits per byte, float", f"{report['bpb_float']:.6f}"),
        ("bits per byte, decoded", f"{report['bpb_decoded']:.6f}"),
        ("gap", f"{report['gap']:+.6f}"),
        ("KL to the float model", f"{report['kl']:.6f} nats a token"),
    ]


def quality(report: Report) -> str:
    """How the two scores were taken."""
    q = report["quality"]
    if "relative_output_error" in q:
        text = "squared error of the decoded module's outputs, relative to the outputs"
        return f"## Quality\n\n{q['relative_output_error']:.3e}: {text}, {q['batches']} batches."
    rows = [
        (name, f"{part['nats']:,.3f}", f"{part['bpb']:.6f}")
        for name, part in (("float", q["float"]), ("decoded", q["decoded"]))
    ]
    text = (
        f"{q['tokens']:,} tokens, {q['bytes']:,} bytes of text; windows of {q['window']:,}, "
        f"stride {q['stride']:,}; every token scored once. The decoded model is what the "
        "artifact's own decoder wrote in a fresh process."
    )
    return f"## Quality\n\n{text}\n\n{markdown_table(['model', 'nats', 'bits per byte'], rows)}"


def training(report: Report) -> str:
    """What the model was trained with, where `qpack run` trained it."""
    t = report["training"]
    shown = {key: value for key, value in t.items() if key != "details"} | dict(t["details"])
    rows = [(key.replace("_", " "), flatten(value)) for key, value in shown.items()]
    return f"## Training\n\n{markdown_table(['', 'value'], rows)}"


def search(report: Report) -> str:
    """What the knob was set to, why, and every size that was tried."""
    knob = report["knob"]
    text = (
        f"`{knob['name']}` = {knob['value']:.6g}, searched from "
        f"{format_float(knob['low'])} to {format_float(knob['high'])}: {knob['reason']}."
    )
    probes = [{**probe, "value": f"{probe['value']:.6g}"} for probe in report["probes"]]
    return f"## Search\n\n{text}\n\n{table(probes)}{choice(report)}{tuning(report)}"


def choice(report: Report) -> str:
    """Which step rule was taken, and the evidence."""
    found = report.get("choice")
    if found is None:
        return ""
    text = f"Steps {found['chosen']} were taken: {found['reason']}."
    return f"\n\n### Choice of steps\n\n{text}\n\n{table(found['options'])}"


def tuning(report: Report) -> str:
    """What tuning did, and the evidence."""
    found = report.get("tuning")
    if found is None:
        return ""
    verdict = "kept" if found["kept"] else "not kept"
    text = (
        f"{found['steps']} steps of tuning were {verdict}: {found['reason']} "
        f"({found['before']:.6f} before, {found['after']:.6f} in the file)."
    )
    return f"\n\n### Tuning\n\n{text}\n\n{table(found['measured'])}"


def ledger(report: Report) -> str:
    """Where every byte of the file goes; the parts sum to its size."""
    rows = [(row["part"], row["bytes"]) for row in report["ledger"]]
    total = sum(row["bytes"] for row in report["ledger"])
    rows.append(("**total**", total))
    return f"## Bytes\n\n{markdown_table(['part', 'bytes'], rows)}"


def streams(report: Report) -> str:
    """The streams of the file, and what each codec would have made of them."""
    trials = [
        {"stream": stream["name"], **trial, "ratio": trial["bytes"] / max(1, trial["input_bytes"])}
        for stream in report["streams"]
        for trial in stream["trials"]
    ]
    text = f"## Streams\n\n{table(report['streams'], STREAM_COLUMNS)}"
    note = (
        "Tried at the first size that was encoded; later ones keep each stream's winner. A "
        "screened candidate was tried on a sample alone (input bytes) and left out: compare ratios."
    )
    return f"{text}\n\n### Codecs tried\n\n{note}\n\n{table(trials)}" if trials else text


def tensors(report: Report) -> str:
    """One row a tensor."""
    return f"## Tensors\n\n{table(report['tensors'], TENSOR_COLUMNS)}"


def stages(report: Report) -> str:
    """Wall time and peak memory of each stage."""
    rows = [
        (row["name"], f"{row['seconds']:.1f}", format_cell(row["peak_rss_bytes"]))
        for row in report["stages"]
    ]
    return f"## Stages\n\n{markdown_table(['stage', 'seconds', 'peak bytes of memory'], rows)}"


def complaints(report: Report) -> str:
    """Warnings and fallbacks; a report without any says so."""
    notes = [f"note: {line}" for line in report.get("notes", ())]
    lines = [
        *report["warnings"],
        *notes,
        *(f"fallback: {flatten_row(row)}" for row in report["fallbacks"]),
    ]
    return "## Warnings\n\n" + ("\n".join(f"- {line}" for line in lines) or "None.")


def provenance(report: Report) -> str:
    """All that is needed to make the same file again."""
    inputs = [{"input": key, **(row or {})} for key, row in report.get("inputs", {}).items()]
    facts: list[tuple[str, Cell]] = [
        ("qpack", report["qpack_version"]),
        ("format", report["format_version"]),
        ("seed", str(report.get("seed", "-"))),
        ("device", f"{report['device']['value']}: {report['device']['reason']}"),
        *((key, flatten(value)) for key, value in report["hardware"].items()),
        *((key, flatten(value)) for key, value in report["packages"].items()),
    ]
    command = " ".join(report.get("command", ())) or "(called from Python)"
    return "\n\n".join([
        "## Provenance",
        fence(command),
        table(inputs),
        markdown_table(["", "value"], facts),
        "Resolved configuration:",
        fence(json.dumps(report.get("config", {}), indent=2), "json"),
    ])  # fmt: skip


def table(rows: Sequence[Mapping[str, Any]], columns: Iterable[str] | None = None) -> str:
    """Mappings as a table: the given columns, else all keys in order of appearance."""
    if not rows:
        return "None."
    keys = list(columns or dict.fromkeys(key for row in rows for key in row))
    body = [[flatten(row.get(key)) for key in keys] for row in rows]
    return markdown_table([key.replace("_", " ") for key in keys], body)


def flatten_row(row: Any) -> str:
    """A fallback, be it a sentence or a mapping, as one line."""
    if isinstance(row, Mapping):
        return ", ".join(f"{key} {format_cell(flatten(value))}" for key, value in row.items())
    return str(row)


def fence(text: str, language: str = "text") -> str:
    """A code block that its own content cannot close."""
    ticks = "`" * 3
    while ticks in text:
        ticks += "`"
    return f"{ticks}{language}\n{text}\n{ticks}"
