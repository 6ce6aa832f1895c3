"""The oracle itself: what it must not call exact, and what it says."""

from __future__ import annotations

import copy
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunekit as pk
from prunekit import plugin

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x).relu()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.hidden(x))


def checked(model: nn.Module, x: object = X, **options: object) -> pk.ExactCheck:
    original = copy.deepcopy(model)
    plan = pk.prune(model, x).plan
    return pk.check_exact(original, model, plan, x, **options)  # type: ignore[arg-type]


# -- outputs that are no numbers


class Undefined(Mlp):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return y + (y * 0 - 1).log()


class Endless(Mlp):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) - float("inf")


class OneOfTwo(Mlp):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = super().forward(x)
        return {"good": y, "bad": y * float("nan")}


@pytest.mark.parametrize(("cls", "where"), [(Undefined, "the output"), (Endless, "the output"), (OneOfTwo, "bad")])
def test_an_output_without_finite_values_is_compared_with_nothing(cls: type[Mlp], where: str) -> None:
    check = checked(cls())
    assert not check
    assert "no finite value" in check.why
    assert where in check.why
    assert "no finite value" in str(check)


class Masked(Mlp):
    """Some entries of its output are minus infinity, as in masked scores."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mask = torch.full((4, 4), float("-inf")).triu(1)
        y = super().forward(x)
        return y + mask[:3], mask


def test_infinities_that_agree_are_fine_where_there_is_something_to_compare() -> None:
    model = Masked()
    original = copy.deepcopy(model)
    plan = pk.prune(model, X).plan
    assert pk.check_exact(original, model, plan, X)
    model.b.weight.data = model.b.weight.data.roll(1, 1)
    check = pk.check_exact(original, model, plan, X)
    assert not check
    assert "the output 0 differs" in str(check)


def test_not_a_number_on_one_side_only_is_a_difference() -> None:
    model = Mlp()
    original = copy.deepcopy(model)
    plan = pk.prune(model, X).plan
    model.b.bias.data[0] = float("nan")
    assert pk.check_exact(original, model, plan, X).error == float("inf")
    original.b.bias.data[1] = float("nan")
    assert not pk.check_exact(original, model, plan, X)


# -- random programs


class DropsAlways(Mlp):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(F.dropout(self.hidden(x), 0.5, training=True))


class Noisy(Mlp):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.hidden(x)
        return self.b(hidden + torch.randn_like(hidden))


class FilledInPlace(Mlp):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.hidden(x)
        return self.b(hidden * torch.empty_like(hidden).uniform_())


class ByNumpy(Mlp):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + torch.from_numpy(np.random.default_rng().random((20, 4))).to(x)[:3]


@pytest.mark.parametrize(
    ("cls", "source"),
    [
        (DropsAlways, "aten::dropout"),
        (Noisy, "aten::randn_like"),
        (FilledInPlace, "aten::uniform_"),
        (ByNumpy, "NumPy"),
    ],
)
def test_a_random_program_is_said_to_be_random(cls: type[Mlp], source: str) -> None:
    check = checked(cls())
    assert not check
    assert any(source in drawn for drawn in check.random)
    assert "random" in str(check)
    assert source in str(check)


class SameNoise(Mlp):
    """Random numbers whose shape follows no size: both sides draw the same."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + torch.randn(4).to(x) + random.random()


def test_random_numbers_that_both_sides_draw_alike_are_no_obstacle() -> None:
    check = checked(SameNoise())
    assert check, str(check)
    assert check.random == ()


def test_a_wrong_model_isn_t_excused_by_dropout_that_is_off() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4)).eval()
    original = copy.deepcopy(model)
    plan = pk.prune(model, X).plan
    model[3].weight.data = model[3].weight.data.roll(1, 1)
    check = pk.check_exact(original, model, plan, X)
    assert not check
    assert check.random == ()
    assert "the output differs" in check.why


# -- replacements


class Half(nn.Module):
    """Stands in for a linear layer, wrongly: it forgets half of the bias."""

    def __init__(self, source: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = source.weight, source.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias * 0.5)


class Shifted(nn.Module):
    """Stands in for a linear layer, wrongly where a row of weights is zero: rightly, that is, until some are."""

    def __init__(self, source: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = source.weight, source.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        empty = (-1e9 * self.weight.abs().sum(1)).exp().sum()
        return F.linear(x, self.weight, self.bias) + empty


class Special(nn.Linear):
    """The class that has a replacement."""


def with_replacement(cls: type[nn.Module]) -> pk.Registry:
    replacement = plugin.Replacement("stand-in", Special, lambda module: cls(module))  # type: ignore[arg-type]
    hook = plugin.hookimpl(lambda: {"stand-in": replacement}, specname="prunekit_replacements")
    return pk.Registry(extra={"replacing": SimpleNamespace(hook=hook)})


def test_a_replacement_that_is_wrong_as_it_stands_is_found_out_by_the_analysis() -> None:
    registry = with_replacement(Half)
    model = nn.Sequential(Special(8, 16), nn.ReLU(), nn.Linear(16, 4))
    with pytest.raises(pk.PluginError, match="A replacement computes something else") as caught:
        pk.prune(model, X, registry=registry, verify="never")
    assert caught.value.why.startswith("output 0 differs: relative error")


def test_a_replacement_that_is_wrong_for_a_cut_is_found_out() -> None:
    registry = with_replacement(Shifted)
    model = nn.Sequential(Special(8, 16), nn.ReLU(), nn.Linear(16, 4))
    original = copy.deepcopy(model)
    plan = pk.prune(model, X, registry=registry, verify="never").plan
    assert plan.swaps
    check = pk.check_exact(original, model, plan, X, registry=registry)
    assert not check
    assert "replacement" in str(check)


class Attends(nn.Module):
    def __init__(self, *, batch_first: bool, weights: bool) -> None:
        super().__init__()
        self.weights = weights
        self.stem = nn.Linear(8, 16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=batch_first)
        self.out = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.out(self.attention(x, x, x, need_weights=self.weights)[0])


@pytest.mark.slow
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_a_users_attention_is_compared_with_its_pruned_stand_in(
    batch_first: bool, weights: bool, training: bool
) -> None:
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    model = Attends(batch_first=batch_first, weights=weights).double()
    original = copy.deepcopy(model)
    plan = pk.prune(model, x).plan
    assert [swap.module for swap in plan.swaps] == ["attention"]
    check = pk.check_exact(original, model, plan, x, training=training)
    assert check, str(check)
    model.attention.scale *= 2
    assert not pk.check_exact(original, model, plan, x)


# -- tensors of other layouts


class Hops(nn.Module):
    """Makes sparse matrices on its way."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 32), nn.Linear(32, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        count = x.shape[0]
        adjacency = torch.sparse_coo_tensor(edges, torch.ones(edges.shape[1]), (count, count)).coalesce()
        pairs = (adjacency @ adjacency).coalesce().indices()
        hidden = self.b(self.a(x).relu()).relu()
        return self.c(torch.zeros_like(hidden).index_add(0, pairs[1], hidden[pairs[0]]))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_sparse_tensors_on_the_way_are_passed_over() -> None:
    inputs = (torch.randn(8, 12), torch.stack([torch.arange(8), torch.arange(8).roll(1)]))
    model = Hops()
    original = copy.deepcopy(model)
    plan = pk.prune(model, inputs).plan
    assert pk.check_exact(original, model, plan, inputs)
    model.c.weight.data = model.c.weight.data.roll(1, 1)
    assert not pk.check_exact(original, model, plan, inputs)


class SparseOutput(Mlp):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = super().forward(x)
        return y, torch.sparse_coo_tensor(torch.arange(3)[None], y[:, 0], (5,))


class ComplexOutput(Mlp):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return torch.complex(y, y * y)


@pytest.mark.parametrize("cls", [SparseOutput, ComplexOutput])
def test_outputs_of_other_layouts_and_kinds_are_compared(cls: type[Mlp]) -> None:
    model = cls()
    original = copy.deepcopy(model)
    plan = pk.prune(model, X).plan
    check = pk.check_exact(original, model, plan, X)
    assert check, str(check)
    model.b.weight.data[0] += 1
    assert not pk.check_exact(original, model, plan, X)


# -- weights in buffers


class InBuffers(nn.Module):
    """As a converted graph keeps its weights."""

    def __init__(self) -> None:
        super().__init__()
        for name, shape in {"first": (16, 8), "shift": (16,), "last": (4, 16)}.items():
            self.register_buffer(name, torch.randn(shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(F.linear(x, self.first, self.shift).sigmoid(), self.last)


def test_weights_in_buffers_are_zeroed_as_well() -> None:
    check = checked_at_random(InBuffers())
    assert check, str(check)


def checked_at_random(model: nn.Module) -> pk.ExactCheck:
    original = copy.deepcopy(model)
    plan = pk.prune(model, X, importance="random").plan
    return pk.check_exact(original, model, plan, X)


class DecidesForNobody(Mlp):
    """Looks for the largest unit of each sample, and leaves it at that."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x)
        F.pad(h, (1, 0)).max(1)
        return self.b(h)


def test_what_decides_for_nobody_is_not_compared() -> None:
    """An operation whose result nobody reads pins nothing, so what it reads has other units afterwards."""
    torch.manual_seed(0)
    model, x = DecidesForNobody().double(), torch.randn(3, 8, dtype=torch.float64)
    original = copy.deepcopy(model)
    result = pk.prune(model, x)
    assert result.report.pruned
    check = pk.check_exact(original, model, result.plan, x)
    assert check, str(check)
    with torch.no_grad():
        model.b.weight.copy_(model.b.weight.flip(1))
    assert not pk.check_exact(original, model, result.plan, x)


class DecidesBehindAttention(nn.Module):
    """PyTorch's layer, of which only the feed-forward part is cut, and a threshold on its result."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(3, 3, 16, 0.0, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.layer(x)
        return h * (h > 0)


def test_decisions_behind_a_layer_that_keeps_its_own_attention() -> None:
    """The pruned model runs its own attention, the recording a stand-in: decisions are told apart all the same."""
    torch.manual_seed(0)
    model, x = DecidesBehindAttention().double().eval(), torch.randn(2, 5, 3, dtype=torch.float64)
    original = copy.deepcopy(model)
    plan = pk.prune(model, x).plan
    assert [cut.group for cut in plan.cuts] == ["layer.linear1"]
    assert type(model.layer.self_attn) is nn.MultiheadAttention
    check = pk.check_exact(original, model, plan, x)
    assert check, str(check)
    with torch.no_grad():
        model.layer.linear2.weight.copy_(model.layer.linear2.weight.flip(1))
    assert not pk.check_exact(original, model, plan, x)
