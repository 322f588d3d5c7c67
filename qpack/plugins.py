"""Plugins by entry point: architectures, importers, trainers, presets, predictors.

Nothing is imported until it is asked for by name, and names come from the installed packages alone:
a file can ask for an architecture, but only get one that somebody installed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from qpack.errors import ConfigError, SetupError

ARCHITECTURES = "qpack.architectures"
"""`build(config) -> torch.nn.Module`; must also work under `torch.device("meta")`"""
DATA = "qpack.data"
"""what `qpack data` runs: `tokenize`, `fineweb`, `stats`"""
IMPORTERS = "qpack.importers"
"""`import_state(state, hints) -> (tensors, config)`"""
PREDICTORS = "qpack.predictors"
"""`build(network, tokenizer, settings) -> Predictor`: rows of `qpack eval`"""
PRESETS = "qpack.presets"
"""a package with configuration files: see `qpack.presets`"""
TRAINERS = "qpack.trainers"
"""a training stage: see `qpack.training`"""


def names(group: str) -> tuple[str, ...]:
    """Names that installed packages register in `group`, sorted; imports nothing."""
    return tuple(sorted({point.name for point in entry_points(group=group)}))


def load_plugin(group: str, name: str) -> Any:
    """The object registered as `name` in `group`.

    Raises ConfigError for an unknown name, and SetupError where it cannot be imported or two
    packages claim the name for different objects.
    """
    points = {point.value: point for point in entry_points(group=group) if point.name == name}
    kind = group.removeprefix("qpack.").removesuffix("s")
    if not points:
        known = names(group)
        raise ConfigError(
            f'unknown {kind} "{name}"{did_you_mean(name, known)}',
            hint=f"known: {', '.join(known) or 'none'}; or install the package that provides it",
        )
    if len(points) > 1:
        raise SetupError(
            f'several packages provide the {kind} "{name}"',
            items=sorted(points),
            hint="uninstall all but one",
        )
    return _import(kind, *points.values())


def _import(kind: str, point: EntryPoint) -> Any:
    try:
        return point.load()
    except Exception as error:  # a plugin is foreign code: anything may come out of its import
        raise SetupError(
            f'the {kind} "{point.name}" cannot be imported: {type(error).__name__}: {error}',
            items=[f"entry point {point.value}"],
            hint="repair or uninstall the package that provides it",
        ) from error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` (did you mean "..."?)` with the nearest known name, or nothing if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f' (did you mean "{near[0]}"?)' if near else ""
