"""`qpack presets`: the configurations that come with qpack. Imports no torch."""

from __future__ import annotations

from typing import Annotated

import typer

from .output import Output


def presets(
    output: Output,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Print this preset's file.")
    ] = None,
) -> None:
    """List the presets, or print one to copy and edit.

    qpack run NAME uses one as it is; qpack presets NAME > my.toml begins a configuration of yours.
    """
    from qpack.presets import presets as all_presets
    from qpack.presets import read_preset

    if name is not None:
        preset = read_preset(name)
        document = {"schema": "qpack.preset/1", "name": preset.name, "toml": preset.text}
        output.result(document, lambda: preset.text.rstrip("\n"))
        return
    known = all_presets()
    rows = [{"name": preset.name, "summary": preset.summary} for preset in known]
    width = max((len(preset.name) for preset in known), default=0)
    lines = [f"{preset.name:{width}}  {preset.summary}" for preset in known]
    output.result({"schema": "qpack.presets/1", "presets": rows}, lambda: "\n".join(lines))
    output.next("qpack presets NAME")
