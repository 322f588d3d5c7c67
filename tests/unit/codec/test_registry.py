"""Names, ids, plugins."""

from __future__ import annotations

import warnings
from importlib.metadata import EntryPoint

import pytest

from qpack.codec import registry
from qpack.codec.base import Codec
from qpack.codec.store import Store
from qpack.errors import ConfigError, SetupError, UnsupportedError


class Reversed(Store):
    """A private codec."""

    id = 0x81
    name = "reversed"

    def encode(self, data: bytes) -> bytes:
        return data[::-1]

    def decode(self, data: bytes, *, decoded_bytes: int) -> bytes:
        return super().decode(data, decoded_bytes=decoded_bytes)[::-1]


class TakesABuiltInId(Reversed):
    """Must be refused."""

    id = 3


INSTANCE = Reversed()


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_allowed", dict(registry._allowed))


def install(monkeypatch: pytest.MonkeyPatch, value: str, name: str = "reversed") -> None:
    entry = EntryPoint(name=name, value=value, group=registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: (entry,))


def test_registered_ids() -> None:
    ids = {name: codec.id for name, codec in registry.codecs(plugins=False).items()}
    assert ids == {"store": 0, "lzma": 1, "lzma-raw": 2, "brotli": 3, "zstd": 4, "rans": 5}
    for codec in registry.codecs().values():
        assert isinstance(codec, Codec)
        assert registry.by_id(codec.id) is codec


def test_unknown_id() -> None:
    with pytest.raises(UnsupportedError, match="codec id 77"):
        registry.by_id(77)


def test_resolve_orders_by_id_and_drops_repeats() -> None:
    assert [c.name for c in registry.resolve(["zstd", "store", "zstd"])] == ["store", "zstd"]
    assert [c.id for c in registry.resolve(None)] == [0, 1, 2, 3, 4, 5]


def test_unknown_names_are_all_listed_with_suggestions() -> None:
    with pytest.raises(ConfigError) as caught:
        registry.resolve(["broti", "lzma", "xyzzy"])
    assert caught.value.items == ("broti: unknown; did you mean brotli?", "xyzzy: unknown")


def test_no_name_at_all() -> None:
    with pytest.raises(ConfigError, match="no codec"):
        registry.resolve([])


def test_standard_library_only() -> None:
    assert tuple(c.name for c in registry.resolve(None, stdlib_only=True)) == registry.STDLIB
    with pytest.raises(ConfigError) as caught:
        registry.resolve(["lzma", "brotli"], stdlib_only=True)
    assert len(caught.value.items) == 1
    assert "brotli" in caught.value.items[0]


@pytest.mark.parametrize("target", ["Reversed", "INSTANCE"])
def test_a_plugin_is_read_only_after_it_is_named(
    monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    install(monkeypatch, f"{__name__}:{target}")
    assert "reversed" in registry.codecs()
    with pytest.raises(UnsupportedError):
        registry.by_id(0x81)
    (codec,) = registry.resolve(["reversed"])
    assert registry.by_id(0x81) is codec
    assert codec.decode(codec.encode(b"abc"), decoded_bytes=3) == b"abc"


@pytest.mark.parametrize(
    "value",
    ["no.such.module:Codec", f"{__name__}:TakesABuiltInId", f"{__name__}:no_such", "sys:path"],
)
def test_a_broken_plugin_is_a_warning_in_lists_and_an_error_when_named(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    install(monkeypatch, value)
    with pytest.warns(RuntimeWarning, match="codec plugin reversed"):
        assert "reversed" not in registry.codecs()
    with pytest.raises(SetupError, match="codec plugin reversed"):
        registry.resolve(["reversed"])


def test_a_plugin_cannot_shadow_a_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "no.such.module:Codec", name="brotli")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert registry.codecs()["brotli"].id == 3


def test_codecs_of_bytes_and_of_integers() -> None:
    every = registry.resolve(None)
    assert [c.id for c in registry.byte_codecs(every)] == [0, 1, 2, 3, 4]
    assert registry.integer_codec(every) is registry.by_id(5)
    alone = registry.resolve(["rans"])
    assert [c.name for c in registry.byte_codecs(alone)] == ["store"]
    assert registry.integer_codec(registry.resolve(["brotli", "store"])) is None


def test_a_trellis_needs_its_codec() -> None:
    registry.check_trellis(registry.resolve(["rans"]), 8)
    registry.check_trellis(registry.resolve(["brotli"]), 0)
    with pytest.raises(ConfigError, match="trellis of 8 states needs the codec rans"):
        registry.check_trellis(registry.resolve(["brotli"]), 8)
