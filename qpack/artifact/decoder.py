"""Unpacks a qpack model: python model.pyz, or python decoder.py model.qpk.

With no options it says what the file is; with -o it writes the weights as safetensors. It needs
numpy, and the package of a codec where the model uses one. The model is read as data and never
executed. A second, independent implementation of docs/FORMAT.md: of qpack it needs unrans alone.
Exit codes: 0 done, 2 usage, 3 a path cannot be used, 4 model rejected, 7 memory or disk, 8 package.
"""

# ruff: noqa: PTH103, PTH105, PTH108, PTH118, PTH123
from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import math
import os
import struct
import sys
from typing import Any

from qpack.artifact.unrans import inflate, rans

MIB, HEXADECIMAL, OCTAVES = 1 << 20, "0123456789abcdef", (1, 2, 4, 8, 16, 32, 64)
KEYS = {"aliases", "files", "metadata", "requires", "streams", "tensors"}
CODECS = {0: "store", 1: "lzma", 2: "lzma-raw", 3: "brotli", 4: "zstandard", 5: "rans"}
WIDTHS = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2}
WIDTHS |= {"BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8}
# Filters: 0 none, 1 byte planes, 2 transposed, 3 transposed and planes, 4 differences and planes.
FILTERS = {("int", "I8"): (0, 2), ("int", "I16"): (0, 1, 2, 3), ("files", "U8"): (0,)}
FILTERS |= {("rows", "I16"): (0, 1, 4), ("cols", "I16"): (0, 1, 4)}
FILTERS |= {("raw", dtype): (0, 1) if width > 1 else (0,) for dtype, width in WIDTHS.items()}
# Control characters, separators, marks that reorder text, surrogates.
UNPRINTABLE = ((0, 31), (127, 159), (0x2028, 0x202E), (0x2066, 0x2069), (0xD800, 0xDFFF))


class StopError(Exception):
    """Ends the program: (exit code, one line of explanation)."""


def require(condition: object, message: str) -> None:
    """The model is rejected unless `condition` holds."""
    if not condition:
        raise StopError(4, f"model rejected: {message}")


def digest64(data: bytes) -> bytes:
    """BLAKE2b with a digest of 8 bytes."""
    return hashlib.blake2b(data, digest_size=8).digest()


def parse(data: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """Header and segments, with everything checked but the values in the segments."""
    require(data[:8] == b"\x89QPK\r\n\x1a\n" and len(data) >= 60, "this is not a .qpk file")
    major, minor, stored, decoded, digest = struct.unpack_from("<HHII8s", data, 8)
    require(major == 1, f"format version {major}.{minor}, this decoder reads 1.x")
    require(max(stored, decoded) <= MIB and 60 + stored <= len(data), "its header is too large")
    require(digest64(data[28 : 28 + stored]) == digest, "the header is damaged")
    header = parse_json(data[28 : 28 + stored], decoded, minor)
    check_rows(header)
    check_names(header)
    check_streams(header, len(data))
    segments, position = [], 28 + stored
    for row in header["streams"]:
        segments.append(data[position : position + row[4]])
        position += row[4]
    require(position + 32 == len(data), "its segments do not fill the file")
    for row, segment in zip(header["streams"], segments, strict=True):
        require(digest64(segment).hex() == row[6], f"a segment ({row[0]} {row[1]}) is damaged")
    require(hashlib.sha256(data[:-32]).digest() == data[-32:], "the file is damaged")
    return header, segments


def parse_json(stored: bytes, decoded_bytes: int, minor: int) -> dict[str, Any]:
    """The header object; its text must be the canonical one of that object."""

    def deep(value: Any, levels: int) -> bool:
        items = value.values() if type(value) is dict else value if type(value) is list else None
        return items is not None and (levels == 0 or any(deep(x, levels - 1) for x in items))

    try:
        text = inflate(stored, decoded_bytes)
        header = json.loads(text.decode("ascii"), parse_float=int, parse_constant=int)
        same = json.dumps(header, sort_keys=True, separators=(",", ":")).encode("ascii") == text
    except (ValueError, RecursionError):
        header, same = None, False
    require(same and type(header) is dict and header.keys() >= KEYS, "its header is damaged")
    extra = [header[key] for key in header if key not in KEYS]
    require(not extra or minor, "its header has an unknown key")
    require(not any(deep(value, 7) for value in extra), "its header is nested too deep")
    return dict(header)


def form(row: Any) -> str:
    """First letters of the types in a list, as `sli` for [str, list, int]; ? out of range."""
    items = row if type(row) is list else [None]
    large = [type(item) is int and not 0 <= item < 1 << 63 for item in items]
    return "".join("?" if x else type(y).__name__[0] for x, y in zip(large, items, strict=True))


def check_rows(header: dict[str, Any]) -> None:
    """Types, counts and plain ranges of all that the header holds."""
    for key, most in (("streams", 4096), ("tensors", 65536), ("files", 1024), ("requires", 0)):
        require(type(header[key]) is list and len(header[key]) <= most, f"bad {key}")
    for key, most in (("aliases", 65536 - len(header["tensors"])), ("metadata", 256)):
        require(type(header[key]) is dict and len(header[key]) <= most, f"bad {key}")
        require(set(form([*header[key].values()])) <= {"s"}, f"bad {key}")
    for row in header["streams"]:
        good = form(row) == "ssiiiis" and len(row[6]) == 16 and not row[6].strip(HEXADECIMAL)
        good = good and row[2] in CODECS and row[3] in FILTERS.get((row[0], row[1]), ())
        good = good and (row[2] != 5 or (row[0], row[3]) == ("int", 0))
        require(good, f"stream {row} is not of a form that this decoder knows")
    require(all(form(row) == "ssii" for row in header["files"]), "bad files")
    for row in header["tensors"]:
        good = form(row) in ("sli", "sliiii") and len(row[1]) <= 8 and set(form(row[1])) <= {"i"}
        good = good and max(row[1], default=0) < 1 << 31 and math.prod(row[1]) <= 1 << 40
        if good and len(row) > 3:
            good = row[3] <= max(len(row[1]) - 1, 0) and row[4] in OCTAVES and row[5] in (0, 1)
        require(good, f"tensor {row} is not of a form that this decoder knows")


def check_names(header: dict[str, Any]) -> None:
    """Names are printable, of fair length and unique; aliases lead to tensors."""
    files, aliases = header["files"], header["aliases"]
    names = [row[0] for row in header["tensors"]]
    for name in (*names, *aliases, *header["metadata"]):
        good = not any(low <= ord(c) <= high for c in name for low, high in UNPRINTABLE)
        good = good and 1 <= len(name.encode()) <= 512 and ".." not in name.split("/")
        require(good, f"name {name!a} is not allowed")
    every = {*names, *aliases}
    require(len(every) == len(names) + len(aliases), "a name is used twice")
    require("__metadata__" not in every and "aliases" not in header["metadata"], "reserved name")
    require({*aliases.values()} <= {*names}, "an alias leads nowhere")
    texts = "".join(header["metadata"].values())
    require(not any("\ud800" <= c <= "\udfff" for c in texts), "metadata is not Unicode text")
    for name, role, *_ in files:
        good = name.isascii() and all(c.isalnum() or c in "._-" for c in name)
        good = good and 1 <= len(name) <= 255 and name[0] not in ".-"
        require(good and role in ("code", "tokenizer"), f"file {name!a} is not allowed")
    require(len({row[0].lower() for row in files}) == len(files), "two files have one name")


def check_streams(header: dict[str, Any], file_bytes: int) -> None:
    """Every stream holds exactly its members, and together they are not too large."""
    streams, scaled = header["streams"], [row for row in header["tensors"] if len(row) > 3]
    kinds = [row[0] for row in streams]
    parts = [(row[2], "int" if len(row) > 3 else "raw", row[1]) for row in header["tensors"]]
    parts += [(row[2], "files", [row[3]]) for row in header["files"]]
    for kind, members in (("rows", scaled), ("cols", [row for row in scaled if row[5]])):
        require(kinds.count(kind) == bool(members), "step codes lack a stream of their own")
        for row in members:
            cut = slice(row[3]) if kind == "rows" else slice(row[3], None)
            parts.append((kinds.index(kind), kind, row[1][cut]))
    sizes = [-1] * len(streams)
    for index, kind, shape in parts:
        require(index < len(kinds) and kinds[index] == kind, "a member is in no stream of its kind")
        sizes[index] = max(sizes[index], 0) + math.prod(shape) * WIDTHS[streams[index][1]]
    for row, size in zip(streams, sizes, strict=True):
        require(row[5] == size and (row[4] == 0) == (size == 0), "a stream has another size")
    total = sum(row[5] for row in streams)
    require(total <= min(4 << 30, 1024 * file_bytes), f"{total} decoded bytes are too many")


def decompress(codec: int, data: bytes, size: int, shapes: list[tuple[int, int]]) -> bytes:
    """Decode a segment to exactly `size` bytes, with memory bounded before it is taken."""
    pieces, ended, log = [data], codec == 0, max(size - 1, 0).bit_length()
    try:
        if codec in (1, 2):
            chain: Any = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << min(max(12, log), 30)}]
            lz = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=chain)
            if codec == 1:
                lz = lzma.LZMADecompressor(lzma.FORMAT_XZ, chain[0]["dict_size"] + MIB)
            pieces = [lz.decompress(data, size)]
            pieces += [] if lz.eof else [lz.decompress(b"", 1)]  # the end mark may be unread
            ended = lz.eof and not lz.unused_data
        elif codec == 3:
            import brotli

            stream, pieces = brotli.Decompressor(), []
            while not ended and sum(map(len, pieces)) <= size and (not pieces or pieces[-1]):
                pieces.append(stream.process(b"" if pieces else data, output_buffer_limit=MIB))
                ended = stream.is_finished()
        elif codec == 4:
            import zstandard

            limited = zstandard.ZstdDecompressor(max_window_size=1 << min(max(10, log), 30))
            frame, out = limited.decompressobj(), bytearray()
            for start in range(0, len(data), 64):  # 64 bytes yield 2 MiB at most
                require(not frame.eof and len(out) <= size, "a stream goes on after its end")
                out += frame.decompress(data[start : start + 64])
            pieces, ended = [bytes(out)], frame.eof and not frame.unused_data
        elif codec == 5:
            pieces, ended = [rans(data, shapes, size)], True
    except ImportError:
        raise StopError(8, f"the model needs a package: pip install {CODECS[codec]}") from None
    except Exception as error:  # each package raises its own class
        raise StopError(4, f"model rejected: damaged {CODECS[codec]} stream ({error})") from None
    require(ended and sum(map(len, pieces)) == size, f"damaged {CODECS[codec]} stream")
    return b"".join(pieces)


def root(i: int) -> int:
    """2 ** (23 + i / 64), rounded: the 64th root of an integer, which no library gets wrong."""
    half = math.isqrt
    return (half(half(half(half(half(half(1 << 24 * 64 + i)))))) + 1) >> 1


def matrix(row: list[Any]) -> tuple[int, int]:
    """Rows and columns of a quantized tensor."""
    return math.prod(row[1][: row[3]]), math.prod(row[1][row[3] :])


def decode(data: bytes) -> tuple[list[bytes], dict[str, bytes]]:
    """The safetensors file in pieces, and the embedded files by name."""
    header, segments = parse(data)
    import numpy as np

    arrays: list[Any] = []
    for (kind, dtype, codec, how, _, size, _), part in zip(
        header["streams"], segments, strict=True
    ):
        own = [matrix(row) for row in header["tensors"] if codec == 5 and row[2] == len(arrays)]
        raw, width = decompress(codec, part, size, own), WIDTHS[dtype]
        if how in (1, 3, 4):
            raw = np.frombuffer(raw, np.uint8).reshape(width, -1).T.tobytes()
        array: Any = np.frombuffer(raw, f"<{'u' if kind in ('raw', 'files') else 'i'}{width}")
        if how == 4:
            code = array.view("<u2")
            array = np.cumsum((code >> 1) ^ (code & 1) * 0xFFFF, dtype="<u2").view("<i2")
        arrays.append(array)

    def take(stream: int, count: int) -> Any:
        taken, arrays[stream] = arrays[stream][:count], arrays[stream][count:]
        return taken

    def steps(kind: str, count: int, octave: int) -> Any:
        fine = take(kinds.index(kind), count).astype(np.int32) * (64 // octave)
        require(((fine >= -126 * 64) & (fine < 128 * 64)).all(), "a step code is out of range")
        return np.ldexp(mantissa[fine % 64], fine // 64)

    kinds, tensors = [row[0] for row in header["streams"]], []
    mantissa = np.array([root(i) for i in range(64)], np.float32) * np.float32(2.0**-23)
    for name, shape, stream, *scale in header["tensors"]:
        values, dtype = take(stream, math.prod(shape)), header["streams"][stream][1]
        if scale:
            rows, cols = matrix([name, shape, stream, *scale])
            turned = header["streams"][stream][3] in (2, 3)
            values = values.reshape(cols, rows).T if turned else values.reshape(rows, cols)
            require((values > np.iinfo(values.dtype).min).all(), "an integer is out of range")
            row = steps("rows", rows, scale[1])
            col = steps("cols", cols, scale[1]) if scale[2] else np.ones(1, np.float32)
            with np.errstate(over="ignore"):
                peak = np.float32(abs(values).max(initial=0)) * row.max(initial=0)
                require(np.isfinite(peak * col.max(initial=0)), "a value overflows float32")
            values, dtype = values.astype(np.float32) * row[:, None] * col[None, :], "F32"
            values = values.astype("<f4")
        tensors.append((name, dtype, shape, values.tobytes()))
    files = {name: take(stream, size).tobytes() for name, _, stream, size in header["files"]}
    return safetensors(tensors, header), files


def safetensors(tensors: list[Any], header: dict[str, Any]) -> list[bytes]:
    """A safetensors file in pieces: wide elements first, then by name."""
    tensors.sort(key=lambda tensor: (-WIDTHS[tensor[1]], tensor[0]))
    texts = {f"qpack.{key}": text for key, text in header["metadata"].items()}
    if header["aliases"]:
        texts["qpack.aliases"] = json.dumps(header["aliases"], separators=(",", ":"))
    table: dict[str, Any] = {"__metadata__": texts} if texts else {}
    end = 0
    for name, dtype, shape, data in tensors:
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(table, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little"), text, *(data for *_, data in tensors)]


def describe(data: bytes) -> str:
    """What the model is, for a reader who has only this file."""
    header, _ = parse(data)
    name, files = header["metadata"].get("model_name", ""), [row[0] for row in header["files"]]
    packages = {CODECS[row[2]] for row in header["streams"]} & {"brotli", "zstandard"}
    return f"""qpack model {name!a}, intact
  weights     {sum(math.prod(row[1]) for row in header["tensors"]):,}
  files       {", ".join(files) or "none"}
  model.qpk   {len(data):,} bytes, sha256 {hashlib.sha256(data).hexdigest()}
  to unpack   add -o weights.safetensors (needs {", ".join(["numpy", *sorted(packages)])})"""


def save(path: str, pieces: list[bytes]) -> None:
    """Write a sibling, then rename it, so that no partial file is ever left."""
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if os.path.lexists(temporary):
            os.unlink(temporary)
        full = error.errno in (5, 27, 28, 122)  # EIO, EFBIG, ENOSPC, EDQUOT
        raise StopError(7 if full else 3, f"cannot write {path}: {error.strerror}") from None


def run(arguments: list[str] | None) -> None:
    """Describe or unpack; StopError where that cannot be done."""
    loader: Any = globals().get("__loader__")
    inside = hasattr(loader, "archive")  # run as a .pyz
    parser = argparse.ArgumentParser(description="Unpack a qpack model into safetensors.")
    if not inside:
        parser.add_argument("model", help="a .qpk file")
    parser.add_argument("-o", dest="output", metavar="OUT.safetensors", help="file to write")
    parser.add_argument("--files", metavar="DIR", help="write the embedded files here")
    parser.add_argument("--force", action="store_true", help="overwrite outputs")
    options = parser.parse_args(arguments)
    data = loader.get_data(os.path.join(loader.archive, "model.qpk") if inside else options.model)
    if options.output is None and options.files is None:
        print(describe(data))
        return
    pieces, files = decode(data)
    outputs = {options.output: pieces} if options.output else {}
    if options.files is not None:
        outputs |= {os.path.join(options.files, name): [text] for name, text in files.items()}
    existing = [path for path in outputs if os.path.lexists(path)]
    if existing and not options.force:
        raise StopError(3, f"{', '.join(existing)} exists: --force overwrites")
    os.makedirs(options.files or os.curdir, exist_ok=True)
    for path, content in outputs.items():
        save(path, content)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    code, message = 0, ""
    try:
        run(arguments)
    except StopError as stop:
        code, message = stop.args
    except (ImportError, MemoryError) as error:
        code = 7 if isinstance(error, MemoryError) else 8
        message = "out of memory" if code == 7 else f"{error}: pip install numpy"
    except OSError as error:
        code, message = 3, str(error)
    if code:
        print(f"error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
