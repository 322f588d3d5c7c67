"""GGUF's legacy types by `gguf.quants`, in a real GGUF file.

The K types have no Python quantizer; they need llama.cpp.
"""

from __future__ import annotations

from pathlib import Path

from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quants
from worker import Peer, Weights, main

FILE = "weights.gguf"


class Gguf(Peer):
    """Settings: `type`, such as Q4_0."""

    def encode(self, folder: Path) -> None:
        kind = GGMLQuantizationType[self.settings["type"]]
        writer = GGUFWriter(folder / FILE, "gpt")
        for name, weight in self.task.weights.items():
            writer.add_tensor(name, quants.quantize(weight, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    def decode(self, folder: Path) -> Weights:
        reader = GGUFReader(folder / FILE)
        return {t.name: quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}


if __name__ == "__main__":
    main(Gguf, ("gguf", "numpy"))
