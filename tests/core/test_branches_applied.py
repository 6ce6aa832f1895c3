"""Models from which branches were taken: cut further, composed, undone; with names that go."""

from __future__ import annotations

import copy
from typing import Any

import attrs
import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_core.algebra import layout as layouts
from prunekit_core.algebra.layout import Concat, Fixed, Listed, Product, Units
from prunekit_core.graph.current import CurrentModel
from prunekit_core.modules.absent import Given, Handed
from prunekit_core.modules.edits import AttributeEdit, Decision, GroupCut, ParameterCut, Stub
from prunekit_core.modules.renaming import Renaming, Tied
from prunekit_core.modules.transaction import Transaction
from prunekit_core.plans.names import named_after, named_before
from tests.core.residual import MODELS, TiedMLP, close, post_norms, residual_mlp, small_vit, switched_off


@pytest.mark.parametrize(("make", "branches"), MODELS)
def test_branches_go_one_after_the_other(make: Any, branches: dict[str, str]) -> None:
    model, x = make()
    original = copy.deepcopy(model)
    graph = pk.Graph.of(model, x)
    for count, name in enumerate(branches, 1):
        graph.apply(graph.plan_without([name]))
        off = list(branches.values())[:count]
        assert close(model(x), switched_off(original, *off)(x))
        assert graph.applied.absent == tuple(branches)[:count]
        assert sum(p.numel() for p in model.parameters()) == graph.applied.preview().params_after
    assert pk.check_exact(original, model, graph.applied, x)
    assert len(graph.steps) == len(branches)


@pytest.mark.parametrize(("make", "branches"), MODELS)
def test_widths_are_cut_after_branches_and_before(make: Any, branches: dict[str, str]) -> None:
    model, x = make()
    original = copy.deepcopy(model)
    name, off = next(iter(branches.items()))
    results = []
    for branch_first in (True, False):
        model = copy.deepcopy(original)
        graph = pk.Graph.of(model, x)
        if branch_first:
            graph.apply(graph.plan_without(name))
        kept = {group.name: tuple(range(group.size // 2)) for group in graph.groups() if "#" not in group.name}
        graph.apply(graph.draft(kept))
        if not branch_first:
            graph.apply(graph.plan_without(name))
        total = graph.applied
        assert pk.check_exact(original, model, total, x)
        assert close(model(x), pk.Plan.from_json(total.to_json()).apply(copy.deepcopy(original))(x))
        assert {cut.group for cut in total.cuts} <= {group.name for group in graph.groups()}
        masked = switched_off(original, off)
        narrow = attrs_without_branch(total).mask(masked)
        assert close(model(x), narrow(x))
        results.append((total.kept, model(x)))
    assert results[0][0] == results[1][0]
    assert close(results[0][1], results[1][1])


def attrs_without_branch(plan: pk.Plan) -> pk.Plan:
    """The widths of a plan alone."""
    return pk.Plan(cuts=plan.cuts, parameters=plan.parameters, edits=plan.edits, swaps=plan.swaps)


def test_groups_of_removed_parameters_are_gone() -> None:
    model, x = residual_mlp()
    graph = pk.Graph.of(model, x)
    assert [group.name for group in graph.groups()] == ["blocks.0.up", "blocks.1.up"]
    whole = graph.costs_without(["blocks.1.up"])["params"]
    graph.apply(graph.plan_without(["blocks.0.up"]))
    assert [group.name for group in graph.groups()] == ["blocks.1.up"]
    assert len([*graph.get_all_groups()]) == 1
    assert graph.views("blocks.0.up") == []
    assert graph.costs_without(["blocks.1.up"])["params"] == (296.0, 0.0)
    assert whole == (592.0, 296.0)
    assert [branch.name for branch in graph.branches()] == ["blocks.0.up", "blocks.1.up"]


def test_a_pruner_goes_on_after_a_removal() -> None:
    model, x = small_vit()
    original = copy.deepcopy(model)
    pruner = pk.BasePruner(model, x, "magnitude", pruning_ratio=0.5, iterative_steps=2)
    pruner.graph.apply(pruner.graph.plan_without(["layers.0.attn"]))
    for _ in range(2):
        pruner.step()
    applied = pruner.graph.applied
    assert applied.absent == ("layers.0.attn",)
    assert model.layers[1].mlp[0].weight.shape == (8, 4)  # type: ignore[index, union-attr]
    assert pk.check_exact(original, model, applied, x)


@pytest.mark.parametrize("first_depth", [True, False])
def test_plans_of_two_analyses_compose(first_depth: bool) -> None:
    """The second plan knows nothing of the first one: what it calls things is what they are called then."""
    model, x = small_vit()
    original = copy.deepcopy(model)

    def narrow(model: nn.Module) -> pk.Plan:
        graph = pk.Graph.of(model, x)
        kept = {group.name: tuple(range(0, group.size, 2)) for group in graph.groups() if group.size == 16}
        return graph.draft(kept)

    def shallow(model: nn.Module) -> pk.Plan:
        return pk.Graph.of(model, x).plan_without(["layers.1.mlp", "layers.2.attn"])

    makers = (shallow, narrow) if first_depth else (narrow, shallow)
    first = makers[0](model)
    first.apply(model)
    later = makers[1](model)
    later.apply(model)
    both = first.then(later)
    assert pk.Plan.from_json(both.to_json()) == both
    assert close(both.apply(copy.deepcopy(original))(x), model(x))
    assert pk.check_exact(original, model, both, x)
    assert not {cut.parameter for cut in both.parameters} & set(both.gone)
    assert both.since(first).apply(first.apply(copy.deepcopy(original)))(x).equal(model(x))
    if not first_depth:
        assert attrs.evolve(both.since(first), sources=later.sources) == later


def test_what_stays_in_an_exchanged_module_is_cut_and_goes_later() -> None:
    model, x = post_norms()
    original = copy.deepcopy(model)
    plans = []
    for kept, without in (
        ({}, ["blocks.0.up"]),
        ({"stem#stream": (0, 1, 3, 4, 6)}, []),
        ({}, ["blocks.1.up"]),
        ({"blocks.2.up": (2, 5, 7)}, []),
    ):
        plan = pk.Graph.of(model, x).plan_without(without, kept)
        plans.append(plan)
        plan.apply(model)
    assert model.blocks[0].norm.normalized_shape == (5,)  # type: ignore[index, union-attr]
    assert [name for name, _ in model.blocks[0].named_parameters()] == ["norm.weight", "norm.bias"]  # type: ignore[index]
    total = plans[0]
    for plan in plans[1:]:
        total = total.then(plan)
    assert total.absent == ("blocks.0.up", "blocks.1.up")
    assert "blocks.0.norm.weight" in {cut.parameter for cut in total.parameters}
    assert torch.equal(total.apply(copy.deepcopy(original))(x), model(x))
    assert pk.check_exact(original, model, total, x)
    # by hand: a stream of five units, and what is left of the blocks
    units = [0, 1, 3, 4, 6]
    y = x @ original.stem.weight[units].T + original.stem.bias[units]  # type: ignore[union-attr, index, operator]
    for number, block in enumerate(original.blocks):  # type: ignore[arg-type]
        if number == 2:
            inner = (y @ block.up.weight[[2, 5, 7]][:, units].T + block.up.bias[[2, 5, 7]]).relu()
            y = y + inner @ block.down.weight[units][:, [2, 5, 7]].T + block.down.bias[units]
        y = nn.functional.layer_norm(y.relu(), (5,), block.norm.weight[units], block.norm.bias[units])
    head = original.head
    assert close(model(x), y @ head.weight[:, units].T + head.bias)  # type: ignore[union-attr, index, operator]


def test_second_branches_of_a_name_are_counted_from_the_whole_model() -> None:
    class Twice(nn.Module):
        """Two sums in one module, whose operands the same name fits: what holds their parameters is the model."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Parameter(torch.randn(8)) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x + (x * self.a).relu()
            x = x + (x * self.b).relu()
            return x + (x * self.c).relu()

    plan = pk.Plan(absent=("", "block"))
    assert plan.then(pk.Plan(absent=("block", "block~2", "other"))).absent == (
        "",
        "block",
        "block~2",
        "block~3",
        "other",
    )
    total = pk.Plan(absent=("block", "block~2", "block~3"))
    assert total.since(pk.Plan(absent=("block",))).absent == ("block", "block~2")
    assert total.since(pk.Plan(absent=("block~2",))).absent == ("block", "block~2")
    names = [branch.name for branch in pk.Graph.of(Twice(), torch.randn(2, 8)).branches()]
    assert names == ["a", "b", "c"]


def test_an_exception_takes_everything_back() -> None:
    model, x = residual_mlp()
    optimizer = torch.optim.Adam(model.parameters())
    model(x).sum().backward()
    optimizer.step()
    graph = pk.Graph.of(model, x)
    before, modules = copy.deepcopy(model.state_dict()), [*model.named_modules()]
    parameters = [*model.parameters()]
    held, state = copy.deepcopy(optimizer.state_dict()), list(optimizer.state.items())
    plan = graph.plan_without(["blocks.0.up"], {"blocks.1.up": (1, 3)})

    def interrupted() -> None:
        with Transaction() as transaction:
            graph.apply_within(transaction, plan, optimizer=optimizer)
            assert len(model.blocks) == 1  # type: ignore[arg-type]
            assert len(optimizer.state) == 6
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert [*model.named_modules()] == modules
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [key for key, _ in optimizer.state.items()] == [key for key, _ in state]
    assert str(optimizer.state_dict()) == str(held)
    assert graph.applied.empty
    assert graph.steps == []
    graph.apply(plan, optimizer=optimizer)
    assert graph.applied == plan


def test_what_a_graph_goes_on_with_has_to_be_what_the_plan_leads_to() -> None:
    model, x = residual_mlp()
    graph = pk.Graph.of(model, x)
    plan = graph.plan_without(["blocks.0.up"])
    with pytest.raises(pk.PlanError, match=r"(?s)doesn't lead to this model.*blocks.1.*takes the module out"):
        graph.adopt(copy.deepcopy(model), plan)
    small = plan.apply(copy.deepcopy(model))
    graph.adopt(small, plan)
    assert graph.model is small
    CurrentModel(graph.analysis, small, plan).check()
    with pytest.raises(pk.PlanError, match=r"(?s)doesn't lead to this model.*missing"):
        CurrentModel(graph.analysis, small, pk.Plan()).check()


def test_a_tied_matrix_stays_under_its_other_name() -> None:
    torch.manual_seed(0)
    model, x = TiedMLP().double().eval(), torch.randn(3, 8).double()
    with torch.no_grad():
        model.first.weight.fill_(0.5)  # what holds one value is given others by the check, in both models
    original = copy.deepcopy(model)
    graph = pk.Graph.of(model, x)
    plan = graph.plan_without(["first"])
    assert plan.gone == ("first.bias",)
    assert plan.tied == (Tied("head.weight", ("first.weight", "head.weight")),)
    weight = model.head.weight
    graph.apply(plan)
    assert model.head.weight is weight
    assert close(model(x), switched_off(original, "first")(x))
    assert pk.check_exact(original, model, plan, x)
    assert [*model.state_dict()] == ["second.weight", "second.bias", "head.weight"]
    graph.apply(graph.plan_without(["second"]))
    assert close(model(x), x @ original.head.weight.T)
    assert graph.applied.tied == plan.tied
    assert pk.check_exact(original, model, graph.applied, x)
    # a graph of what is left calls the matrix by the name that it has there
    again = first_of(original, x)
    later = pk.Graph.of(again, x).plan_without(["second"])
    assert later.tied == ()
    both = plan.then(later)
    assert both.gone == ("first.bias", "second.weight", "second.bias")
    assert both.tied == plan.tied
    assert plan.silent == both.silent == ()  # zeros in the matrix would change the head
    assert attrs.evolve(both.since(plan), sources=later.sources, silent=later.silent) == later


def first_of(model: nn.Module, x: torch.Tensor) -> nn.Module:
    """A copy of a model without its branch ``first``."""
    return pk.Graph.of(model, x).plan_without(["first"]).apply(copy.deepcopy(model))


def test_a_tied_matrix_is_cut_under_its_first_name_and_its_second() -> None:
    class Wide(nn.Module):
        """The matrix of the branch is that of the layer before the last, too."""

        def __init__(self) -> None:
            super().__init__()
            self.branch = nn.Linear(8, 8)
            self.inner, self.out = nn.Linear(8, 8), nn.Linear(8, 3)
            self.inner.weight = self.branch.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.inner(x + self.branch(x)).relu())

    torch.manual_seed(0)
    model, x = Wide().double().eval(), torch.randn(3, 8).double()
    original = copy.deepcopy(model)
    first = pk.Graph.of(model, x).plan_without(["branch"])
    first.apply(model)
    graph = pk.Graph.of(model, x)
    later = graph.draft({"inner": (0, 2, 5)})
    later.apply(model)
    both = first.then(later)
    assert [cut.parameter for cut in both.parameters] == ["branch.weight", "inner.bias", "out.weight"]
    small = both.apply(copy.deepcopy(original))
    assert close(small(x), model(x))
    kept = [0, 2, 5]
    inner = (x @ original.inner.weight[kept].T + original.inner.bias[kept]).relu()
    assert close(small(x), inner @ original.out.weight[:, kept].T + original.out.bias)
    assert both.since(first).apply(first.apply(copy.deepcopy(original)))(x).equal(model(x))


def test_names_before_and_after() -> None:
    ties = (Tied("head.w", ("a.w", "head.w")), Tied("", ("a.v", "b.v")))
    names = Renaming(frozenset(["a", "m.0.x"]), frozenset(["a.k"]), ties)
    assert [names.after(name) for name in ("a.w", "head.w", "a.v", "b.v", "a", "a.u", "b.u")] == [
        "head.w", "head.w", None, None, "a", None, "b.u",
    ]  # fmt: skip
    assert [names.after(name) for name in ("m.0.x.y", "m.0.x", "m.0.xy", "")] == [None, "m.0.x", "m.0.xy", ""]
    assert [names.after(name) for name in ("a.k", "a.k.w", "a.kw")] == ["a.k", "a.k.w", None]
    assert [names.place(name) for name in ("a.w", "head.w", "b.v")] == [None, "head.w", None]
    assert [names.before(name) for name in ("head.w", "b.u", "a")] == ["a.w", "b.u", "a"]


def test_names_in_lists_whose_entries_are_numbered_anew() -> None:
    """Of three blocks the second leaves; in the third one, the first of two layers does."""
    names = Renaming(
        frozenset(["m.1", "m.2.l.0"]),
        frozenset(),
        (),
        {"m.2": "m.1", "m.2.l.1": "m.2.l.0"},
        frozenset(["m.1", "m.2.l.0"]),
    )
    before = ("m.0.w", "m.1", "m.1.w", "m.2", "m.2.w", "m.2.l.0.w", "m.2.l.1.w", "m.20.w", "m.2.l.10")
    after = ("m.0.w", None, None, "m.1", "m.1.w", None, "m.1.l.0.w", "m.20.w", "m.1.l.10")
    assert tuple(names.after(name) for name in before) == after
    for old, new in zip(before, after, strict=True):
        assert new is None or names.before(new) == old


def test_groups_follow_the_numbers_of_their_modules() -> None:
    names = Renaming(frozenset(["m.0"]), frozenset(), (), {"m.1": "m.0"}, frozenset(["m.0"]))

    class Moved(Decision):
        renaming = names  # type: ignore[assignment]

    first = Moved(stubs=(Stub("m.0", Handed(Given("x", 0))),), absent=("m.0.up",), gone=("m.0.w",))
    dims = (Product((Units("m.0.qkv#heads", 4), Fixed(2))), Concat((Units("m.0.qkv#heads", 4), Listed(3, (0,)))))
    later = Decision(
        cuts=(GroupCut("m.0.qkv#heads", 4, (0, 1)),),
        parameters=(ParameterCut("m.0.w", (8, 7), dims),),
        edits=(AttributeEdit("m.0", "heads", 4, 2),),
        absent=("m.0.up",),
    )
    before = named_before(first, later)
    assert before.cuts[0].group == "m.1.qkv#heads"
    assert [layouts.groups_of(dim) for dim in before.parameters[0].dims] == [["m.1.qkv#heads"]] * 2
    assert (before.parameters[0].parameter, before.edits[0].module) == ("m.1.w", "m.1")
    assert before.absent == ("m.1.up",)
    assert named_after(first, before) == later
