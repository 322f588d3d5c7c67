"""llm-compressor's GPTQ, packed by compressed-tensors.

`oneshot` wants a Hugging Face model to run; here its parts are called one by one, as
`GPTQModifier.compress_module_list` calls them: the observer of a linear layer chooses the scales,
`gptq_quantize.quantize_weight` solves with a Hessian, ours, at the modifier's own defaults (blocks
of 128, damping 0.01, static activation order), and `PackedQuantizationCompressor` packs. Layers are
float16, and so are scales.
"""

from __future__ import annotations

from pathlib import Path

import torch
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import (
    ActivationOrdering,
    QuantizationArgs,
    QuantizationScheme,
    initialize_module_for_quantization,
)
from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight
from llmcompressor.modifiers.quantization.calibration import initialize_observer, observe
from safetensors.torch import load_file, save_file
from torch import Tensor
from worker import Peer, Task, Weights, main

FILE = "weights.safetensors"


class LlmCompressor(Peer):
    """Settings: `num_bits`, `group_size`; `table_bits`, where tables have others; symmetric."""

    def __init__(self, task: Task, settings: dict[str, int]) -> None:
        super().__init__(task, settings)
        self.facts["fell_back_to_nearest"] = []

    def scheme(self, name: str) -> QuantizationScheme:
        """How a weight is quantized."""
        bits = self.settings["num_bits"]
        if name in self.task.known["tables"]:
            bits = self.settings.get("table_bits", bits)
        weights = QuantizationArgs(
            num_bits=bits,
            group_size=self.settings["group_size"],
            strategy="group",
            symmetric=True,
            actorder=ActivationOrdering.STATIC,
        )
        return QuantizationScheme(targets=["Linear"], weights=weights)

    def encode(self, folder: Path) -> None:
        tensors = {}
        for name in self.task.weights:
            with torch.no_grad():
                solved = self._solved(name)
            packed = PackedQuantizationCompressor.compress(solved, self.scheme(name))
            tensors |= {f"{name}.{key}": value for key, value in packed.items()}
        save_file(tensors, folder / FILE)

    def _solved(self, name: str) -> dict[str, Tensor]:
        weight = torch.from_numpy(self.task.weights[name])
        rows, cols = weight.shape
        linear = torch.nn.Linear(cols, rows, bias=False, dtype=torch.float16)
        linear.weight.data.copy_(weight)
        scheme = self.scheme(name)
        initialize_module_for_quantization(linear, scheme)
        initialize_observer(linear, "weight")
        observe(linear, "weight")
        chosen = linear.weight_observer.get_qparams()
        solved, _, fallback = quantize_weight(
            linear.weight.detach().float()[None].clone(),
            torch.from_numpy(self.task.hessian(name))[None].clone(),
            chosen["scale"][None],
            chosen["zero_point"][None],
            None,
            scheme.weights,
        )
        if bool(fallback.any()):
            self.facts["fell_back_to_nearest"].append(name)
        return {
            "weight": solved[0].to(torch.float16),
            "weight_scale": chosen["scale"].to(torch.float16),
            "weight_zero_point": chosen["zero_point"],
        }

    def decode(self, folder: Path) -> Weights:
        parts: dict[str, dict[str, Tensor]] = {name: {} for name in self.task.weights}
        for key, tensor in load_file(folder / FILE).items():
            name, _, part = key.rpartition(".")
            parts[name][part] = tensor
        return {
            name: PackedQuantizationCompressor.decompress(part, self.scheme(name))["weight"]
            .float()
            .numpy()
            for name, part in parts.items()
        }


if __name__ == "__main__":
    main(LlmCompressor, ("llmcompressor", "compressed-tensors", "torch", "numpy"))
