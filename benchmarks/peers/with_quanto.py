"""optimum-quanto: `quantize` and `freeze` on linear layers, and their state dict.

Groups of 128 weights for types below 8 bits, scales in float16, the package's default optimizer.
"""

from __future__ import annotations

from pathlib import Path

import torch
from optimum.quanto import freeze, qtypes, quantization_map, quantize, requantize
from safetensors.torch import load_file, save_file
from torch import nn
from worker import Peer, Weights, main

FILE = "weights.safetensors"


class Quanto(Peer):
    """Settings: `weights`, such as qint4."""

    def encode(self, folder: Path) -> None:
        layers = self._layers()
        for layer, weight in zip(layers, self.task.weights.values(), strict=True):
            layer.weight.data.copy_(torch.from_numpy(weight))
        quantize(layers, weights=qtypes[self.settings["weights"]])
        freeze(layers)
        self._map = quantization_map(layers)
        save_file(dict(layers.state_dict()), folder / FILE)

    def decode(self, folder: Path) -> Weights:
        layers = self._layers()
        requantize(layers, load_file(folder / FILE), self._map, device=torch.device("cpu"))
        return {
            name: layer.weight.dequantize().detach().float().numpy()
            for name, layer in zip(self.task.weights, layers, strict=True)
        }

    def _layers(self) -> nn.ModuleList:
        shapes = [weight.shape for weight in self.task.weights.values()]
        return nn.ModuleList(
            nn.Linear(cols, rows, bias=False, dtype=torch.float16) for rows, cols in shapes
        )


if __name__ == "__main__":
    main(Quanto, ("optimum-quanto", "torch", "numpy"))
