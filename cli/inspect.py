"""`qpack inspect`: what is in an artifact, without decoding its weights."""

from __future__ import annotations

from .options import ArtifactArgument, check_input
from .output import Output


def inspect(output: Output, artifact: ArtifactArgument) -> None:
    """Show what an artifact holds: sizes, streams, tensors, metadata.

    Nothing is decoded and nothing in the file is run. Needs no torch.
    """
    check_input(artifact)

    from qpack.artifact.inspect import inspect as inspect_artifact

    from .show import show_inspection

    found = inspect_artifact(artifact)
    output.result({"schema": "qpack.inspect/1", **found}, lambda: show_inspection(found))
    output.next(f"qpack verify {artifact}")
