"""HQQ: half-quadratic quantization of groups, by `hqq.core.quantize.Quantizer`.

`BaseQuantizeConfig` gives the package's own defaults for the bits. Packed integers, scales and zero
points are stored, the latter two in float16, as `HQQLinear` keeps them.
"""

from __future__ import annotations

from pathlib import Path

import torch
from hqq.core.quantize import BaseQuantizeConfig, Quantizer
from safetensors.torch import load_file, save_file
from worker import Peer, Weights, main

FILE = "weights.safetensors"
STORED = ("scale", "zero")


class Hqq(Peer):
    """Settings: `nbits`, `group_size`."""

    def encode(self, folder: Path) -> None:
        config = BaseQuantizeConfig(**self.settings)["weight_quant_params"]
        self._metas, tensors = {}, {}
        for name, weight in self.task.weights.items():
            packed, meta = Quantizer.quantize(torch.from_numpy(weight), device="cpu", **config)
            packed, meta = Quantizer.cpu(packed, meta)
            tensors |= {f"{name}.W_q": packed, **{f"{name}.{key}": meta[key] for key in STORED}}
            self._metas[name] = {key: meta[key] for key in meta if key not in STORED}
        save_file(tensors, folder / FILE)

    def decode(self, folder: Path) -> Weights:
        stored = load_file(folder / FILE)
        weights = {}
        for name, known in self._metas.items():
            meta = known | {key: stored[f"{name}.{key}"] for key in STORED}
            weights[name] = Quantizer.dequantize(stored[f"{name}.W_q"], meta).float().numpy()
        return weights


if __name__ == "__main__":
    main(Hqq, ("hqq", "torch", "numpy"))
