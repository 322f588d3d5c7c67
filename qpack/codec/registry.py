"""Which codecs exist: the registered ones, and plugins of entry-point group `qpack.codecs`.

Reading an artifact looks codecs up by id among the built-in ones and those that the caller has
asked for by name in this process. It never imports a plugin because a file names its id.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points

import numpy as np

from qpack.codec.base import ByteCodec, Codec, need
from qpack.codec.brotli import Brotli
from qpack.codec.integers import Rans
from qpack.codec.store import Store
from qpack.codec.xz import RawLzma2, Xz
from qpack.codec.zstd import Zstd
from qpack.errors import ConfigError, SetupError, UnsupportedError

GROUP = "qpack.codecs"
STDLIB = ("store", "lzma", "lzma-raw", "rans")
PRIVATE_IDS = range(0x80, 0x100)

_STORE = Store()
_BUILT_IN: tuple[Codec, ...] = (_STORE, Xz(), RawLzma2(), Brotli(), Zstd(), Rans())
_allowed: dict[int, Codec] = {codec.id: codec for codec in _BUILT_IN}


def codecs(*, plugins: bool = True) -> dict[str, Codec]:
    """All codecs by name; a plugin that cannot be used is a warning."""
    found = {codec.name: codec for codec in _BUILT_IN}
    for entry in _plugins() if plugins else ():
        try:
            found.setdefault(entry.name, _load(entry))
        except SetupError as error:
            warnings.warn(error.message, RuntimeWarning, stacklevel=2)
    return found


def by_id(codec_id: int) -> Codec:
    """The codec that an artifact names; UnsupportedError if it is unknown or not yet allowed."""
    try:
        return _allowed[codec_id]
    except KeyError:
        raise UnsupportedError(
            f"codec id {codec_id} is not known to this version",
            hint="upgrade qpack, or name the codec's plugin explicitly if you trust it",
        ) from None


def resolve(names: Sequence[str] | None, *, stdlib_only: bool = False) -> tuple[Codec, ...]:
    """The codecs to try, ordered by id. None means all built-in ones.

    Naming a plugin here allows it, for reading too, for the rest of the process.
    ConfigError lists every unknown name with what may have been meant; SetupError says which
    package is missing: no codec is dropped silently.
    """
    known: dict[str, Codec | EntryPoint] = {entry.name: entry for entry in _plugins()}
    known |= {codec.name: codec for codec in _BUILT_IN}
    wanted = tuple(c.name for c in _BUILT_IN) if names is None else tuple(dict.fromkeys(names))
    if not wanted:
        raise ConfigError("no codec is named", hint=f"choose from {', '.join(sorted(known))}")
    offenders = [_suggest(name, known) for name in wanted if name not in known]
    if stdlib_only and names is not None:
        offenders += [
            f"{name}: needs a package beyond the standard library"
            for name in wanted
            if name in known and name not in STDLIB
        ]
    if offenders:
        raise ConfigError(
            "codecs that cannot be used",
            items=offenders,
            hint=f"choose from {', '.join(STDLIB if stdlib_only else sorted(known))}",
        )
    if stdlib_only:
        wanted = tuple(name for name in wanted if name in STDLIB)
    chosen = [_load(c) if isinstance(c, EntryPoint) else c for c in (known[n] for n in wanted)]
    for codec in chosen:
        if codec in _BUILT_IN and codec.requires:
            need(codec.requires)
        _allowed[codec.id] = codec
    return tuple(sorted(chosen, key=lambda codec: codec.id))


def byte_codecs(chosen: Sequence[Codec]) -> tuple[ByteCodec, ...]:
    """Those of `chosen` that code bytes; `store` where there are none."""
    return tuple(codec for codec in chosen if isinstance(codec, ByteCodec)) or (_STORE,)


def integer_codec(chosen: Sequence[Codec]) -> Rans | None:
    """The codec of `chosen` that codes integers as matrices, and alone exploits a trellis."""
    return next((codec for codec in chosen if isinstance(codec, Rans)), None)


def round_trip_works(codec: Codec) -> bool:
    """Whether a little data comes back; `SetupError` where a package is missing."""
    sample = b"qpack" * 100
    if isinstance(codec, ByteCodec):
        return codec.decode(codec.encode(sample), decoded_bytes=len(sample)) == sample
    assert isinstance(codec, Rans)
    matrix = np.frombuffer(sample, np.int8).reshape(20, 25)
    (decoded,), _ = codec.decode_matrices(
        codec.encode_matrices([matrix], [0]), [matrix.shape], matrix.dtype
    )
    return bool((decoded == matrix).all())


def check_trellis(chosen: Sequence[Codec], states: int) -> None:
    """Raise `ConfigError` for a trellis of `states` states that none of `chosen` would exploit."""
    if states and integer_codec(chosen) is None:
        raise ConfigError(
            f"a trellis of {states} states needs the codec {Rans.name}, which alone exploits it",
            hint=f"add {Rans.name} to the codecs, or set trellis = 0 in the recipe",
        )


def _plugins() -> tuple[EntryPoint, ...]:
    built_in = {codec.name for codec in _BUILT_IN}
    return tuple(entry for entry in entry_points(group=GROUP) if entry.name not in built_in)


def _load(entry: EntryPoint) -> Codec:
    try:
        loaded = entry.load()
        codec = loaded() if isinstance(loaded, type) else loaded
    except Exception as error:  # a plugin's import may fail in any way
        raise SetupError(f"codec plugin {entry.name} ({entry.value}) is broken: {error}") from error
    if not isinstance(codec, ByteCodec) or codec.id not in PRIVATE_IDS or codec.name != entry.name:
        raise SetupError(
            f"codec plugin {entry.name} ({entry.value}) is not a codec of that name "
            "with an id from 0x80 to 0xFF"
        )
    return codec


def _suggest(name: str, known: dict[str, Codec | EntryPoint]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"{name}: unknown" + (f"; did you mean {close[0]}?" if close else "")
