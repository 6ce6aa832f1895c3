"""Layers that transpose or reshape their parameters before they use them: what their layer types say about them."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit import plugin
from prunekit.testing import check_criterion, check_layer_type, check_regularizer

EXAMPLE = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))


class Maxout(nn.Module):
    """The larger one of two linear maps; its weight is ``[inputs, 2, width]``."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.flat_width = 2 * width
        self.weight = nn.Parameter(torch.randn(inputs, 2, width))
        self.bias = nn.Parameter(torch.randn(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if 2 * self.weight.shape[2] != self.flat_width:
            raise ValueError(f"{2 * self.weight.shape[2]} columns, not {self.flat_width}")
        first, second = self.weight.unbind(1)
        return torch.maximum(x @ first, x @ second) + self.bias

    def extra_repr(self) -> str:
        return f"flat_width={self.flat_width}"


def kept_of(gone: Sequence[int], size: int) -> torch.Tensor:
    return torch.tensor([unit for unit in range(size) if unit not in gone])


def prune_out(layer: nn.Module, indices: Sequence[int]) -> nn.Module:
    kept = kept_of(indices, len(layer.bias))
    plugin.shrink_tensor(layer.weight, {2: kept})
    plugin.shrink_tensor(layer.bias, {0: kept})
    layer.flat_width = 2 * len(kept)
    return layer


def prune_in(layer: nn.Module, indices: Sequence[int]) -> nn.Module:
    plugin.shrink_tensor(layer.weight, {0: kept_of(indices, layer.weight.shape[0])})
    return layer


def attributes(module: nn.Module, resizing: plugin.Resizing) -> Mapping[str, Any]:
    return {"flat_width": 2 * resizing.size("bias", 0)}


SILENT = plugin.LayerType(
    "maxout",
    prune_out=prune_out,
    prune_in=prune_in,
    flat_out=lambda module, layouts: layouts["bias"][0],
    flat_in=lambda module, layouts: layouts["weight"][0],
    attributes=attributes,
)
MAXOUT = attrs.evolve(SILENT, roles={"weight": (pk.Role.IN, pk.Role.ALONG, pk.Role.OUT)})


def registry_of(kind: plugin.LayerType) -> pk.Registry:
    implementation = plugin.hookimpl(lambda: {Maxout: kind}, specname="prunekit_layer_types")
    return pk.Registry(extra={"own": SimpleNamespace(implementation=implementation)})


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Maxout(5, 8), Maxout(8, 6), nn.Linear(6, 2))


def test_what_the_layer_type_says_is_what_the_members_do() -> None:
    graph = pk.DependencyGraph(registry_of(MAXOUT)).build_dependency(network(), EXAMPLE)
    assert {name: [(m.parameter, m.dim, m.role) for m in g.members] for name, g in graph.analysis.groups.items()} == {
        "0": [("0.weight", 2, pk.Role.OUT), ("0.bias", 0, pk.Role.ALONG), ("1.weight", 0, pk.Role.IN)],
        "1": [("1.weight", 2, pk.Role.OUT), ("1.bias", 0, pk.Role.ALONG), ("2.weight", 1, pk.Role.IN)],
    }


def test_a_group_names_the_function_for_each_side() -> None:
    model, by_hand = network(), network()
    graph = pk.DependencyGraph(registry_of(MAXOUT)).build_dependency(model, EXAMPLE)
    group = graph.get_pruning_group(model[0], prune_out, [1, 6])
    assert [(dep.name, dep.pruning_fn, idxs) for dep, idxs in group] == [
        ("0", prune_out, [1, 6]),
        ("1", prune_in, [1, 6]),
    ]
    for dep, idxs in group:
        assert dep.pruning_fn is not None
        dep.pruning_fn(by_hand.get_submodule(dep.name), idxs)
    group.prune()
    assert torch.equal(model(EXAMPLE), by_hand(EXAMPLE))


def test_a_layer_that_only_reads_units_does_not_protect_them() -> None:
    model = network()
    pk.prune(model, EXAMPLE, 0.5, ignored_layers=["1"], registry=registry_of(MAXOUT))
    assert (model[0].flat_width, model[1].flat_width) == (2 * 4, 2 * 6)


def graph_with(kind: plugin.LayerType) -> pk.DependencyGraph:
    return pk.DependencyGraph(registry_of(kind)).build_dependency(network(), EXAMPLE)


def start(kind: plugin.LayerType) -> None:
    graph = graph_with(kind)
    graph.get_pruning_group(graph.model.get_submodule("0"), prune_out, [1])


def cut(kind: plugin.LayerType) -> None:
    graph_with(kind).remove({"0": [1]})


def raising(module: nn.Module, layouts: Any) -> Any:
    return layouts["gian"][0]


LINE = raising.__code__.co_firstlineno
WRONG: dict[str, tuple[Callable[[plugin.LayerType], object], str, Any, str]] = {
    "too few roles": (graph_with, "roles", {"weight": (pk.Role.OUT, pk.Role.IN)}, "2 roles for the 3 dims of 0.weight"),
    "no roles": (graph_with, "roles", {"bias": ("out",)}, "('out',) for bias are no roles"),
    "no mapping": (graph_with, "roles", ["bias"], "AttributeError: 'list' object has no attribute 'items' (.*)"),
    "numbering raises": (start, "flat_out", raising, f"KeyError: 'gian' ({__file__}:{LINE + 1})"),
    "no layout": (start, "flat_out", lambda module, own: "out", "it returned 'out', which is no layout"),
    "sizes raise": (
        cut,
        "attributes",
        lambda module, new: {"flat_width": new.size("gian", 0)},
        "KeyError: 'gian' (.*)",
    ),
    "no sizes": (cut, "attributes", lambda module, new: None, "TypeError: 'NoneType' object is not iterable (.*)"),
    "a size that isn't there": (
        cut,
        "attributes",
        lambda m, new: {"width": 3},
        "it gives width = 3, which is no size of the layer",
    ),
    "half a unit": (
        cut,
        "attributes",
        lambda m, new: {"flat_width": 3.5},
        "it gives flat_width = 3.5, which is no size of the layer",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_names_the_plugin(case: str) -> None:
    use, field, value, why = WRONG[case]
    with pytest.raises(pk.PluginError) as caught:
        use(attrs.evolve(MAXOUT, **{field: value}))
    assert caught.value.headline == "A layer type is wrong."
    assert re.fullmatch(re.escape(why).replace(re.escape(".*"), ".*"), caught.value.why)
    site = f" ({__file__}:{value.__code__.co_firstlineno})" if callable(value) else ""
    assert caught.value.where == f"{field} of 'maxout' for Maxout, from own{site}"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (None, "it returned None, which is no number"),
        ("3.5", "it returned '3.5', which is no number"),
        (True, "it returned True, which is no number"),
        (float("nan"), "it is nan"),
        (-2, "it is -2, and nothing costs less than nothing"),
    ],
)
def test_a_cost_model_that_gives_no_number_names_the_plugin(answer: Any, why: str) -> None:
    def fits(analysis: plugin.Analysis, kept: plugin.Kept) -> Any:
        return answer

    implementation = plugin.hookimpl(lambda: {"fits": fits}, specname="prunekit_budgets")
    registry = pk.Registry(extra={"own": SimpleNamespace(implementation=implementation)})
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2))
    with pytest.raises(pk.PluginError, match=r"A cost model can't be computed\.") as caught:
        pk.prune(model, EXAMPLE, registry=registry, target={"fits": 0.5})
    assert caught.value.where == f"cost model 'fits', from own ({__file__}:{fits.__code__.co_firstlineno})"
    assert caught.value.why == why
    assert model[0].weight.shape == (4, 5)
    (note,) = pk.prune(model, EXAMPLE, registry=registry, ratio=0.5).report.notes
    assert f"{why} [{caught.value.where}]" in note


def test_the_kit_wants_to_know() -> None:
    assert check_layer_type(Maxout(5, 6), EXAMPLE, registry=registry_of(MAXOUT)) == ("source0~2", "layer")
    with pytest.raises(
        AssertionError, match=r"inputs lie along weight\[0\], whose role is ALONG: .* LayerType\(roles="
    ):
        check_layer_type(Maxout(5, 6), EXAMPLE, registry=registry_of(SILENT))
    unknown = attrs.evolve(MAXOUT, roles={**MAXOUT.roles, "wieght": ()})
    with pytest.raises(AssertionError, match="there is no parameter wieght"):
        check_layer_type(Maxout(5, 6), EXAMPLE, registry=registry_of(unknown))


class Spread:
    """How far the pieces of a unit lie apart; knows this layer only."""

    def __call__(self, group: pk.Group) -> torch.Tensor | None:
        for view in group.views():
            if isinstance(view.module, Maxout) and view.role is pk.Role.OUT:
                weight = view.tensor.detach()
                return view.per_unit((weight.amax(1) - weight.amin(1)).sum(0), group.size())
        return None


class InOrder(Spread):
    """Sorts the scores, so that they say nothing about the units."""

    def __call__(self, group: pk.Group) -> torch.Tensor | None:
        scores = super().__call__(group)
        return None if scores is None else scores.sort().values


class Decay:
    """Adds the weights of this layer to their gradients."""

    def __init__(self, groups: Any) -> None:
        self.groups = groups

    def refresh(self) -> None: ...

    def regularize(self) -> None:
        views = (view for group in self.groups() for view in group.views())
        for tensor in {id(v.tensor): v.tensor for v in views if isinstance(v.module, Maxout)}.values():
            if tensor.grad is not None:
                tensor.grad.add_(tensor.detach())


def test_criteria_and_regularizers_are_proven_on_a_network_of_one_s_own() -> None:
    registry, model = registry_of(MAXOUT), network()
    before = copy.deepcopy(model.state_dict())
    check_criterion(Spread, model=model, example=EXAMPLE, registry=registry)
    check_regularizer(Decay, model=model, example=EXAMPLE, registry=registry)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(AssertionError, match=r"don't follow the order|don't take their scores along"):
        check_criterion(InOrder, model=model, example=EXAMPLE, registry=registry)
    with pytest.raises(AssertionError, match="scores no group"):
        check_criterion(Spread, registry=registry)
    kind = plugin.LayerType("maxout", attributes=attributes, roles=MAXOUT.roles)
    bare = nn.Sequential(Maxout(5, 6), Maxout(6, 2))
    with pytest.raises(AssertionError, match="no group of more than three units starts at a layer"):
        check_criterion(Spread, model=bare, example=EXAMPLE, registry=registry_of(kind))
    with pytest.raises(AssertionError, match="changes no gradient"):
        check_regularizer(Decay, registry=registry)
    with pytest.raises(AssertionError, match="a model without an example"):
        check_criterion(Spread, model=model, registry=registry)
