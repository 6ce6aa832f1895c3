"""Branches, found in the recorded program: the expected ones stand beside the layers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import attrs
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunekit as pk
from prunekit.plugin import hookimpl
from prunekit_core.branches.branch import Branch, BranchKind, named_branches
from prunekit_core.branches.find import NOT_RELATED
from prunekit_core.branches.without import reduced

RESIDUAL, FORK, OTHER = BranchKind.RESIDUAL, BranchKind.FORK, BranchKind.OTHER
X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class PreNorm(nn.Module):
    """Two blocks ``x + f(norm(x))``; the first one reads the input itself."""

    expected: ClassVar = {"blocks.0.up": (RESIDUAL, 6), "blocks.1.up": (RESIDUAL, 6)}
    inputs: ClassVar = X

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.down(F.gelu(self.up(self.norm(x))))

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(self.Block(), self.Block())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x)


class PostNorm(nn.Module):
    """``norm(x + f(x))``: the norm isn't part of the branch."""

    expected: ClassVar = {"inner": (RESIDUAL, 2)}
    inputs: ClassVar = X

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x + self.inner(x))


class Parallel(nn.Module):
    """``x + (a(n) + b(n))`` with one norm for both: each, and both together with the norm."""

    expected: ClassVar = {"block.a": (FORK, 2), "block.b": (FORK, 2), "block": (RESIDUAL, 6)}
    inputs: ClassVar = X

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.a, self.b = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            normed = self.norm(x)
            return x + (self.a(normed) + self.b(normed))

    def __init__(self) -> None:
        super().__init__()
        self.block = self.Block()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x)


class OneByOne(Parallel):
    """``x + a(n) + b(n)``: the first sum is the stream, which the norm of the next block reads, too, and no branch."""

    expected: ClassVar = {
        "blocks.0.a": (RESIDUAL, 2),
        "blocks.0.b": (RESIDUAL, 2),
        "blocks.1.a": (RESIDUAL, 2),
        "blocks.1.b": (RESIDUAL, 2),
    }

    class Block(Parallel.Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            normed = self.norm(x)
            return x + self.a(normed) + self.b(normed)

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.blocks = nn.Sequential(self.Block(), self.Block())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x)


class LayerScale(nn.Module):
    """``x + drop(gamma * f(x))``, with a stochastic depth that is there in training only."""

    expected: ClassVar = {"inner": (RESIDUAL, 3)}
    inputs: ClassVar = X

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.gamma = nn.Linear(8, 8), nn.Parameter(torch.full((8,), 1e-6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch = self.gamma * self.inner(x)
        if self.training:
            branch = branch * torch.empty(len(x), 1, 1).bernoulli_(0.5)
        return x + branch


class Projection(nn.Module):
    """A block whose shortcut has a projection, added in place, with a relu in place before and behind."""

    expected: ClassVar = {"conv": (FORK, 6), "shortcut": (FORK, 2)}
    inputs: ClassVar = IMAGE

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.shortcut, self.relu = nn.Conv2d(4, 6, 1), nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.stem(x))
        out = self.norm(self.conv(x))
        out += self.shortcut(x)
        return self.relu(out)


class Joined(nn.Module):
    """A concat has no branches: nothing is added."""

    expected: ClassVar[dict[str, Any]] = {}
    inputs: ClassVar = X

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(8, 8), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([x, self.a(x)], -1))


class Shared(nn.Module):
    """One block called three times, and a layer of its own behind: the calls are one branch."""

    expected: ClassVar = {"block": (RESIDUAL, 4), "last": (RESIDUAL, 2)}
    inputs: ClassVar = X

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.inner = nn.LayerNorm(8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(self.norm(x))

    def __init__(self) -> None:
        super().__init__()
        self.block, self.last = self.Block(), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            x = x + self.block(x)
        return x + self.last(x)


class WrittenDown(nn.Module):
    """A constant that is written down in the forward and changed in place is the branch's, as caches begin."""

    expected: ClassVar = {"block": (RESIDUAL, 2), "last": (RESIDUAL, 2)}
    inputs: ClassVar = X

    class Block(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            factor = torch.tensor([0.5], dtype=x.dtype).add_(1)
            return torch.cat([super().forward(x) * factor, torch.tensor([], dtype=x.dtype).detach_().view(2, 5, 0)], -1)

    def __init__(self) -> None:
        super().__init__()
        self.block, self.last = self.Block(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.block(x)
        return x + self.last(x)


class Positions(nn.Module):
    """Tokens and positions have nothing in common; neither is offered."""

    expected: ClassVar = {"tokens": (OTHER, 1), "positions": (OTHER, 2), "inner": (RESIDUAL, 2)}
    inputs: ClassVar = torch.tensor([[1, 2, 3]])

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions, self.inner = nn.Embedding(9, 8), nn.Embedding(3, 8), nn.Linear(8, 8)
        self.register_buffer("numbers", torch.arange(3)[None])

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids) + self.positions(self.numbers[:, : ids.shape[1]])
        return x + self.inner(x)


class Nested(nn.Module):
    """A U-Net with sums: the inner block is a branch of the outer one, which takes all that lies below."""

    expected: ClassVar = {"middle": (RESIDUAL, 2), "down": (RESIDUAL, 6)}
    inputs: ClassVar = IMAGE

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.down, self.middle = nn.Conv2d(4, 6, 2, 2), nn.Conv2d(6, 6, 1)
        self.up = nn.ConvTranspose2d(6, 4, 2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        low = self.down(x)
        low = low + self.middle(low)
        return x + self.up(low)


class Escapes(nn.Module):
    """What the model returns of a branch, and what leads to it, is needed for more than the sum."""

    expected: ClassVar = {"out": (RESIDUAL, 2)}
    inputs: ClassVar = X

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.out, self.whole = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        keys = self.keys(x)
        x = x + self.out(keys)
        whole = self.whole(x)
        return x + whole, keys, whole


class HandNorm(nn.Module):
    """Statistics that a branch keeps for itself are its own; nothing else needs them."""

    expected: ClassVar = {"inner": (RESIDUAL, 3)}
    inputs: ClassVar = X

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.inner(x)
        if self.training:
            self.mean.mul_(0.9).add_(out.mean((0, 1)), alpha=0.1)
        return x + (out - self.mean)


class Siblings(nn.Module):
    """Two layers share a norm, which stays as long as one of them does."""

    expected: ClassVar = {"a": (RESIDUAL, 2), "b": (RESIDUAL, 2)}
    inputs: ClassVar = X

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.a, self.b = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.a(self.norm(x))
        return x + self.b(self.norm(x))


class Unequal(nn.Module):
    """Operands that are broadcast are no branches."""

    expected: ClassVar[dict[str, Any]] = {}
    inputs: ClassVar = X

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bias = nn.Linear(8, 8), nn.Parameter(torch.zeros(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x) + self.bias + x.mean(0)


MODELS = (
    *(PreNorm, PostNorm, Parallel, OneByOne, LayerScale, Projection, Joined, Shared, WrittenDown),
    *(Positions, Nested, Escapes, HandNorm, Siblings, Unequal),
)


def found(model: nn.Module, inputs: Any, **options: Any) -> tuple[Branch, ...]:
    return pk.Graph.of(model, inputs, **options).branches()


@pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)
def test_branches_are_those_beside_the_layers(kind: Any) -> None:
    torch.manual_seed(0)
    branches = found(kind(), kind.inputs)
    assert {branch.name: (branch.kind, len(branch.parameters)) for branch in branches} == kind.expected
    assert all(branch.removable == (branch.kind is not OTHER) for branch in branches)


@pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)
def test_they_are_the_same_on_the_meta_device_and_on_real_tensors(kind: Any) -> None:
    expected = found(kind(), kind.inputs)
    with torch.device("meta"):
        empty = kind()
    assert found(empty, kind.inputs) == expected
    real = kind()
    real.register_forward_pre_hook(decides)
    assert [(one.name, one.kind, one.parameters) for one in found(real, kind.inputs)] == [
        (one.name, one.kind, one.parameters) for one in expected
    ]


def decides(module: nn.Module, args: Any) -> None:
    """Makes a program depend on values, so that it is recorded on real tensors."""
    if next(module.parameters()).sum() > 1e9:
        raise ValueError


def test_a_module_called_three_times_is_one_branch_with_three_sums() -> None:
    block, last = found(Shared(), X)
    assert (len(block.sums), len(last.sums)) == (3, 1)
    assert len({summand.operation for summand in block.sums}) == 3
    assert str(block) == "block: residual, 4 parameters, added 3 times"


def test_the_operations_of_a_branch_are_those_that_nothing_else_needs() -> None:
    graph = pk.Graph.of(Parallel(), X)
    operations = graph.analysis.recordings[0].trace.operations
    a, b, both = graph.branches()
    ran = {
        branch.name: [(operations[i].name, operations[i].module) for i in branch.sums[0].operations]
        for branch in (a, b, both)
    }
    assert ran["block.a"] == [("aten::linear", "block.a")]
    assert ran["block.b"] == [("aten::linear", "block.b")]
    assert ran["block"] == [
        ("aten::layer_norm", "block.norm"),
        ("aten::linear", "block.a"),
        ("aten::linear", "block.b"),
        ("aten::add.Tensor", "block"),
    ]
    assert (a.shared, both.shared) == ((), ())
    assert found(Siblings(), X)[0].shared == ("norm.weight", "norm.bias")


def test_both_modes_are_looked_at() -> None:
    graph = pk.Graph.of(LayerScale(), X)
    (branch,) = graph.branches()
    assert [graph.analysis.recordings[one.recording].trace.label for one in branch.sums] == ["eval", "train"]
    eval_only, training = branch.sums
    assert len(training.operations) > len(eval_only.operations) == 2
    assert branch.parameters == ("gamma", "inner.weight", "inner.bias")


class AnotherWayInTraining(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.inner(x)
        return torch.cat([x, out]) if self.training else x + out


def test_what_is_no_sum_in_the_other_mode_stays_and_says_so() -> None:
    (branch,) = found(AnotherWayInTraining(), X)
    assert branch.reason == "what it reads is used in another way where the model is recorded as 'train'"
    assert str(branch) == f"inner: residual, 0 parameters; stays: {branch.reason}"
    (alone,) = found(AnotherWayInTraining(), X, modes=(False,))
    assert alone.removable


class KeepsForOthers(nn.Module):
    """A branch keeps a running mean that something else reads."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x - self.mean
        out = self.inner(x)
        self.mean.copy_(out.mean((0, 1)))
        return y + out


def test_a_branch_that_writes_what_others_read_stays() -> None:
    (branch,) = found(KeepsForOthers(), X)
    assert branch.reason == "it writes to mean, which is read elsewhere"


class Asks(nn.Module):
    """The program goes another way if what it adds is large; with ``inside`` the branch asks itself."""

    def __init__(self, inside: bool) -> None:
        super().__init__()
        self.inside, self.inner = inside, Asking(inside)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.inner(x)
        if not self.inside and out.sum() > 1e9:
            x = x * 2
        return x + out


class Asking(nn.Module):
    def __init__(self, asks: bool) -> None:
        super().__init__()
        self.asks, self.linear = asks, nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.linear(x)
        return -out if self.asks and out.sum() > 1e9 else out


def test_a_branch_by_whose_values_the_program_decides_stays() -> None:
    (branch,) = found(Asks(inside=False), X)
    assert branch.reason == "the program decides by its values: aten::_local_scalar_dense in the model"
    (branch,) = found(Asks(inside=True), X)
    assert branch.removable


class Caches(nn.Module):
    """A branch writes to a tensor of the caller's."""

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.out = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
        cache.copy_(self.keys(x))
        return x + self.out(cache)


def test_what_a_branch_writes_for_the_caller_is_an_output() -> None:
    (branch,) = found(Caches(), (X, torch.zeros_like(X)))
    assert branch.parameters == ("out.weight", "out.bias")


def test_positions_are_not_offered_and_the_reason_is_given() -> None:
    tokens, positions, inner = found(Positions(), Positions.inputs)
    assert tokens.reason == positions.reason == NOT_RELATED
    assert inner.removable


def test_costs_without_branches_are_those_of_the_model_without_them() -> None:
    class Short(PreNorm):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Sequential(self.Block())

    long, short = pk.Graph.of(PreNorm(), X), pk.Graph.of(Short(), X)
    costs, expected = long.costs_without(["blocks.0.up"]), short.costs_without([])
    for name in ("params", "macs", "weights"):
        assert costs[name] == (long.costs_without([])[name][0], expected[name][1])
    assert costs["macs"] == (2 * 2 * 5 * 2 * 8 * 16, 2 * 5 * 2 * 8 * 16)
    assert costs["memory"][1] < costs["memory"][0]
    both = long.costs_without(branch.name for branch in long.branches())
    assert (both["params"][1], both["macs"][1]) == (0, 0)


def test_costs_without_branches_follow_the_widths_that_are_there_now() -> None:
    graph = pk.Graph.of(PreNorm(), X)
    graph.remove({"blocks.0.up": range(8)})
    macs = graph.costs_without(["blocks.1.up"])["macs"]
    assert macs == (2 * 5 * (2 * 8 * 8 + 2 * 8 * 16), 2 * 5 * 2 * 8 * 8)


def test_a_misspelt_branch_is_an_error_with_the_nearest_names() -> None:
    with pytest.raises(pk.ArgumentError, match=r"no such branch(?s:.*)'block.0.up'(?s:.*)did you mean 'blocks.0.up'"):
        pk.Graph.of(PreNorm(), X).costs_without(["block.0.up"])


def test_a_module_stands_for_the_branches_in_it() -> None:
    graph = pk.Graph.of(PreNorm(), X)
    inside = [branch.name for branch in graph.branches() if branch.name.startswith("blocks.1.")]
    assert [branch.name for branch in named_branches(graph.branches(), ["blocks.1"])] == inside != []
    assert graph.costs_without(["blocks.1"]) == graph.costs_without(inside)
    with pytest.raises(pk.ArgumentError, match="no such branch"):
        graph.costs_without(["block"])  # the start of a name is no module


@pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)
def test_a_recording_without_nothing_is_the_recording(kind: Any) -> None:
    for recording in pk.Graph.of(kind(), kind.inputs).analysis.recordings:
        same = reduced(recording, ())
        old, new = recording.trace, same.trace
        assert [(o.name, dict(o.arguments), o.outputs) for o in new.operations] == [
            (o.name, dict(o.arguments), o.outputs) for o in old.operations
        ]
        assert (new.shapes, new.dtypes, new.results, new.shares) == (old.shapes, old.dtypes, old.results, old.shares)
        assert (same.live, same.wholes, same.unread) == (recording.live, recording.wholes, recording.unread)


def test_a_rule_may_say_that_its_sums_make_no_branch() -> None:
    rule = pk.default_registry().op_rules.find(torch.ops.aten.add.Tensor)
    assert rule is not None
    assert rule.adds is not None
    table = {"aten::add.Tensor": attrs.evolve(rule, adds=attrs.evolve(rule.adds, branches=False))}
    hook = hookimpl(lambda: table, specname="prunekit_op_rules")
    registry = pk.Registry(extra={"own": SimpleNamespace(hook=hook)})
    assert pk.Graph.of(PreNorm(), X, registry=registry).branches() == ()
    assert len(pk.Graph.of(PreNorm(), X).branches()) == 2
