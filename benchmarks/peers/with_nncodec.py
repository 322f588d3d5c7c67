"""nncodec, Fraunhofer's implementation of ISO/IEC 15938-17: dependent quantization and CABAC.

One quantization parameter, hence one step, for all weights; everything else is the package's
default, as `nncodec.nn.encode` gives it. The package imports its demonstrations on images, which
want torchvision and OpenCV: empty modules stand in for them.
"""

from __future__ import annotations

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

from worker import Peer, Weights, main

UNUSED = ("cv2", "torchvision")


class Standin(MetaPathFinder, Loader):
    """Finds modules of UNUSED packages, in which every name means nothing."""

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        ours = name.partition(".")[0] in UNUSED
        return ModuleSpec(name, self, is_package=True) if ours else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name)
        module.__getattr__ = lambda name: MagicMock()
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


sys.meta_path.insert(0, Standin())
from nncodec import nn  # noqa: E402


class Nncodec(Peer):
    """Settings: `qp`; four steps of it halve or double the step of all weights."""

    def encode(self, folder: Path) -> None:
        settings = {**self.settings, "use_dq": True, "verbose": False, "results": str(folder)}
        nn.encode(dict(self.task.weights), settings)

    def decode(self, folder: Path) -> Weights:
        (file,) = folder.glob("*.nnc")
        return nn.decode(bytearray(file.read_bytes()))


if __name__ == "__main__":
    main(Nncodec, ("nncodec", "torch", "numpy"))
