"""`qpack doctor`: what works on this machine, to paste into a bug report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qpack.errors import SetupError

from .output import Output


def doctor(output: Output) -> None:
    """Show versions, devices, codecs and plugins, and what is missing.

    Exits 0 when qpack can be used, 8 when something that it requires is missing.
    """
    from .environment import examine

    found = examine()
    if found["problems"]:
        # As every failure: nothing on stdout. What was found still helps, so it goes to stderr.
        if not output.settings.json:
            output.say(show_doctor(found))
        raise SetupError(
            "qpack cannot be used here",
            items=found["problems"],
            hint="pip install --upgrade qpack-lm",
        )
    output.result(found, lambda: show_doctor(found))
    output.next("qpack demo")


def show_doctor(found: Mapping[str, Any]) -> str:
    """The findings as text."""
    from qpack.report.tables import rows_table

    from .show import indent

    lines = [
        f"qpack {found['qpack']}, Python {found['python']}, {found['platform']}",
        *(f"\n{name}\n{indent(rows_table(found[name]))}" for name in
          ("packages", "devices", "codecs", "plugins")),
    ]  # fmt: skip
    missing = [row["name"] for row in found["packages"] if not row["ok"] and not row["required"]]
    if missing:
        lines.append(
            f"\nwithout {', '.join(missing)} only inspect, verify and unpack work in full: "
            "pip install 'qpack-lm[pack]'"
        )
    return "\n".join(lines)
