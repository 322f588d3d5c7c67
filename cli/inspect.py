"""`qpack inspect`: what is in an artifact, without decoding its weights."""

from __future__ import annotations

from .options import ArtifactArgument, check_input
from .output import Output
from .verify import warn_of_decoder


def inspect(output: Output, artifact: ArtifactArgument) -> None:
    """Show what an artifact holds: sizes, streams, tensors, metadata.

    Nothing is decoded and nothing in the file is run. Needs no torch.
    """
    check_input(artifact)

    from qpack.artifact.inspect import inspect as inspect_artifact

    from .show import show_inspection

    found = inspect_artifact(artifact)
    output.result(found, lambda: show_inspection(found))
    warn_of_decoder(output, found)
    output.next(f"qpack verify {artifact}")
