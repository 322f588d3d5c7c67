"""Kinds of parameter: which optimizer and which rate each has (techniques.md 2.1).

- `embedding`: tables of rows that are looked up.
- `head`: the matrix of an untied head.
- `matrix`: weights of other linear layers, the projections of hash and value tables among them.
- `scalar`: the rest: gains, gates, scales, mixes; some have two dimensions, none projects.

The reference scripts go by names, and a new control that is on no list becomes a matrix. Here the
kind follows from the module that owns the parameter, so a new part needs no entry.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

Kind = Literal["embedding", "head", "matrix", "scalar"]
Groups = dict[Kind, dict[str, nn.Parameter]]

HEAD = "lm_head"


def parameter_groups(model: nn.Module) -> Groups:
    """Trainable parameters of `model` by kind, then by name; each in exactly one group.

    A tied parameter is of the first kind that one of its owners gives it: a table that is also the
    head is an `embedding`.
    """
    groups: Groups = {"embedding": {}, "head": {}, "matrix": {}, "scalar": {}}
    kinds: dict[int, Kind] = {}
    order = list(groups)
    for path, module in model.named_modules(remove_duplicate=False):
        for parameter in module.parameters(recurse=False):
            found = [_kind(module, path, parameter)]
            if id(parameter) in kinds:
                found.append(kinds[id(parameter)])
            kinds[id(parameter)] = min(found, key=order.index)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[kinds[id(parameter)]][name] = parameter
    return groups


def _kind(owner: nn.Module, path: str, parameter: nn.Parameter) -> Kind:
    if isinstance(owner, nn.Embedding):
        return "embedding"
    if parameter.ndim != 2 or not isinstance(owner, nn.Linear):
        return "scalar"
    return "head" if path == HEAD else "matrix"
