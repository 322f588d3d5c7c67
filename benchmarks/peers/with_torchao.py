"""torchao's int4 weights for CPUs, by `quantize_` and its configuration for them.

The stable `Int4WeightOnlyConfig` packs for GPUs alone; this is its prototype for CPUs, with the
same choice of scales (tinygemm). Its packing has no inverse: weights are decoded by a product with
the identity, that is as its kernel sees them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch.nn import functional
from torchao.prototype.quantization.int4 import Int4OpaqueTensor
from torchao.prototype.quantization.int4.inference_workflow import PrototypeInt4WeightOnlyConfig
from torchao.quantization import quantize_
from worker import Peer, Weights, main

FILE = "weights.safetensors"


class Torchao(Peer):
    """Settings: `group_size`."""

    def encode(self, folder: Path) -> None:
        config = PrototypeInt4WeightOnlyConfig(**self.settings, set_inductor_config=False)
        tensors = {}
        for name, weight in self.task.weights.items():
            rows, cols = weight.shape
            linear = torch.nn.Linear(cols, rows, bias=False, dtype=torch.float16)
            linear.weight.data.copy_(torch.from_numpy(weight))
            quantize_(linear, config)
            for key in Int4OpaqueTensor.tensor_data_names:
                tensors[f"{name}.{key}"] = getattr(linear.weight, key)
        save_file(tensors, folder / FILE)

    def decode(self, folder: Path) -> Weights:
        stored = load_file(folder / FILE)
        return {name: self._decoded(name, stored) for name in self.task.weights}

    def _decoded(self, name: str, stored: dict[str, torch.Tensor]) -> NDArray[np.float32]:
        shape = self.task.weights[name].shape
        parts = (stored[f"{name}.{key}"] for key in Int4OpaqueTensor.tensor_data_names)
        block = [1, self.settings["group_size"]]
        packed = Int4OpaqueTensor(*parts, block, torch.Size(shape))
        identity = torch.eye(shape[1], dtype=torch.float16)
        return functional.linear(identity, packed).T.float().numpy()


if __name__ == "__main__":
    main(Torchao, ("torchao", "torch", "numpy"))
