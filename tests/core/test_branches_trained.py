"""Training that goes on after branches were taken out: optimizers, averages, gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import prunekit as pk
from tests.core.residual import MODELS, close, residual_mlp, small_vit, switched_off

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01, amsgrad=True),
    "adafactor": lambda parameters: torch.optim.Adafactor(parameters, lr=0.01),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.01, momentum=0.5, centered=True),
}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, steps: int = 2) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize(("make", "branches"), MODELS)
def test_training_goes_on_as_with_the_branches_switched_off(make: Any, branches: dict[str, str], kind: str) -> None:
    model, x = make()
    optimizer = OPTIMIZERS[kind](model.parameters())
    train(model, optimizer, x)
    whole = copy.deepcopy(model)
    other = OPTIMIZERS[kind](whole.parameters())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    graph = pk.Graph.of(model, x)
    plan = graph.apply(graph.plan_without(branches), optimizer=optimizer)

    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert held == [id(p) for p in model.parameters()]
    assert {id(p) for p in optimizer.state} == set(held)
    train(model, optimizer, x)
    train(off := switched_off_in_place(whole, *branches.values()), other, x)
    expected = dict(off.named_parameters())
    assert all(close(value, expected[plan.renaming.before(name)]) for name, value in model.named_parameters())
    assert close(model(x), off(x))
    fresh = OPTIMIZERS[kind](model.parameters())
    fresh.load_state_dict(optimizer.state_dict())
    assert len(fresh.state) == len(optimizer.state)


def switched_off_in_place(model: nn.Module, *paths: str) -> nn.Module:
    for path in paths:
        model.get_submodule(path).register_forward_hook(lambda module, args, out: torch.zeros_like(out))
    return model


def test_widths_and_branches_are_cut_from_one_state() -> None:
    model, x = residual_mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    train(model, optimizer, x)
    before = {name: copy.deepcopy(optimizer.state[p]) for name, p in model.named_parameters()}
    graph = pk.Graph.of(model, x)
    graph.apply(graph.plan_without(["blocks.0.up"], {"blocks.1.up": (1, 3, 5)}), optimizer=optimizer)
    after = {name: optimizer.state[p] for name, p in model.named_parameters()}
    assert list(after) == [name for name in before if name.startswith("blocks.0.")]
    for key in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(after["blocks.0.up.weight"][key], before["blocks.1.up.weight"][key][[1, 3, 5]])
        assert torch.equal(after["blocks.0.down.weight"][key], before["blocks.1.down.weight"][key][:, [1, 3, 5]])
        assert torch.equal(after["blocks.0.norm.weight"][key], before["blocks.1.norm.weight"][key])
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())
    train(model, optimizer, x)


def test_several_optimizers_and_their_groups_lose_what_goes() -> None:
    model, x = small_vit()
    attention = [p for name, p in model.named_parameters() if ".attn." in name]
    names = [(name, p) for name, p in model.named_parameters() if ".attn." not in name]
    first = torch.optim.SGD(attention[:4], lr=0.1, momentum=0.9)
    rest = [{"params": names[:7], "lr": 0.3}, {"params": names[7:]}]
    second = torch.optim.AdamW(rest, lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(second, 1, 0.5)
    for optimizer in (first, second):
        train(model, optimizer, x, 1)
    graph = pk.Graph.of(model, x)
    plan = graph.plan_without(["layers.0.attn"])
    graph.apply(plan, optimizer=[first, second])
    assert first.param_groups[0]["params"] == []
    assert len(first.state) == 0
    left = [name for name, _ in names if name not in plan.gone]
    assert [*second.param_groups[0]["param_names"], *second.param_groups[1]["param_names"]] == left
    assert [group["lr"] for group in second.param_groups] == [0.3, 0.1]
    for optimizer in (first, second):
        train(model, optimizer, x, 1)
    schedule.step()
    assert [group["lr"] for group in second.param_groups] == [0.15, 0.05]


class Slow(torch.optim.SGD):
    """Goes along with another optimizer, and shows its groups and state as its own."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner
        self.defaults = inner.defaults
        self.param_groups, self.state = inner.param_groups, inner.state


class Notes(torch.optim.SGD):
    """Notes its parameters once more."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.1)
        self.noted = {"all": list(self.param_groups[0]["params"])}


def test_optimizers_in_optimizers_lose_what_goes_once() -> None:
    model, x = residual_mlp()
    inner = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, inner, x)
    outer = Slow(inner)
    graph = pk.Graph.of(model, x)
    graph.apply(graph.plan_without(["blocks.0.up"]), optimizer=outer)
    assert len(inner.state) == len(inner.param_groups[0]["params"]) == 6
    assert outer.param_groups[0]["params"] is inner.param_groups[0]["params"]


def test_optimizers_that_are_not_understood_change_nothing() -> None:
    model, x = residual_mlp()
    graph = pk.Graph.of(model, x)
    plan = graph.plan_without(["blocks.0.up"])
    count = sum(p.numel() for p in model.parameters())
    with pytest.raises(
        pk.PlanError, match=r"(?s)state of the optimizer can't be cut.*Notes, noted.*blocks.0.norm.weight"
    ):
        plan.apply(model, optimizer=Notes(model.parameters()))
    lbfgs = torch.optim.LBFGS(model.parameters())
    loss = lambda: model(x).square().mean()  # noqa: E731
    loss().backward()
    lbfgs.step(loss)
    with pytest.raises(pk.PlanError, match="The state of the optimizer can't be cut"):
        plan.apply(model, optimizer=lbfgs)
    with pytest.raises(pk.PlanError, match="The optimizer is not this model's"):
        plan.apply(model, optimizer=torch.optim.SGD(residual_mlp()[0].parameters()))
    assert sum(p.numel() for p in model.parameters()) == count
    unused = torch.optim.LBFGS(model.parameters())
    plan.apply(model, optimizer=unused)
    assert unused._params is unused.param_groups[0]["params"]
    assert len(unused._params) == 6


@pytest.mark.parametrize(("make", "branches"), MODELS)
def test_averages_of_the_weights_lose_the_same_branches(make: Any, branches: dict[str, str]) -> None:
    model, x = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    train(model, optimizer, x)
    average.update_parameters(model)
    train(model, optimizer, x)
    average.update_parameters(model)
    whole = copy.deepcopy(average.module)
    graph = pk.Graph.of(model, x)
    graph.apply(graph.plan_without(branches), optimizer=optimizer, copies=[average])
    assert close(average(x), switched_off(whole, *branches.values())(x))
    before = {name: p.detach().clone() for name, p in average.module.named_parameters()}
    assert before.keys() == dict(model.named_parameters()).keys()
    train(model, optimizer, x)
    average.update_parameters(model)
    for (name, now), new in zip(average.module.named_parameters(), model.parameters(), strict=True):
        assert close(now, 0.9 * before[name] + 0.1 * new)


def test_a_copy_without_the_branch_is_refused() -> None:
    model, x = residual_mlp()
    graph = pk.Graph.of(model, x)
    plan = graph.plan_without(["blocks.0.up"])
    small = plan.apply(copy.deepcopy(model))
    with pytest.raises(pk.PlanError, match=r"(?s)A copy isn't like.*copies\[0\], blocks.*no list of 2 modules"):
        graph.apply(plan, copies=[small])
    assert len([*model.parameters()]) == 12


class Byol(nn.Module):
    """A student and a teacher that follows it; the teacher runs in a forward, or not."""

    def __init__(self, runs: bool) -> None:
        super().__init__()
        self.student = residual_mlp()[0]
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.runs = runs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.student(x)
        return y - self.teacher(x) if self.runs else y


def follow(model: Byol) -> None:
    with torch.no_grad():
        for own, other in zip(model.teacher.parameters(), model.student.parameters(), strict=True):
            own.mul_(0.9).add_(0.1 * other)


def test_a_teacher_in_the_model_loses_what_its_student_loses() -> None:
    x = residual_mlp()[1]
    model = Byol(False)
    with torch.no_grad():
        model.teacher.blocks[1].up.weight.mul_(2)  # type: ignore[index, union-attr]
    teacher = copy.deepcopy(model.teacher)
    graph = pk.Graph.of(model, x)
    plan = graph.plan_without(["student.blocks.0.up"])
    assert [stub.module for stub in plan.stubs] == ["student.blocks.0", "teacher.blocks.0"]
    assert sum(name.startswith("teacher.") for name in plan.gone) == 6
    original = copy.deepcopy(model)
    graph.apply(plan)
    assert torch.equal(model.teacher(x), teacher.blocks[1](x))  # type: ignore[index, operator]
    assert pk.check_exact(original, model, plan, x)
    assert plan.preview().params_after == sum(p.numel() for p in model.parameters())
    follow(model)


def test_a_teacher_that_runs_loses_a_branch_of_its_own() -> None:
    x = residual_mlp()[1]
    model = Byol(True)
    copies = {"teacher": "student"}
    graph = pk.Graph.of(model, x, momentum_copies=copies)
    with pytest.raises(
        pk.RehearsalError, match=r"(?s)can't go on.*teacher follows student.*name the branch of the other"
    ):
        graph.plan_without(["student.blocks.0.up"])
    with torch.no_grad():
        model.teacher.blocks[1].up.weight.mul_(2)  # type: ignore[index, union-attr]
    expected = model.student.blocks[1](x) - model.teacher.blocks[1](x)  # type: ignore[index, operator]
    both = ["student.blocks.0.up", "teacher.blocks.0.up"]
    graph.apply(graph.plan_without(both))
    assert torch.equal(model(x), expected)
    follow(model)


SILENT = {
    "residual_mlp": ("blocks.1.down.weight", "blocks.1.down.bias"),
    "small_vit": (
        *("layers.0.attn.proj.weight", "layers.0.attn.proj.bias", "layers.1.mlp.2.weight", "layers.1.mlp.2.bias"),
        *("layers.2.attn.proj.weight", "layers.2.attn.proj.bias"),
    ),
    "post_norms": ("blocks.0.down.weight", "blocks.0.down.bias", "blocks.2.down.weight", "blocks.2.down.bias"),
    "mobilenet": tuple(f"features.{number}.block.3.1.{leaf}" for number in (5, 10) for leaf in ("weight", "bias")),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("make", "branches"), MODELS)
def test_a_masked_model_adds_nothing_and_may_learn_again(make: Any, branches: dict[str, str], training: bool) -> None:
    model, x = make()
    original = copy.deepcopy(model)
    plan = pk.Graph.of(model, x).plan_without(branches)
    assert plan.silent == SILENT[make.__name__]
    assert pk.Plan.from_json(plan.to_json()).silent == plan.silent
    for module in (model, original):  # a dropout would draw other numbers
        module.train(training and make.__name__ != "mobilenet")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plan.mask(model)
    assert model.state_dict().keys() == original.state_dict().keys()
    assert close(model(x), switched_off(original, *branches.values())(x))
    assert close(model(x), plan.apply(copy.deepcopy(original))(x))
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, original.get_parameter(name))}
    assert changed == set(plan.silent)
    train(model, optimizer, x, 1)
    assert all(model.get_parameter(name).any() for name in plan.silent if name.endswith("weight"))


def test_masks_of_widths_and_branches_are_one() -> None:
    model, x = residual_mlp()
    original = copy.deepcopy(model)
    first = pk.Graph.of(model, x).plan_without(["blocks.0.up"], {"blocks.1.up": (1, 2, 5)})
    later = pk.Graph.of(small := first.apply(copy.deepcopy(model)), x).plan_without(["blocks.0.up"])
    assert close(first.mask(model)(x), small(x))
    both = first.then(later)
    assert both.silent == (*first.silent, *(name.replace("blocks.0", "blocks.1") for name in later.silent))
    assert torch.equal(both.mask(copy.deepcopy(original))(x), x)
    assert both.since(first).silent == later.silent


def test_a_gate_cannot_be_masked() -> None:
    class Gate(nn.Sequential):
        """A gate of zero is one half."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sigmoid(super().forward(x))

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.gated = nn.Linear(8, 8), Gate(nn.Linear(8, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x + self.inner(x)
            return x + self.gated(x)

    torch.manual_seed(0)
    model, x = Gated().double(), torch.randn(2, 8).double()
    original = copy.deepcopy(model)
    inner, gated = (pk.Graph.of(model, x).plan_without([name]) for name in ("inner", "gated.0"))
    with pytest.raises(pk.PlanError, match=r"(?s)can't be switched off by zeros in the weights.*gated"):
        gated.mask(model)
    assert all(torch.equal(p, original.get_parameter(name)) for name, p in model.named_parameters())
    small = inner.apply(copy.deepcopy(model))
    both = inner.then(pk.Graph.of(small, x).plan_without(["gated.0"]))
    assert both.silent == ()
    wrong = both.to_json().replace('"parameters": ["inner', '"silent": ["stays"], "parameters": ["inner')
    with pytest.raises(pk.PlanError, match=r"(?s)malformed.*stays"):
        pk.Plan.from_json(wrong)
    assert close(inner.mask(model)(x), x + original.gated(x))
