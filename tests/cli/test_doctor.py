"""doctor finds what is there, and says what is not."""

from __future__ import annotations

import pytest

from qpack import plugins
from qpack.cli import environment
from qpack.codec import registry
from qpack.errors import SetupError

from .conftest import Runner


@pytest.mark.parametrize(
    ("version", "needs", "ok"),
    [
        ("1.2.1", ">=1.2", True),
        ("1.2", ">=1.2", True),
        ("1.10", ">=1.9", True),
        ("1.1.9", ">=1.2", False),
        ("2.13.0+cpu", ">=2.10", True),
        ("odd", ">=1", False),
        ("1.0", "", True),
    ],
)
def test_versions(version: str, needs: str, ok: bool) -> None:
    assert environment.satisfies(version, needs) is ok


def test_packages_come_from_the_metadata() -> None:
    rows = {row["name"]: row for row in environment.examine_packages()}
    assert rows["numpy"]["required"] and not rows["torch"]["required"]
    assert "pytest" not in rows
    assert all(row["ok"] for row in rows.values())


def test_every_codec_works_here() -> None:
    rows = environment.examine_codecs()
    names = ["store", "lzma", "lzma-raw", "brotli", "zstd", "rans"]
    assert [row["name"] for row in rows][:6] == names
    assert all(row["available"] for row in rows)


def test_a_codec_whose_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Missing:
        id, name, requires = 200, "missing", "nothing"

        def encode(self, data: bytes) -> bytes:
            raise SetupError("pip install nothing")

        def decode(self, data: bytes, *, decoded_bytes: int) -> bytes:
            return data

    monkeypatch.setattr("qpack.codec.registry.codecs", lambda: {"missing": Missing()})
    assert environment.examine_codecs() == [
        {"id": 200, "name": "missing", "available": False, "reason": "pip install nothing"}
    ]


def test_a_broken_plugin_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(group: str, name: str) -> None:
        raise SetupError("cannot be imported")

    monkeypatch.setattr("qpack.plugins.load_plugin", broken)
    rows = list(environment.examine_plugins())
    assert {(row["group"], row["name"]) for row in rows} >= {("qpack.architectures", "gpt")}
    assert {row["reason"] for row in rows} == {"cannot be imported"}


def test_every_group_of_plugins_is_examined() -> None:
    declared = {value for value in vars(plugins).values() if str(value).startswith("qpack.")}
    assert set(environment.GROUPS) == declared - {plugins.__name__} | {registry.GROUP}


def test_missing_requirements_exit_8(qpack: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"numpy": None, "brotli": "1.1.0"}
    real = environment.installed_version
    monkeypatch.setattr(
        environment, "installed_version", lambda name: versions.get(name, real(name))
    )
    monkeypatch.setattr(environment, "DEVICES", ())
    monkeypatch.setattr(environment, "GROUPS", ())
    outcome = qpack("doctor")
    assert (outcome.code, outcome.out) == (8, "")
    assert "numpy >=1.26 is required, found none" in outcome.err
    assert "brotli >=1.2 is required, found 1.1.0" in outcome.err
    assert qpack("doctor", "--json").error["error"] == "SetupError"
