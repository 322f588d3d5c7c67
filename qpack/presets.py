"""Presets: configurations that come with installed packages, by name.

The entry-point group `qpack.presets` names packages; every `*.toml` file in one is a preset, called
by the file's stem. The first comment line of a file says what it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

from qpack.errors import ConfigError, SetupError
from qpack.plugins import PRESETS, did_you_mean, load_plugin, names

SUFFIX = ".toml"


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """A configuration file of an installed package."""

    name: str
    package: str
    text: str

    @property
    def summary(self) -> str:
        """Its first comment line; empty where it begins with something else."""
        first = self.text.partition("\n")[0]
        return first.removeprefix("#").strip() if first.startswith("#") else ""


def presets() -> tuple[Preset, ...]:
    """Every preset, by name.

    Raises `SetupError` where a package cannot be imported, or two have a preset of one name.
    """
    found: dict[str, Preset] = {}
    for point in names(PRESETS):
        for preset in _presets_of(load_plugin(PRESETS, point).__name__):
            other = found.setdefault(preset.name, preset)
            if other is not preset:
                raise SetupError(
                    f'several packages have a preset "{preset.name}"',
                    items=[other.package, preset.package],
                    hint="uninstall all but one",
                )
    return tuple(found[name] for name in sorted(found))


def read_preset(name: str) -> Preset:
    """The preset `name`. Raises `ConfigError` for an unknown one, with the likely name meant."""
    known = {preset.name: preset for preset in presets()}
    if name not in known:
        raise ConfigError(
            f'no preset "{name}"{did_you_mean(name, known)}',
            hint=f"known: {', '.join(known) or 'none'}",
        )
    return known[name]


def _presets_of(package: str) -> list[Preset]:
    return [
        Preset(
            name=entry.name.removesuffix(SUFFIX),
            package=package,
            text=entry.read_text("utf-8"),
        )
        for entry in resources.files(package).iterdir()
        if entry.name.endswith(SUFFIX)
    ]
