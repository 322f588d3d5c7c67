"""How near to the ideal is the entropy coder, and how fast, beside others on the same integers?

    python benchmarks/coder.py MODEL [--trellis STATES] [--skip NAME...] -o OUT.json

MODEL is a packed file, whose integers are taken as they are, or a checkpoint: then each matrix is
rounded to nearest at `STEP` standard deviations, or along a trellis at half of that. One core.

`ideal` is an adaptive code that is told the classes: the entropy of the symbols in each table, 10
bits for each cell of a histogram that is used, and the entropy of the class codes. `constriction`
gets our tables, so its bytes are those of the coded symbols alone; sorting symbols by table is not
counted in its time. Byte codecs and pcodec get the integers, matrix after matrix, row by row.
Seconds are of the processor, the least of `REPEATS` where a run is short.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qpack.artifact import unrans
from qpack.artifact.reader import read
from qpack.checkpoint import read_model
from qpack.codec import rans
from qpack.codec.entropy import zero_order_bits
from qpack.codec.rans.classes import choose
from qpack.codec.rans.model import Coding, code_counts, histograms, segment_bytes
from qpack.codec.rans.tables import SCALE
from qpack.codec.registry import resolve
from qpack.environment import provenance
from qpack.errors import ArtifactError
from qpack.quant.columns import SHRINK
from qpack.quant.tcq import round_column
from qpack.tensors import QuantizedTensor
from qpack.tokens import sha256_file

STEP = 0.41
CELL_BITS = 10
REPEATS, LONG_SECONDS = 5, 5.0
BYTE_CODECS = ("brotli", "zstd", "lzma")
Matrices = list[NDArray[Any]]


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    matrices, trellis, origin = integers(options.model, options.trellis)
    symbols = sum(matrix.size for matrix in matrices)
    plan = choose(matrices, trellis)
    rows = ours(matrices, trellis)
    if "constriction" not in options.skip:
        rows.append(with_constriction(plan))
    flat = np.concatenate([matrix.reshape(-1) for matrix in matrices])
    rows += [with_bytes(name, flat) for name in BYTE_CODECS if name not in options.skip]
    if "pcodec" not in options.skip:
        rows += with_pcodec(flat)
    ideal = ideal_bytes(plan)
    result = {
        "schema": "qpack.bench-coder/1",
        "model": options.model.name,
        "model_sha256": sha256_file(options.model),
        "integers": origin,
        "symbols": symbols,
        "trellis": sorted(set(trellis)),
        "classes": plan.classes,
        "ideal_bytes": ideal,
        "ours_over_ideal": rows[0]["bytes"] / ideal - 1,
        "estimated_bytes": segment_bytes(plan),
        "estimate_seconds": seconds(lambda: rans.estimate_bytes(matrices, trellis))[1],
        "zero_order_bytes": sum(zero_order_bits(matrix) for matrix in matrices) / 8,
        "rows": [
            row
            | {
                "bits_per_symbol": 8 * row["bytes"] / symbols,
                "over_ours": row["bytes"] / rows[0]["bytes"] - 1,
                "encode_symbols_per_second": symbols / row["encode_seconds"],
                "decode_symbols_per_second": symbols / row["decode_seconds"],
            }
            for row in rows
        ],
        **provenance(torch.device("cpu")),
    }
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare entropy coders on a model's integers.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--trellis", type=int, default=0, help="of a checkpoint: states")
    parser.add_argument(
        "--skip", nargs="*", default=[], help="brotli zstd lzma constriction pcodec"
    )
    parser.add_argument("-o", "--out", type=Path)
    return parser.parse_args()


def integers(path: Path, states: int) -> tuple[Matrices, list[int], str]:
    """Integer matrices of an artifact or a checkpoint, all of one dtype, and their trellises."""
    try:
        held = [t for t in read(path).tensors if isinstance(t, QuantizedTensor)]
        return narrow([t.integers for t in held]), [t.trellis for t in held], "of the artifact"
    except ArtifactError:
        tensors = read_model(path).tensors
    weights = [tensors[name].float() for name in sorted(tensors) if tensors[name].dim() == 2]
    rounded = narrow([round_matrix(W, states) for W in weights])
    how = f"trellis of {states} states" if states else "rounded to nearest"
    return rounded, [states] * len(rounded), f"{how}, {STEP} standard deviations a step"


def round_matrix(W: torch.Tensor, states: int) -> NDArray[Any]:
    u = W / (STEP * W.std())
    if states == 0:
        return u.round().numpy()
    u = (2 * u).T.contiguous()
    shrink = torch.full_like(u, SHRINK[states] / float(u.square().mean()))
    return round_column(u, shrink, (0,), states).T.numpy()


def narrow(matrices: Sequence[NDArray[Any]]) -> Matrices:
    """int8 if every integer fits, else int16."""
    largest = max(int(np.abs(m.astype(np.int32)).max(initial=0)) for m in matrices)
    return [np.ascontiguousarray(m, np.int8 if largest < 128 else np.int16) for m in matrices]


def ideal_bytes(plan: Coding) -> float:
    bits = 0.0
    for _, counts in histograms(plan.counts, plan.lowest):
        bits += entropy_bits(counts) + CELL_BITS * int((counts > 0).sum())
    bits += sum(entropy_bits(code_counts(codes)) for codes in (plan.rows, plan.cols))
    return bits / 8


def entropy_bits(counts: NDArray[np.int64]) -> float:
    used = counts[counts > 0]
    return float((used * np.log2(used.sum() / used)).sum())


def seconds(work: Callable[[], Any]) -> tuple[Any, float]:
    """What `work` gives, and the least processor seconds of some runs, of one if it is long."""
    least = float("inf")
    for _ in range(REPEATS):
        begin = time.process_time()
        found = work()
        least = min(least, time.process_time() - begin)
        if least > LONG_SECONDS:
            break
    return found, least


def measured(
    name: str, encode: Callable[[], Any], decode: Callable[[Any], Any], size: Callable[[Any], int]
) -> tuple[dict[str, Any], Any]:
    """A row of the result, and what was decoded."""
    data, encode_seconds = seconds(encode)
    decoded, decode_seconds = seconds(lambda: decode(data))
    times = {"encode_seconds": encode_seconds, "decode_seconds": decode_seconds}
    return {"codec": name, "bytes": size(data), **times}, decoded


def ours(matrices: Matrices, trellis: list[int]) -> list[dict[str, Any]]:
    """The library's coder; and the decoder that files carry, on the same stream."""
    shapes = [matrix.shape for matrix in matrices]
    row, (decoded, _) = measured(
        "rans",
        lambda: rans.encode(matrices, trellis),
        lambda data: rans.decode(data, shapes, matrices[0].dtype),
        len,
    )
    assert all(np.array_equal(a, b) for a, b in zip(decoded, matrices, strict=True))
    data, whole = rans.encode(matrices, trellis), b"".join(m.tobytes() for m in matrices)
    carried, decode_seconds = seconds(lambda: unrans.rans(data, shapes, len(whole)))
    assert carried == whole
    embedded = {**row, "codec": "rans, the decoder in the file", "decode_seconds": decode_seconds}
    return [row, embedded]


def with_bytes(name: str, flat: NDArray[Any]) -> dict[str, Any]:
    (codec,) = resolve([name], stdlib_only=False)
    data = flat.tobytes()
    row, decoded = measured(
        name,
        lambda: codec.encode(data),
        lambda coded: codec.decode(coded, decoded_bytes=len(data)),
        len,
    )
    assert decoded == data
    return row


def with_pcodec(flat: NDArray[Any]) -> list[dict[str, Any]]:
    """No row where the package is not installed."""
    try:
        from pcodec import ChunkConfig, standalone
    except ImportError:
        return []
    wide, config = flat.astype(np.int16), ChunkConfig(compression_level=12)
    row, decoded = measured(
        "pcodec",
        lambda: standalone.simple_compress(wide, config),
        standalone.simple_decompress,
        len,
    )
    assert np.array_equal(decoded, wide)
    return [row]


def with_constriction(plan: Coding) -> dict[str, Any]:
    """Its ANS coder on our tables: every symbol's place in its table, table by table."""
    import constriction

    AnsCoder = constriction.stream.stack.AnsCoder
    coded = places_by_table(plan)
    models = [
        constriction.stream.model.Categorical(plan.tables[index].frequencies / SCALE, perfect=False)
        for index, _ in coded
    ]

    def encode() -> NDArray[np.uint32]:
        coder = AnsCoder()
        for (_, places), model in zip(reversed(coded), reversed(models), strict=True):
            coder.encode_reverse(places, model)
        return coder.get_compressed()

    def decode(data: NDArray[np.uint32]) -> list[NDArray[np.int32]]:
        coder = AnsCoder(data)
        pairs = zip(coded, models, strict=True)
        return [coder.decode(model, len(places)) for (_, places), model in pairs]

    row, decoded = measured("constriction", encode, decode, lambda data: data.nbytes)
    assert all(np.array_equal(a, places) for a, (_, places) in zip(decoded, coded, strict=True))
    return row


def places_by_table(plan: Coding) -> list[tuple[int, NDArray[np.int32]]]:
    """(table, places of the symbols that are coded with it) for the tables that are used."""
    found: dict[int, list[NDArray[np.int32]]] = {}
    members = zip(plan.matrices, plan.trellis, plan.rows, plan.cols, strict=True)
    for matrix, states, rows, cols in members:
        m = matrix.reshape(-1).astype(np.int64)
        index = 3 * np.add.outer(rows, cols).reshape(-1) + (1 + (m & 1) if states else 0)
        order = np.argsort(index, kind="stable")
        cuts = np.flatnonzero(np.diff(index[order])) + 1
        for part in np.split(order, cuts):
            table = int(index[part[0]])
            places = plan.tables[table].places(m[part] >> bool(states))
            found.setdefault(table, []).append(places.astype(np.int32))
    return [(table, np.concatenate(parts)) for table, parts in sorted(found.items())]


if __name__ == "__main__":
    main()
