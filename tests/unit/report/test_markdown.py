"""The Markdown says what the JSON says, and nothing in a name can break it."""

from __future__ import annotations

import pytest

from qpack.report.markdown import fence, render, table

from .example import report


def test_the_headline_comes_first() -> None:
    lines = render(report()).splitlines()
    assert lines[0] == "# model.pyz"
    headline = "\n".join(lines[:14])
    for text in (
        "11,996,482 B (12.00 MB, 11.44 MiB)",
        "12,000,000 B, 99.971 % used",
        "1.533904",
        "1.537000",
        "+0.003096",
        "0.007100 nats a token",
        "3.5425",
        "ab" * 32,
    ):
        assert text in headline


@pytest.mark.parametrize(
    "text",
    [
        "## Quality", "| float | 83,000.500 | 1.533904 |",
        "32,768 tokens, 78,000 bytes of text", "## Search", "`k` = 12.85",
        "Steps by sensitivity were taken: 0.008000 against 0.011000", "| equal relative |",
        "| **total** | 11,996,482 |", "### Codecs tried", "| tok\\|emb | 1,024 x 512 | int |",
        "| scale | scalar | raw | float16 | - |", "| calibrate | 38.1 | 2,000,000,000 |",
        "- fallback: tensor blocks.9.mlp.fc, reason singular Hessian", "qpack pack m.safetensors",
        "cpu: no accelerator", '"window": 1024', "cd" * 32,
    ],
)  # fmt: skip
def test_every_section(text: str) -> None:
    assert text in render(report())


def test_every_table_row_has_its_headers_cells() -> None:
    width = 0
    for line in render(report()).replace("\\|", "").splitlines():
        cells = line.count("|") - 1 if line.startswith("|") else 0
        assert not (cells and width) or cells == width, line
        width = cells


def test_without_a_choice_nothing_is_said_of_it() -> None:
    assert "### Choice of steps" in render(report())
    assert "### Choice of steps" not in render({**report(), "choice": None})


def test_no_warnings_is_said() -> None:
    clean = {**report(), "fallbacks": []}
    assert "## Warnings\n\nNone." in render(clean)
    assert "- odd" in render({**clean, "warnings": ["odd"]})


def test_a_model_without_scores() -> None:
    """Packed through the Python API: no text, no bits per byte."""
    scored = ("quality", "bpb_float", "bpb_decoded", "gap", "kl", "inputs", "command", "config")
    bare = {key: value for key, value in report().items() if key not in (*scored, "seed")}
    text = render(bare)
    assert "bits per byte" not in text
    assert "(called from Python)" in text


def test_a_fence_cannot_be_closed_from_inside() -> None:
    assert fence("```") == "````text\n```\n````"


def test_tables_of_uneven_rows() -> None:
    assert table([{"a": 1}, {"b": "x"}]).splitlines()[2:] == ["| 1 | - |", "| - | x |"]
    assert table([]) == "None."


def test_training_is_shown_where_it_is_known() -> None:
    training = {
        "trainer": "script",
        "seconds": 1.5,
        "details": {"train_seconds": 1.25, "mfu": None},
    }
    text = render({**report(), "training": training})
    assert "## Training" in text and "## Training" not in render(report())
    assert "| trainer | script |" in text
    assert "| train seconds | 1.25 |" in text
