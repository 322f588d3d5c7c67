"""The plot of a sweep: what each recipe loses, over the bytes of its files. PNG or SVG.

matplotlib draws it: an extra (`plot`), because it is the only thing that needs it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qpack.artifact.writer import write_atomic
from qpack.errors import ConfigError, SetupError

FORMATS = ("png", "svg")
PANELS = (("kl", "KL to the float model, nats a token"), ("gap", "gap, bits per byte"))
SIZE_INCHES = (10.0, 4.2)
DOTS_PER_INCH = 150


def check_plot(path: Path) -> None:
    """Raise for a file that `draw_curve` could not write: before the work that it is to show."""
    if path.suffix[1:].lower() not in FORMATS:
        raise ConfigError(f"{path.name}: a plot is written as .png or .svg")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise SetupError(
            "the plot needs the package matplotlib", hint="pip install 'qpack-lm[plot]'"
        ) from error


def draw_curve(document: Mapping[str, Any], path: Path, *, force: bool = False) -> None:
    """Draw a `qpack.sweep/1` document. The same document gives the same file.

    Raises `OutputExistsError` if `path` exists and not `force`.
    """
    check_plot(path)
    import matplotlib
    from matplotlib.figure import Figure

    # Text stays text in an SVG, and its identifiers are not random.
    with matplotlib.rc_context({"svg.hashsalt": "qpack", "svg.fonttype": "none"}):
        figure = Figure(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, layout="constrained")
        figure.suptitle(f"{document['model']}: {document['tokens']:,} tokens")
        for index, (key, label) in enumerate(PANELS, 1):
            axes = figure.add_subplot(1, len(PANELS), index)
            axes.set(xlabel="file, MB (10^6 bytes)", ylabel=label)
            axes.grid(visible=True, which="both", alpha=0.3)
            _draw_recipes(axes, document["points"], key)
            axes.legend()
        data = io.BytesIO()
        form = path.suffix[1:].lower()
        metadata = {"Date": None} if form == "svg" else {"Software": None}
        figure.savefig(data, format=form, metadata=metadata)
    write_atomic(path, data.getvalue(), force=force)


def _draw_recipes(axes: Any, points: list[dict[str, Any]], key: str) -> None:
    """One line a recipe, in the order in which the document names them."""
    for recipe in dict.fromkeys(point["recipe"] for point in points):
        own = sorted((p["bytes"] / 1e6, p[key]) for p in points if p["recipe"] == recipe)
        axes.plot(*zip(*own, strict=True), marker="o", markersize=4, label=recipe)
    if points and all(point[key] > 0 for point in points):
        axes.set_yscale("log")
