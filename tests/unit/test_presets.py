from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from qpack import plugins
from qpack.errors import ConfigError, SetupError
from qpack.plugins import PRESETS
from qpack.presets import presets, read_preset


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two installed packages of presets, `one_presets` and `two_presets`, and nothing else."""
    for name in ("one_presets", "two_presets"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
        (tmp_path / name / "readme.txt").write_text("no preset")
    points = EntryPoints(
        [EntryPoint(name[:3], name, PRESETS) for name in ("one_presets", "two_presets")]
    )
    monkeypatch.setattr(plugins, "entry_points", lambda *, group: points.select(group=group))
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("one_presets", "two_presets"):
        sys.modules.pop(name, None)


def test_files_of_all_packages_by_name(packages: Path) -> None:
    (packages / "two_presets" / "b.toml").write_text("# What b is.\n#\n# More.\na = 1\n")
    (packages / "one_presets" / "c.toml").write_text("a = 1\n# Not first.\n")
    (packages / "one_presets" / "a-1.toml").write_text("#\n")
    assert [(p.name, p.package, p.summary) for p in presets()] == [
        ("a-1", "one_presets", ""),
        ("b", "two_presets", "What b is."),
        ("c", "one_presets", ""),
    ]
    assert read_preset("b").text.endswith("a = 1\n")


def test_an_unknown_name(packages: Path) -> None:
    (packages / "one_presets" / "tiny.toml").write_text("")
    with pytest.raises(ConfigError, match=r'no preset "tinny" \(did you mean "tiny"\?\)'):
        read_preset("tinny")


def test_no_presets_at_all(packages: Path) -> None:
    assert presets() == ()
    with pytest.raises(ConfigError, match="known: none"):
        read_preset("x")


def test_one_name_in_two_packages(packages: Path) -> None:
    for name in ("one_presets", "two_presets"):
        (packages / name / "tiny.toml").write_text("")
    with pytest.raises(SetupError, match='several packages have a preset "tiny"') as caught:
        presets()
    assert caught.value.items == ("one_presets", "two_presets")


def test_those_of_qpack_say_what_they_are() -> None:
    found = {preset.name: preset.summary for preset in presets()}
    assert {"tiny", "raki-v6", "gptq-int5", "ema-int6", "sp8192-recur3", "h100-10min"} <= set(found)
    assert all(found.values())
