"""Cross-entropy of softcapped logits, fused with the head's product.

    z = features W^T        l = c tanh(z / c)        nll_t = logsumexp(l_t) - l_t[y_t]

Neither float32 logits nor all logits at once ever exist: blocks of tokens are multiplied, reduced
and turned into their own gradient in place, in the dtype of the features, so that the backward pass
is one scaling. On CUDA the reduction is one kernel (`loss_kernel.py`); elsewhere it is this file's.
The same in one piece: `qpack.eval.bpb`, which scores.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

BLOCK_ELEMENTS = {"cuda": 1 << 29, "cpu": 1 << 21}
"""Logits held at a time: 1 GiB of bfloat16 on a GPU, what stays in a core's cache on a CPU."""
IGNORED = -1
"""A target that does not count."""


def nll_sum(
    features: Tensor,  # (tokens, F)
    weight: Tensor,  # (V, F) float32
    targets: Tensor,  # (tokens,) int64, IGNORED where nothing is to be predicted
    *,
    softcap: float,
    weights: Tensor | None = None,  # (tokens,) float32
) -> Tensor:
    """Sum over targets of `weights` times negative log-likelihood, nats, a float32 scalar.

    Differentiable once, in `features` and `weight`. `softcap` 0 means none.
    """
    total: Tensor = _fused(features, weight, targets, weights, softcap)[0]
    return total


@custom_op("qpack::softcapped_nll", mutates_args=())
def _fused(
    features: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None, softcap: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum, and its gradients in features (their dtype) and weight (float32 or wider)."""
    num_tokens, vocab_size = features.shape[0], weight.shape[0]
    head = weight.to(features.dtype)
    total = torch.zeros((), dtype=_wide(features), device=features.device)
    d_features = torch.empty_like(features)
    d_weight = torch.zeros_like(weight, dtype=_wide(features))
    block = max(1, BLOCK_ELEMENTS.get(features.device.type, BLOCK_ELEMENTS["cpu"]) // vocab_size)
    for start in range(0, num_tokens, block):
        part = slice(start, start + block)
        logits = features[part] @ head.T
        share = None if weights is None else weights[part]
        total += _reduce(logits, targets[part], share, softcap)  # logits are now their gradient
        torch.mm(logits, head, out=d_features[part])
        d_weight += _product(logits, features[part])
    return total.float(), d_features, d_weight.to(weight.dtype)


@_fused.register_fake
def _(
    features: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None, softcap: float
) -> tuple[Tensor, Tensor, Tensor]:
    total = features.new_empty((), dtype=torch.float32)
    return total, torch.empty_like(features), torch.empty_like(weight)


def _save(
    ctx: torch.autograd.function.FunctionCtx,
    inputs: tuple[object, ...],
    output: tuple[Tensor, Tensor, Tensor],
) -> None:
    ctx.save_for_backward(output[1], output[2])


def _backward(
    ctx: torch.autograd.function.FunctionCtx, grad: Tensor, *_: Tensor | None
) -> tuple[Tensor | None, ...]:
    d_features, d_weight = ctx.saved_tensors  # type: ignore[attr-defined]
    return grad.to(d_features.dtype) * d_features, grad * d_weight, None, None, None


_fused.register_autograd(_backward, setup_context=_save)


def _wide(x: Tensor) -> torch.dtype:
    """What sums are kept in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _product(gradient: Tensor, features: Tensor) -> Tensor:
    """`gradient^T features`, (V, F), summed in float32 or wider."""
    if gradient.is_cuda and gradient.dtype == torch.bfloat16:
        return torch.mm(gradient.T, features, out_dtype=torch.float32)
    return gradient.T @ features


def _reduce(logits: Tensor, targets: Tensor, weights: Tensor | None, softcap: float) -> Tensor:
    """The weighted sum of a block (tokens, V), whose logits become their gradient in place."""
    if logits.is_cuda:
        from .loss_kernel import reduce_block

        return reduce_block(logits, targets, weights, softcap)
    return reduce_reference(logits, targets, weights, softcap)


def reduce_reference(
    logits: Tensor, targets: Tensor, weights: Tensor | None, softcap: float
) -> Tensor:
    """What the kernel computes, in torch: d nll / dz = w (softmax(l) - [v = y]) (1 - tanh^2)."""
    wide = logits.to(_wide(logits))
    bent = torch.tanh(wide / softcap) if softcap else None
    capped = wide if bent is None else softcap * bent
    counted = targets != IGNORED
    goal = targets.clamp_min(0)[:, None]
    log_p = torch.log_softmax(capped, dim=-1)
    share = counted.to(wide.dtype) if weights is None else weights.to(wide.dtype) * counted
    total = -(log_p.gather(1, goal)[:, 0] * share).sum()
    gradient = log_p.exp_()
    gradient.scatter_add_(1, goal, gradient.new_full(goal.shape, -1.0))
    gradient *= share[:, None]
    if bent is not None:
        gradient *= 1 - bent.square()
    logits.copy_(gradient)
    return total
