"""The plot of a sweep: both formats, the same bytes again, and what cannot be drawn."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from qpack.errors import ConfigError, OutputExistsError, SetupError
from qpack.report.curve import check_plot, draw_curve

POINTS = [(8e6, 0.03, 0.012), (10e6, 0.018, 0.007), (12e6, 0.011, 0.003)]


def document(share: float = 0.5) -> dict[str, Any]:
    return {
        "model": "golf",
        "tokens": 32_768,
        "points": [
            {"recipe": name, "bytes": int(size), "kl": kl * part, "gap": gap * part}
            for name, part in (("default", share), ("record", 1.0))
            for size, kl, gap in POINTS
        ],
    }


def test_svg(tmp_path: Path) -> None:
    first, again = tmp_path / "a.svg", tmp_path / "b.svg"
    for path in (first, again):
        draw_curve(document(), path)
    text = first.read_text()
    assert again.read_text() == text
    assert text.startswith("<?xml") and text.rstrip().endswith("</svg>")
    for label in ("golf: 32,768 tokens", "default", "record", "gap, bits per byte", "KL to the"):
        assert label in text
    assert "<dc:date>" not in text
    draw_curve(document(share=0.4), again, force=True)
    assert again.read_text() != text


def test_png(tmp_path: Path) -> None:
    path = tmp_path / "curve.png"
    draw_curve(document(), path)
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (1500, 630)
    with pytest.raises(OutputExistsError):
        draw_curve(document(), path)


def test_a_gap_below_zero_is_drawn_too(tmp_path: Path) -> None:
    draw_curve(document(share=-0.1), tmp_path / "curve.svg")
    assert (tmp_path / "curve.svg").stat().st_size > 10_000


def test_what_cannot_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"curve\.pdf: a plot is written as"):
        check_plot(Path("curve.pdf"))
    check_plot(Path("curve.PNG"))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SetupError, match="matplotlib") as caught:
        check_plot(Path("curve.svg"))
    assert caught.value.hint == "pip install 'qpack-lm[plot]'"
