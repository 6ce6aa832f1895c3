"""Branches taken out: exact against the original with the operand zeroed, or refused with the reason."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit.plugin import default_registry
from prunekit_core.branches.branch import named_branches
from prunekit_core.check.verification import verify_cut
from prunekit_core.modules.absent import Absent, Given, Handed, Plain, Several, Zeros, from_json, to_json
from prunekit_core.modules.entries import Deletion
from prunekit_core.rehearse.removals import draft_without
from tests.core.residual import applied_as_json
from tests.core.test_branches import (
    MODELS,
    Escapes,
    HandNorm,
    Parallel,
    PostNorm,
    PreNorm,
    Projection,
    Shared,
    WrittenDown,
    X,
    decides,
)

REFUSED = {
    ("Projection", "conv"): r"norm returns a tensor of shape \(2, 6, 8, 8\), which nothing has that it is given",
    ("Projection", "shortcut"): r"shortcut returns a tensor of shape \(2, 6, 8, 8\), which nothing has",
    ("Positions", "tokens"): "nothing in common",
    ("Positions", "positions"): "nothing in common",
    ("HandNorm", "inner"): r"what is added isn't zero without them: aten::add.Tensor in the model",
}
"""What can't be expressed yet, with the reason."""


def double(model: nn.Module, inputs: Any) -> tuple[nn.Module, Any]:
    return model.double().eval(), inputs.double() if inputs.is_floating_point() else inputs


def without(model: nn.Module, inputs: Any, names: Sequence[str], **options: Any) -> tuple[pk.Plan, nn.Module]:
    """Plans without some branches, through JSON, and applies the plan to a copy."""
    graph = pk.Graph.of(model, inputs)
    plan = draft_without(model, graph.drafts, named_branches(graph.branches(), names), **options)
    return plan, applied_as_json(plan, model)


CASES = [(kind, name) for kind in MODELS for name in kind.expected]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("kind", "name"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_each_branch_alone_is_exact_or_refused(kind: Any, name: str) -> None:
    torch.manual_seed(0)
    model, inputs = double(kind(), kind.inputs)
    before = copy.deepcopy(model.state_dict())
    if (kind.__name__, name) in REFUSED:
        with pytest.raises(pk.RehearsalError, match=REFUSED[kind.__name__, name]):
            without(model, inputs, [name])
    else:
        plan, small = without(model, inputs, [name])
        check = pk.check_exact(model, small, plan, inputs)
        assert check, check
        assert check.tolerance == 1e-10
        branch = next(one for one in pk.Graph.of(model, inputs).branches() if one.name == name)
        assert sum(p.numel() for p in small.parameters()) == plan.preview().params_after
        assert not set(plan.gone) - set(branch.parameters)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_constant_that_is_written_down_goes_with_its_branch_on_real_tensors_too() -> None:
    torch.manual_seed(0)
    model, x = double(WrittenDown(), X)
    model.last.register_forward_pre_hook(decides)  # type: ignore[union-attr]
    plan, small = without(model, x, ["block"])
    assert [(stub.module, stub.result) for stub in plan.stubs] == [("block", Zeros(Given("x", 0)))]
    assert pk.check_exact(model, small, plan, x)


def test_a_block_that_only_adds_is_the_identity_afterwards() -> None:
    torch.manual_seed(0)
    model, x = double(PreNorm(), X)
    plan, small = without(model, x, ["blocks.0.up"])
    assert torch.equal(small(x), model.blocks[1](x))  # type: ignore[index]
    assert [(stub.module, stub.result) for stub in plan.stubs] == [("blocks.0", Handed(Given("x", 0)))]
    assert plan.gone == tuple(name for name, _ in model.named_parameters() if name.startswith("blocks.0."))
    assert [*small.state_dict()] == [name for name in model.state_dict() if not name.startswith("blocks.1.")]
    assert torch.equal(small.blocks[0].up.weight, model.blocks[1].up.weight)  # type: ignore[index, union-attr]
    preview = plan.preview()
    assert (preview.params_before, preview.params_after) == (592, 296)
    assert preview.costs["macs"] == (5120.0, 2560.0)


def test_the_masked_original_is_the_one_computed_by_hand() -> None:
    torch.manual_seed(0)
    model, x = double(PostNorm(), X)
    nn.init.normal_(model.norm.weight)  # type: ignore[arg-type, union-attr]
    plan, small = without(model, x, ["inner"])
    assert torch.equal(small(x), model.norm(x))  # type: ignore[operator]
    assert pk.check_exact(model, small, plan, x)
    with torch.no_grad():
        small.norm.weight[3] += 1e-6  # type: ignore[union-attr, operator]
    assert not pk.check_exact(model, small, plan, x)


def test_the_oracle_tells_a_wrong_removal() -> None:
    torch.manual_seed(0)
    model, x = double(PostNorm(), X)
    plan, _ = without(model, x, ["inner"])
    wrong = pk.Plan.from_json(plan.to_json().replace('"zeros"', '"argument"'))
    small = wrong.apply(copy.deepcopy(model))
    assert torch.allclose(small(x), model.norm(2 * x))  # type: ignore[operator]
    check = pk.check_exact(model, small, plan, x)
    assert not check
    assert "the output differs" in check.why


def test_the_operand_is_zero_where_it_is_written_in_place() -> None:
    class InPlace(PostNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = self.inner(x)
            out += x
            return self.norm(out)

    torch.manual_seed(0)
    model, x = double(InPlace(), X)
    plan, small = without(model, x, ["inner"])
    assert torch.equal(small(x), model.norm(x))  # type: ignore[operator]
    assert pk.check_exact(model, small, plan, x)


def test_all_calls_of_a_module_go_together() -> None:
    torch.manual_seed(0)
    model, x = double(Shared(), X)
    plan, small = without(model, x, ["block"])
    assert torch.equal(small(x), x + model.last(x))  # type: ignore[operator]
    assert [stub.module for stub in plan.stubs] == ["block"]


def test_both_operands_of_a_sum_are_refused() -> None:
    model, x = double(Parallel(), X)
    with pytest.raises(pk.RehearsalError, match=r"(?s)can't go on.*block.a, block.b.*nothing would be left of a sum"):
        without(model, x, ["block.a", "block.b"])
    plan, small = without(model, x, ["block.a", "block"])
    assert torch.equal(small(x), x)
    assert pk.check_exact(model, small, plan, x)


def test_what_is_returned_of_a_branch_stays() -> None:
    torch.manual_seed(0)
    model, x = double(Escapes(), X)
    plan, small = without(model, x, ["out"])
    assert plan.gone == ("out.weight", "out.bias")
    assert torch.equal(small(x)[1], model.keys(x))  # type: ignore[operator]


def test_widths_and_branches_go_in_one_plan() -> None:
    torch.manual_seed(0)
    model, x = double(PreNorm(), X)
    kept = {"blocks.0.up": (0, 1), "blocks.1.up": (1, 3, 5, 7)}
    plan, small = without(model, x, ["blocks.0.up"], kept=kept)
    assert plan.kept == {"blocks.1.up": (1, 3, 5, 7)}
    assert len(small.blocks) == 1  # type: ignore[arg-type]
    assert small.blocks[0].up.weight.shape == (4, 8)  # type: ignore[index, union-attr]
    assert pk.check_exact(model, small, plan, x)
    assert plan.preview().costs["macs"] == (5120.0, 2 * 5 * 2 * 8 * 4)


def test_a_group_that_is_not_there_is_named() -> None:
    model, x = double(PreNorm(), X)
    with pytest.raises(pk.ArgumentError, match=r"(?s)no such group.*'blocks.1.upp'.*did you mean 'blocks.1.up'"):
        without(model, x, ["blocks.0.up"], kept={"blocks.1.upp": (0, 1)})


def test_plans_compose() -> None:
    torch.manual_seed(0)
    model, x = double(PreNorm(), X)
    first, small = without(model, x, ["blocks.0.up"])
    later, smaller = without(small, x, ["blocks.0.up"])
    both = first.then(later)
    assert both.absent == ("blocks.0.up", "blocks.1.up")
    assert [stub.module for stub in both.stubs] == ["blocks"]
    assert (first.entries.deletions, both.entries.deletions) == ((Deletion("blocks", 2, (0,)),), ())
    with pytest.raises(pk.PlanError, match=r"(?s)doesn't fit the model that the first one leaves.*leaves 1 of its"):
        first.then(first)
    once = both.apply(copy.deepcopy(model))
    assert torch.equal(once(x), smaller(x))
    assert torch.equal(once(x), x)
    assert pk.check_exact(model, once, both, x)
    assert both.since(first) == later


class Listed(PreNorm):
    """Blocks in a list, which the model calls one after the other, the first one twice."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.blocks  # type: ignore[misc]
        out: torch.Tensor = second(first(first(x)))
        return out * 2


def test_blocks_behind_one_another_go_together() -> None:
    torch.manual_seed(0)
    model, x = double(Listed(), X)
    plan, small = without(model, x, ["blocks.0.up", "blocks.1.up"])
    assert [stub.module for stub in plan.stubs] == ["blocks.0", "blocks.1"]
    assert torch.equal(small(x), 2 * x)
    assert pk.check_exact(model, small, plan, x)
    plan, small = without(model, x, ["blocks.0.up"])
    assert torch.equal(small(x), 2 * model.blocks[1](x))  # type: ignore[index]
    assert pk.check_exact(model, small, plan, x)


class Reads(nn.Module):
    """The program asks for the weight of a branch outside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x.to(self.inner.weight.dtype))


def test_what_the_program_asks_a_module_for_must_be_there() -> None:
    model, x = double(Reads(), X)
    with pytest.raises(pk.RehearsalError, match=r"(?s)can't go on.*AttributeError: 'Absent' object has no attribute"):
        without(model, x, ["inner"])


class Overwrites(nn.Module):
    """A block's result is changed in place, while what it was given is read again."""

    def __init__(self) -> None:
        super().__init__()
        self.block = PreNorm.Block()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        start = x * 2
        return self.block(start).mul_(3) + start


def test_a_sum_stays_where_its_result_is_overwritten() -> None:
    """The identity would change what is read again: zeros are added, and the activation between runs for nothing."""
    torch.manual_seed(0)
    model, x = double(Overwrites(), X)
    plan, small = without(model, x, ["block.up"])
    assert {stub.module: stub.result for stub in plan.stubs} == {
        "block.norm": Handed(Given("input", 0)),
        "block.up": Handed(Given("input", 0)),
        "block.down": Zeros(Given("input", 0)),
    }
    assert torch.equal(small(x), x * 6 + x * 2)
    assert pk.check_exact(model, small, plan, x)


def test_widths_of_layers_that_are_gone_do_not_matter() -> None:
    torch.manual_seed(0)
    model, x = double(nn.Sequential(nn.Linear(8, 8), Overwrites(), nn.Linear(8, 8)), X)
    kept = {"1.block.up": (0, 1), "0#stream": (0, 2, 5)}
    plan, small = without(model, x, ["1.block.up"], kept=kept)
    assert plan.kept == {"0#stream": (0, 2, 5)}
    assert pk.check_exact(model, small, plan, x)


def test_a_module_with_hooks_is_not_exchanged() -> None:
    model, x = double(PostNorm(), X)
    model.inner.register_forward_hook(lambda module, args, out: out + 1)  # type: ignore[operator, union-attr]
    with pytest.raises(pk.RehearsalError, match="why: inner has hooks, which would no longer run"):
        without(model, x, ["inner"])


def test_a_plan_for_another_model_changes_nothing() -> None:
    model, x = double(PreNorm(), X)
    plan, small = without(model, x, ["blocks.0.up"])
    with pytest.raises(pk.PlanError, match="made for another model"):
        plan.apply(small)
    with pytest.raises(pk.PlanError, match=r"(?s)made for another model.*no such branch"):
        pk.check_exact(double(HandNorm(), X)[0], double(HandNorm(), X)[0], plan, x)
    assert sum(p.numel() for p in model.parameters()) == 592


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda part: part["modules"].update({"": {"value": None}}), "it can't be exchanged"),
        (lambda part: part["modules"].update({"blocks.0.up": {"value": None}}), "it can't be exchanged"),
        (lambda part: part["modules"].update({"blocks.7": {"value": None}}), "no such module"),
        (lambda part: part["modules"].update({"blocks.1": {"call": "exit"}}), "not what a module returns"),
        (lambda part: part["modules"].update({"blocks.1": {"zeros": ["", -1]}}), "not what a module returns"),
        (lambda part: part["parameters"].append("nothing"), "no such parameter"),
        (lambda part: part["branches"].append("blocks.0.up"), "named twice"),
    ],
)
def test_plans_of_strangers_are_checked(change: Any, message: str) -> None:
    model, x = double(PreNorm(), X)
    data = json.loads(without(model, x, ["blocks.0.up"])[0].to_json())
    change(data["absent"])
    with pytest.raises(pk.PlanError, match=message):
        pk.Plan.from_json(json.dumps(data)).apply(model, any_program=True)
    assert isinstance(model.blocks[0], PreNorm.Block)  # type: ignore[index]


def test_a_removal_is_verified_by_numbers() -> None:
    torch.manual_seed(0)
    model, x = double(PreNorm(), X)
    graph = pk.Graph.of(model, x)
    plan = draft_without(model, graph.drafts, graph.branches()[:1], keep_names=True)
    costs = plan.preview().costs
    found = verify_cut(model, plan, graph.analysis, default_registry(), wish="always", costs=costs)
    assert found.check
    wrong = pk.Plan.from_json(plan.to_json().replace('"argument"', '"zeros"'))
    with pytest.raises(pk.VerificationError):
        verify_cut(model, wrong, graph.analysis, default_registry(), wish="always", costs=costs)


def test_what_a_removed_module_returns_is_data() -> None:
    result = Several((Zeros(Given("x", 0)), Handed(Given("cache", -1)), Plain(None), Several((Plain(2),), True)))
    assert from_json(json.loads(json.dumps(to_json(result)))) == result
    module, x, cache = Absent(result), torch.ones(2, 3), object()
    zeros, handed, nothing, several = module(x, cache=cache)
    assert torch.equal(zeros, torch.zeros(2, 3))
    assert handed is cache
    assert (nothing, several) == (None, [2])
    assert torch.equal(module(x=x, cache=cache)[0], zeros)
    assert str(module) == "Absent((zeros like x, cache, None, (2)))"


class TrainsOtherwise(nn.Module):
    """In training the block returns its attention as well, which is read as long as it is there."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = TwoResults()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out, extra = self.inner(x)
        return x + out if extra is None else x + out * 1.0


class TwoResults(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.linear(x), x.detach().clone() if self.training else None


def test_each_mode_has_to_go_on() -> None:
    """One module can't return two things in one mode and one in the other; the layer in it can go."""
    torch.manual_seed(0)
    model, x = double(TrainsOtherwise(), X)
    plan, small = without(model, x, ["inner.linear"])
    assert [stub.module for stub in plan.stubs] == ["inner.linear"]
    assert all(pk.check_exact(model, small, plan, x, training=training) for training in (False, True))


class Cache:
    def __init__(self) -> None:
        self.seen = 0


class KeepsCount(nn.Module):
    """The branch hands on an object that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Counting()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out, cache, unread = self.inner(x, Cache())
        return x + out + (0 if isinstance(cache, Cache) and unread is None else 1)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, cache: Cache) -> tuple[torch.Tensor, Cache, None]:
        cache.seen += 1
        return self.linear(x), cache, None


def test_objects_are_handed_on() -> None:
    torch.manual_seed(0)
    model, x = double(KeepsCount(), X)
    plan, small = without(model, x, ["inner.linear"])
    (stub,) = plan.stubs
    assert stub.module == "inner"
    assert stub.result == Several((Zeros(Given("x", 0)), Handed(Given("cache", 1)), Plain(None)))
    assert torch.equal(small(x), x)
    assert pk.check_exact(model, small, plan, x)


def test_projections_that_do_not_fit_name_the_shape() -> None:
    model, x = double(Projection(), Projection.inputs)
    with pytest.raises(pk.RehearsalError) as caught:
        without(model, x, ["conv"])
    assert str(caught.value).startswith("The program can't go on without these branches.")
    assert "what to do: leave them out" in str(caught.value)
