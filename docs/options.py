"""Writes OPTIONS.md: every key of a run's configuration, from the declarations themselves.

python docs/options.py           checks that OPTIONS.md is up to date
python docs/options.py --write   writes it
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from qpack.packing import PackSection
from qpack.sections import Section
from qpack.trainer.config import (
    AverageSection,
    DataSection,
    LoopSection,
    OptimSection,
    PhaseSection,
    QatSection,
    ScheduleSection,
)
from qpack.trainer.model.config import GPTConfig
from qpack.trainer.stages.checkpoint import CheckpointSection
from qpack.trainer.stages.script import ScriptSection

OUT = Path(__file__).with_name("OPTIONS.md")
SECTIONS: tuple[tuple[str, type[Section]], ...] = (
    ("[model]", GPTConfig),
    ("[data]", DataSection),
    ("[optim]", OptimSection),
    ("[schedule]", ScheduleSection),
    ("[average]", AverageSection),
    ("[qat]", QatSection),
    ("[loop]", LoopSection),
    ("[[phase]]", PhaseSection),
    ("[pack]", PackSection),
    ("[checkpoint]", CheckpointSection),
    ("[script]", ScriptSection),
)
HEAD = """# Options of a run

Every key that a configuration file can hold, with its default. `[checkpoint]` and `[script]` are of
the stages `trainer = "checkpoint"` and `trainer = "script"`, `[pack]` is of all, the other tables
of the reference trainer. `qpack train` checks `[pack]` and leaves it to `qpack run`. This page is
written by `python docs/options.py --write` from the declarations. `qpack presets NAME` prints
complete files to start from; `--set section.key=value` changes one key.
"""


def main() -> None:
    """Write the page, or check it."""
    text = render()
    if "--write" in sys.argv:
        OUT.write_text(text, encoding="ascii")
    elif OUT.read_text("ascii") != text:
        sys.exit("docs/OPTIONS.md is out of date: python docs/options.py --write")


def render() -> str:
    """The whole page."""
    return HEAD + "".join(part for name, kind in SECTIONS for part in section(name, kind))


def section(name: str, kind: type[Section]) -> Iterator[str]:
    """One table: a line a key."""
    summary = " ".join((kind.__doc__ or "").split("\n\n")[0].split())
    yield f"\n## `{name}`\n\n{summary}\n\n| key | default | meaning |\n|---|---|---|\n"
    for key, field in kind.model_fields.items():
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        yield f"| `{key}` | {default(field)} | {meaning} |\n"


def default(field: FieldInfo) -> str:
    """The default as TOML would have it; choices after it."""
    if field.is_required():
        shown = "required"
    else:
        shown = value(field.get_default(call_default_factory=True))
    choices = re.findall(r"'([^']+)'", str(field.annotation)) if "Literal" in str(field) else []
    others = [f"`{choice}`" for choice in choices if f'"{choice}"' not in shown]
    return f"{shown}; or {', '.join(others)}" if others else shown


def value(default: Any) -> str:
    """A default as TOML would have it."""
    if default is None:
        return "none"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, str):
        return f'`"{default}"`'
    if isinstance(default, tuple):
        return f"`{[*default]}`".replace("'", '"')
    return f"`{default:_}`" if isinstance(default, int) else f"`{default}`"


if __name__ == "__main__":
    main()
