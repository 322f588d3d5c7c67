"""The record recipe with `lrzip -z -L 9` on the integers of each role, as pull request 1855 does.

The file is qpack's, where brotli codes all but the integers. Their streams, each column by column,
are cut out of it and compressed by lrzip; decoding puts them back. Debian's package is `lrzip`.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from with_qpack import FILE, Qpack
from worker import Weights, main

from qpack.artifact.contents import integers_by_role
from qpack.artifact.encode import Encoded, encode
from qpack.artifact.layout import INTEGERS
from qpack.artifact.writer import render
from qpack.codec.filters import TRANSPOSE
from qpack.codec.registry import resolve
from qpack.codec.store import Store

REST, CUTS = "rest.bin", "cuts.json"


class Lrzip(Qpack):
    """Settings: `recipe`, `value`."""

    def encode(self, folder: Path) -> None:
        contents = self.contents(self.value)
        plain = {g.stream.key: (Store.id, TRANSPOSE) for g in integers_by_role(contents)}
        encoded = encode(contents, codecs=resolve(("brotli", "store")), choices=plain)
        rest = render(encoded, form=self.inputs.form)
        cuts = integer_segments(encoded, rest.index(encoded.header))
        for index, (begin, end) in enumerate(cuts):
            lrzip("-z", "-L", "9", data=rest[begin:end], out=folder / f"{index}.lrz")
        for begin, end in reversed(cuts):
            rest = rest[:begin] + rest[end:]
        (folder / REST).write_bytes(rest)
        (folder / CUTS).write_text(json.dumps([begin for begin, _ in cuts]))

    def decode(self, folder: Path) -> Weights:
        data = (folder / REST).read_bytes()
        for index, begin in enumerate(json.loads((folder / CUTS).read_text())):
            out = folder / f"{index}.bin"
            lrzip("-d", data=(folder / f"{index}.lrz").read_bytes(), out=out)
            data = data[:begin] + out.read_bytes() + data[begin:]
        (folder / FILE).write_bytes(data)
        return super().decode(folder)


def integer_segments(encoded: Encoded, begin: int) -> list[tuple[int, int]]:
    """(begin, end) of each stream of integers, in a file whose header stands at `begin`."""
    found = []
    offset = begin + len(encoded.header)
    for stream in encoded.layout.streams:
        if stream.kind == INTEGERS:
            found.append((offset, offset + stream.stored_bytes))
        offset += stream.stored_bytes
    return found


def lrzip(*options: str, data: bytes, out: Path) -> None:
    """Run the program on `data`; it works on files alone."""
    source = out.with_suffix(".in")
    source.write_bytes(data)
    subprocess.run(["lrzip", *options, "-q", "-f", "-o", out, source], check=True)
    source.unlink()


if __name__ == "__main__":
    main(Lrzip, ("qpack-lm", "brotli", "torch", "numpy"))
