"""The adapters of a batch of documents as they learn: nothing passes from one to another.

Each document has a loss of its own, the mean over its chunk's targets; their sum has for gradient
in a document's adapters that of its own loss alone. Clipping is by a document's own norm, and
AdamW works number by number. So what a document learns depends on itself: #826 clipped all together
(techniques.md 8.4). AdamW without weight decay, t counting the steps of a document:

    m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2
    w <- w - rate (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

With Polyak decay d the scored weights are s / (1 - d^t), s <- d s + (1 - d) w after each step from
s = 0: without that correction an average stays near where it began, as #826's did.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qpack.errors import DataError
from qpack.eval.adapters import LowRank
from qpack.eval.lessons import IGNORED
from qpack.eval.lora_settings import LoraSettings
from qpack.eval.precision import products

BETAS, EPSILON = (0.9, 0.95), 1e-8
"""Of AdamW. The betas are those of #826; its epsilon, 1e-10, would let rounding decide where a
gradient is next to nothing."""


class Documents:
    """Adapters of `count` documents, which are at the same chunk of each.

    Documents that end early are the last ones: `tokens` of fewer rows are of the first documents.
    """

    def __init__(self, low_rank: LowRank, settings: LoraSettings, count: int) -> None:
        self._low_rank = low_rank
        self._settings = settings
        self._weights = low_rank.start(count, settings.seed)
        self._means, self._squares, self._sums = (
            [torch.zeros_like(weight) for weight in self._weights] for _ in range(3)
        )
        self._steps = 0

    def scoring(self, count: int) -> list[Tensor]:
        """The weights by which the first `count` documents are scored."""
        decay = self._settings.polyak
        if not decay or not self._steps:
            return [weight[:count] for weight in self._weights]
        correction = 1.0 - decay**self._steps
        return [total[:count] / correction for total in self._sums]

    def learn(self, tokens: Tensor, targets: Tensor, *, scored_from: int, chunk: int) -> None:
        """Train on `targets` (n, T - scored_from) of `tokens` (n, T), the window of chunk `chunk`.

        Raises `DataError` where a gradient is no longer finite.
        """
        count = len(tokens)
        rate = self._settings.rate(chunk)
        for _ in range(self._settings.epochs):
            weights = [weight[:count].detach().requires_grad_() for weight in self._weights]
            with torch.enable_grad(), products(self._settings.precision, tokens.device):
                logits = self._low_rank.logits(tokens, weights, scored_from=scored_from)
                loss = document_losses(logits, targets).sum()
            gradients = torch.autograd.grad(loss, weights)
            with torch.no_grad():
                self._step(clipped(gradients, self._settings.clip), rate)

    def _step(self, gradients: Sequence[Tensor], rate: float) -> None:
        """AdamW and the average, for as many documents as there are gradients of."""
        self._steps += 1
        decay = self._settings.polyak
        corrections = [1.0 - beta**self._steps for beta in BETAS]
        state = zip(self._weights, self._means, self._squares, self._sums, strict=True)
        for gradient, tensors in zip(gradients, state, strict=True):
            weight, mean, square, total = (tensor[: len(gradient)] for tensor in tensors)
            mean.mul_(BETAS[0]).add_(gradient, alpha=1.0 - BETAS[0])
            square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1.0 - BETAS[1])
            root = (square / corrections[1]).sqrt_().add_(EPSILON)
            weight.addcdiv_(mean, root, value=-rate / corrections[0])
            total.mul_(decay).add_(weight, alpha=1.0 - decay)


def diverged() -> DataError:
    """A gradient that is no number."""
    return DataError(
        "the adapters diverged: a gradient is not finite",
        hint="lower learning_rate, or set clip",
    )


def document_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """(n,): the mean cross entropy, in nats, of each row of targets (n, T) by logits (n, T, V)."""
    losses = torch.nn.functional.cross_entropy(
        logits.float().mT, targets, ignore_index=IGNORED, reduction="none"
    )
    return losses.sum(dim=1) / (targets != IGNORED).sum(dim=1)


def clipped(gradients: Sequence[Tensor], limit: float) -> list[Tensor]:
    """`gradients` (n, ...), those of each document at most `limit` long together; 0: as they are.

    Raises `DataError` where one is not finite.
    """
    squares = [gradient.flatten(1).square().sum(dim=1) for gradient in gradients]
    norms = torch.stack(squares).sum(dim=0).sqrt()  # (n,)
    if not bool(norms.isfinite().all()):
        raise diverged()
    if not limit:
        return list(gradients)
    factors = (limit / (norms + 1e-6)).clamp_max(1.0)[:, None, None]
    return [gradient * factors for gradient in gradients]
