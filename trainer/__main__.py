"""`python -m qpack.trainer CONFIG -o DIR`: `qpack train`, for `torchrun`.

    torchrun --nproc_per_node=8 -m qpack.trainer CONFIG -o DIR

The command is reached as it was installed, by its entry point.
"""

from __future__ import annotations

import sys

from qpack.plugins import load_plugin


def main() -> None:
    """Run `qpack train` with this program's arguments."""
    sys.argv = ["qpack", "train", *sys.argv[1:]]
    load_plugin("console_scripts", "qpack")()


if __name__ == "__main__":
    main()
