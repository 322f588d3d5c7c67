"""Groups hold the rows of their members and nothing gets lost on the way there and back."""

import torch
from torch import Tensor, nn

from qpack.quant.selection import Member
from qpack.quant.swap import Swapped, make_groups
from qpack.rule import Rule

RULE = Rule(match=("x",), qmax=7)


def member(name: str, *shape: int, rule: Rule = RULE, dtype: torch.dtype = torch.float32) -> Member:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(len(name))).to(dtype)
    return Member(name=name, rule=rule, parameters=(nn.Parameter(values),))


def bits(x: Tensor) -> bytes:
    return x.detach().contiguous().view(torch.uint8).numpy().tobytes()


def test_members_of_one_width_and_rule_stand_together() -> None:
    other = Rule(match=("x",), qmax=15)
    members = [
        member("a", 4, 6),
        member("bb", 9, 6),
        member("ccc", 4, 8),
        member("dddd", 4, 6, rule=other),
        member("eeeee", 2, 2, 3),
        member("ffffff", 4, 6, dtype=torch.bfloat16),
    ]
    groups = [[m.name for m in group.members] for group in make_groups(members, {})]
    assert groups == [["a", "bb", "eeeee"], ["ccc"], ["dddd"], ["ffffff"]]


def test_every_member_gets_its_own_rows_and_its_weights_back() -> None:
    members = [member("a", 4, 6), member("bb", 9, 6), member("eeeee", 2, 2, 3)]
    (group,) = make_groups(members, {})
    special = torch.tensor([float("inf"), float("-inf"), -0.0, 1e-45, 3e38, 1.0])
    with torch.no_grad():
        members[0].parameter[0] = special
    before = [bits(m.parameter) for m in members]
    with torch.no_grad():
        swapped = Swapped.of(group, None)
        swapped.replace()
        for m in members[1:]:
            (alone,) = make_groups([member(m.name, *m.parameter.shape)], {})
            W = alone.weights()
            expected = alone.grid.hard(W, alone.grid.steps(W))
            assert torch.equal(m.parameter.reshape(W.shape), expected)
        assert swapped.changed() == []
        members[1].parameter.add_(1)
        assert swapped.changed() == ["bb"]
        swapped.restore()
    assert [bits(m.parameter) for m in members] == before


def test_transposed_memory_and_half_precision_survive() -> None:
    turned = nn.Parameter(torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).T)
    half = member("b", 3, 6, dtype=torch.bfloat16)
    members = [Member(name="a", rule=RULE, parameters=(turned,)), half]
    before = [bits(m.parameter) for m in members]
    for group in make_groups(members, {}):
        with torch.no_grad():
            swapped = Swapped.of(group, None)
            swapped.replace()
            W = swapped.weights.float()
            expected = group.grid.hard(W, group.grid.steps(W)).to(group.members[0].parameter.dtype)
            assert torch.equal(group.members[0].parameter, expected)
            assert not torch.equal(swapped.weights, expected)
            swapped.restore()
    assert [bits(m.parameter) for m in members] == before
    assert not turned.is_contiguous()


def test_errors_are_sums_over_each_member() -> None:
    members = [member("a", 4, 6), member("bb", 9, 6)]
    (group,) = make_groups(members, {})
    rows = list(group.absolute_errors())
    with torch.no_grad():
        swapped = Swapped.of(group, None)
        before = [m.parameter.clone() for m in members]
        swapped.replace()
        for (name, total, count), m, w in zip(rows, members, before, strict=True):
            assert (name, count) == (m.name, w.numel())
            assert abs(total - float((w - m.parameter).abs().double().sum())) < 1e-5
