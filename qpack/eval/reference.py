"""The float model beside the one that was made of it: its score, and what lies between the two.

Both are read in the same windows, batch by batch, so that the row of the float model and the KL
divergence to it cost one pass over the text together:

    KL = mean over targets of sum_v p(v) (log p(v) - log q(v)),  p the float model's, q the other's
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from qpack.distributed import world_size
from qpack.errors import DataError
from qpack.eval.batches import blocks, precise_dtype
from qpack.eval.network import Network, log_softmax
from qpack.eval.predictor import Tokens
from qpack.eval.ranks import sum_array
from qpack.progress import SILENT, Progress


class Reference(Network):
    """A network that is compared with another one whenever it scores."""

    def __init__(self, model: nn.Module, other: Network) -> None:
        """`model` in the windows of `other`. Raises `DataError` for another vocabulary."""
        super().__init__(
            model,
            window=other.window,
            stride=other.stride,
            isolate=other.isolate,
            batch=other.batch,
            name="float",
        )
        if self.vocab_size != other.vocab_size:
            raise DataError(
                f"the float model has a vocabulary of {self.vocab_size:,},"
                f" the model to be compared {other.vocab_size:,}",
                hint="compare a model with the one that it was made of",
            )
        self._other = other
        self.kl: float | None = None
        """Of the other model, nats a token, over the text that was scored last."""

    def score(self, tokens: Tokens, *, progress: Progress = SILENT) -> NDArray[np.float64]:
        """As `Network.score`; sets `kl`."""
        count = len(tokens) - 1
        plan = self.share(self.plan(tokens))
        out = np.zeros(count + 1)  # and the sum of divergences
        total = torch.zeros((), dtype=precise_dtype(self.device), device=self.device)
        scored = []  # moved when all is under way: a device must not wait for every group
        with progress.stage(self.name, total=count, unit="tokens") as task:
            passes = zip(self._passes(tokens, plan), self._other._passes(tokens, plan), strict=True)
            for (group, logits, targets), (_, others, _) in passes:
                found = []
                for (p, q), goal in blocks([logits, others], targets):
                    log_p = log_softmax(p)
                    found.append(log_p.gather(-1, goal[:, None])[:, 0])
                    gap = log_softmax(q).neg_().add_(log_p)  # in place: half the memory traffic
                    total += torch.dot(log_p.exp_().flatten(), gap.flatten())
                scored.append((group, torch.cat(found).view(targets.shape)))
                task.advance(targets.numel() * world_size())
            self.scatter(scored, out)
        out[-1] = float(total)
        out = sum_array(out)
        self.kl = float(out[-1]) / count
        return out[:-1]
