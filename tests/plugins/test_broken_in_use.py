"""Objects of plugins that are wrong on purpose, in use: each is named with plugin, file and line, and harms nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit import plugin
from prunekit.testing import check_criterion, check_plugin
from prunekit_plugins.cli.entry import main
from prunekit_plugins.integrations import TrainingPruner
from tests.plugins import installing


def source(name: str) -> str:
    """The text of a plugin in the folder beside this file."""
    return Path(__file__).with_name("broken").joinpath(f"{name}.py").read_text()


SOURCE, COSTS, LAYERS = map(source, ("objects", "costs", "layers"))

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


@attrs.frozen
class Broken:
    """The plugin, installed.

    Attributes:
        path: Its file.
        registry: A registry of all installed plugins, with it.
    """

    path: Path
    registry: pk.Registry

    def site(self, text: str) -> str:
        """File and line of the only line that has a text."""
        lines = self.path.read_text().splitlines()
        (number,) = (number for number, line in enumerate(lines, 1) if re.search(text, line))
        return f"{self.path}:{number}"

    @property
    def module(self) -> Any:
        return sys.modules[self.path.stem]


Install = Callable[[str], Broken]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a distribution with one plugin; the default registry of other tests doesn't see it."""
    monkeypatch.setattr("prunekit_core.plugins.registry._DEFAULT", {})

    def put(source: str) -> Broken:
        installed = installing.install(tmp_path, monkeypatch, "broken", source, head="")
        return Broken(installed.path, pk.Registry())

    return put


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


@attrs.frozen(eq=False)
class State:
    """A model bit by bit: objects, values, flags, modes."""

    held: dict[str, tuple[int, int, torch.Tensor, bool, torch.Tensor | None]]
    modes: list[tuple[str, type, bool, int]]

    @classmethod
    def of(cls, model: nn.Module) -> State:
        tensors = [*model.named_parameters(), *model.named_buffers()]
        return cls(
            {n: (id(t), t.data_ptr(), t.detach().clone(), t.requires_grad, t.grad) for n, t in tensors},
            [(name, type(m), m.training, len(m._forward_hooks)) for name, m in model.named_modules()],
        )

    def check(self, model: nn.Module) -> None:
        now = State.of(model)
        assert now.modes == self.modes
        assert now.held.keys() == self.held.keys()
        for name, (identity, memory, values, flag, grad) in self.held.items():
            assert now.held[name][:2] == (identity, memory), name
            assert torch.equal(now.held[name][2], values), name
            assert now.held[name][3:] == (flag, grad), name


def scored(name: str) -> Callable[[nn.Module, pk.Registry], object]:
    return lambda model, registry: pk.prune(model, X, importance=name, registry=registry)


def informed(name: str) -> Callable[[nn.Module, pk.Registry], object]:
    return lambda model, registry: pk.prune(model, X, importance=name, calibration=[X], registry=registry)


def scheduled(name: str) -> Callable[[nn.Module, pk.Registry], object]:
    return lambda model, registry: pk.BasePruner(
        model, X, iterative_steps=3, iterative_pruning_ratio_scheduler=name, registry=registry
    )


def allocated(name: str) -> Callable[[nn.Module, pk.Registry], object]:
    return lambda model, registry: pk.prune(model, X, target={"params": 0.5}, allocation=name, registry=registry)


def repaired(name: str) -> Callable[[nn.Module, pk.Registry], Any]:
    return lambda model, registry: pk.prune(model, X, calibration=[X], compensation=name, registry=registry)


def pushed(model: nn.Module, registry: pk.Registry) -> None:
    pruner = pk.BasePruner(model, X, registry=registry)
    regularizer = registry.make("prunekit_regularizers", "pushes", pruner.graph.get_all_groups)
    TrainingPruner(pruner, at=[1], regularizer=regularizer).regularize()


def opened(suffix: str) -> Callable[[nn.Module, pk.Registry], object]:
    def use(model: nn.Module, registry: pk.Registry) -> None:
        pk.prune(network().to("meta"), X.to("meta"), weights=f"x.{suffix}", registry=registry)

    return use


@attrs.frozen
class Case:
    """One broken object.

    Attributes:
        use: What uses it.
        noun: What it is called.
        line: What its own line has: that of its function or class.
        headline: The headline.
        why: The reason; ``AT`` stands for the file and the line that is marked with the name of the case.
        hint: How what to do begins.
        cause: The exception behind it.
        at: What it was used on.
    """

    use: Callable[[nn.Module, pk.Registry], object]
    noun: str
    line: str
    headline: str
    why: str
    hint: str = "correct it"
    cause: type[Exception] | None = None
    at: str = ""
    kind: type[Exception] = pk.PluginError


LENGTH = "A criterion must return one score per unit."
NUMBERS = "A criterion must return real numbers."
CHANGES = "A criterion changes the model."
FAILED = "A criterion failed."
SHAPE = "return a tensor [group.size()]"
BACK = "put back what you change for a while"
COPY = "work on a copy: view.values().clone()"
PICK = "An allocation must pick one option of every choice."
RATIOS = "The schedule must return ascending cumulative ratios, one more than there are steps."
PARTS = "A criterion names statistics that there aren't."
OF = "choices of [8] options, got"

CASES = {
    "raises": Case(
        scored("raises"),
        "criterion 'raises'",
        "class Raises",
        FAILED,
        "IndexError: index 9 is out of bounds for dimension 0 with size 8 (AT)",
        cause=IndexError,
        at="group 0",
    ),
    "unmade": Case(
        scored("unmade"),
        "criterion 'unmade'",
        "class Unmade",
        "A criterion can't be made.",
        "KeyError: 'p' (AT)",
        cause=KeyError,
    ),
    "no_criterion": Case(
        scored("no_criterion"),
        "criterion 'no_criterion'",
        "def no_criterion",
        "A registered criterion makes none.",
        "it returned 3",
        "return an object that is called with a group",
    ),
    "short": Case(scored("short"), "criterion 'short'", "def short", LENGTH, "8 units, got (7,)", SHAPE, at="group 0"),
    "listed": Case(
        scored("listed"), "criterion 'listed'", "def listed", LENGTH, "8 units, got list", SHAPE, at="group 0"
    ),
    "nan": Case(
        scored("nan"),
        "criterion 'nan'",
        "def nan",
        "A criterion returned values that are not finite.",
        "8 of 8: units 0, 1, 2, 3, 4, ...",
        at="group 0",
    ),
    "mask": Case(
        scored("mask"),
        "criterion 'mask'",
        "def mask",
        NUMBERS,
        "the tensor is torch.bool: a mask, in which most units are equal",
        "scores.float(), if that is meant",
        at="group 0",
    ),
    "complex_scores": Case(
        scored("complex_scores"),
        "criterion 'complex_scores'",
        "def complex_scores",
        NUMBERS,
        "the tensor is torch.complex64, whose numbers have no order",
        "scores.abs()",
        at="group 0",
    ),
    "halves": Case(
        scored("halves"),
        "criterion 'halves'",
        "def halves",
        CHANGES,
        "aten::mul_.Tensor writes to 0.weight (AT)",
        COPY,
    ),
    "hides": Case(
        scored("hides"), "criterion 'hides'", "def hides", CHANGES, "aten::mul_.Tensor writes to 0.weight (AT)", COPY
    ),
    "freezes": Case(
        scored("freezes"),
        "criterion 'freezes'",
        "def freezes",
        CHANGES,
        "it sets requires_grad of 0.weight to False",
        BACK,
    ),
    "exchanges": Case(
        scored("exchanges"), "criterion 'exchanges'", "def exchanges", CHANGES, "it gives 0.weight other values", BACK
    ),
    "hooks": Case(
        scored("hooks"), "criterion 'hooks'", "def hooks", CHANGES, "it leaves a hook on 0, or takes one away", BACK
    ),
    "renames": Case(scored("renames"), "criterion 'renames'", "def renames", CHANGES, "it exchanges 0.weight", BACK),
    "needs_moment": Case(
        informed("needs_moment"),
        "criterion 'needs_moment'",
        "class NeedsMoment",
        PARTS,
        "needs names 'moment'",
        "did you mean 'moments'? known: contributions, covariances, curvatures, fisher, gradients, moments, neurons, "
        "products, rerouting, routing",
    ),
    "needs_text": Case(
        informed("needs_text"),
        "criterion 'needs_text'",
        "class NeedsText",
        PARTS,
        "needs is 'moments'",
        'a list of names: needs = ("moments",)',
    ),
    "needs_in_vain": Case(
        informed("needs_in_vain"),
        "criterion 'needs_in_vain'",
        "class NeedsInVain",
        "A criterion can't be given statistics.",
        "it has needs but no attribute `statistics`, so that nobody gives it any",
        "set it to None in the constructor",
    ),
    "needs_fisher": Case(
        informed("needs_fisher"),
        "criterion 'needs_fisher'",
        "class NeedsFisher",
        "A criterion needs statistics of a loss.",
        "needs names 'fisher', and batches alone say nothing about the loss",
        "gather them first: criterion.statistics = calibrate(",
        kind=pk.ArgumentError,
    ),
    "late": Case(
        scheduled("late"),
        "schedule 'late'",
        "def late",
        "A schedule failed.",
        "ZeroDivisionError: float division by zero (AT)",
        cause=ZeroDivisionError,
    ),
    "descending": Case(
        scheduled("descending"),
        "schedule 'descending'",
        "def descending",
        RATIOS,
        "got [0.5, -0.5, -1.5, -2.5] for 3 steps",
    ),
    "short_of_it": Case(
        scheduled("short_of_it"),
        "schedule 'short_of_it'",
        "def short_of_it",
        "The schedule must end at the ratio.",
        "got [0.0, 0.1, 0.2, 0.3] for the ratio 0.5",
    ),
    "pushes": Case(
        pushed,
        "regularizer 'pushes'",
        "class Pushes",
        "A regularizer failed.",
        "LookupError: no gradients like these (AT)",
        cause=LookupError,
    ),
    "stubborn": Case(
        lambda model, registry: registry.make("prunekit_pruners", "stubborn", model, X),
        "pruner 'stubborn'",
        "class Stubborn",
        "A pruner can't be made.",
        "ValueError: won't (AT)",
        cause=ValueError,
    ),
    "lost": Case(
        allocated("lost"),
        "allocator 'lost'",
        "def lost",
        "An allocator failed.",
        "AttributeError: 'Problem' object has no attribute 'options' (AT)",
        cause=AttributeError,
    ),
    "beyond": Case(allocated("beyond"), "allocator 'beyond'", "def beyond", PICK, f"1 {OF} [99]"),
    "halfway": Case(allocated("halfway"), "allocator 'halfway'", "def halfway", PICK, f"1 {OF} [0.5]"),
    "greedy_for_nothing": Case(
        allocated("greedy_for_nothing"),
        "allocator 'greedy_for_nothing'",
        "def greedy_for_nothing",
        "An allocation must meet the budget.",
        "{'params': 33.5}, got [0]",
    ),
    "failing": Case(
        repaired("failing"),
        "compensator 'failing'",
        "def failing",
        "A compensator failed.",
        "AttributeError: 'Repair' object has no attribute 'fix' (AT)",
        cause=AttributeError,
    ),
    "none": Case(repaired("none"), "compensator 'none'", "", "A registered compensator makes none.", "it returned {}"),
    "scribbles": Case(
        repaired("scribbles"),
        "compensator 'scribbles'",
        "def scribbles",
        "A compensator changes the model itself.",
        "aten::zero_ writes to 0.weight (AT)",
        "give the values to repair.write(name, values)",
    ),
    "unread": Case(
        opened("unread"),
        "form of weights 'unread'",
        "class Unread",
        "A form of weights can't be made.",
        "OSError: no such disk (AT)",
        cause=OSError,
    ),
    "garbled": Case(
        opened("garbled"),
        "form of weights 'garbled'",
        "class Garbled",
        "A plugin can't read weights.",
        "read() returned a list, not a tensor with values",
        at="0.weight",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_broken_object_in_use_is_named_and_the_model_is_as_it_was(name: str, install: Install) -> None:
    case, broken, model = CASES[name], install(SOURCE), network()
    before = State.of(model)
    with pytest.raises(pk.PrunekitError) as caught:
        case.use(model, broken.registry)
    before.check(model)
    error = caught.value
    assert type(error) is case.kind
    assert error.headline == case.headline
    site = broken.site(case.line + r"\b") if case.line else "type"
    at = f", on {case.at}" if case.at else ""
    assert error.where == f"{case.noun}, from broken:point ({site}){at}"
    place = broken.site(f"# {name}$") if "AT" in case.why else ""
    assert error.why == case.why.replace("AT", place)
    assert error.hint.startswith(case.hint)
    assert error.hint.endswith("; until then, leave the plugin out: PRUNEKIT_BLOCK=broken:point")
    assert type(error.__cause__) is (case.cause or type(None))
    assert pk.prune(model, X, registry=broken.registry).report.pruned == {"0": (8, 4)}  # the rest works on


@pytest.mark.parametrize(
    ("name", "why", "cause"),
    [
        ("raising", "KeyError: 'nothing' (AT)", KeyError),
        ("negative", "it is -1, and nothing costs less than nothing", None),
        ("text", "it returned '1e6', which is no number", None),
    ],
)
def test_a_broken_cost(name: str, why: str, cause: type[Exception] | None, install: Install) -> None:
    """Whoever asks for it gets an error. Previews leave it out, and the report says so."""
    broken, model = install(f"{COSTS}prunekit_budgets = costing({name})\n"), network()
    before = State.of(model)
    with pytest.raises(pk.PluginError) as caught:
        pk.prune(model, X, registry=broken.registry, target={name: 0.5})
    before.check(model)
    error = caught.value
    assert error.headline == "A cost model can't be computed."
    assert error.where == f"cost model {name!r}, from broken:point ({broken.site(f'def {name}')})"
    assert error.why == why.replace("AT", broken.site(f"# {name}$") if cause else "")
    assert error.hint == "correct it; until then, leave the plugin out: PRUNEKIT_BLOCK=broken:point"
    assert type(error.__cause__) is (cause or type(None))
    note = f"previews leave out the cost {name!r}: {error.headline} {error.why} [{error.where}] {error.hint}"
    for options in ({"ratio": 0.5}, {"target": {"params": 0.6}}):
        result = pk.prune(network(), X, registry=broken.registry, **options)
        assert result.report.pruned == {"0": (8, 4)}
        assert [line for line in result.report.notes if name in line] == [note]
        blocked = pk.prune(network(), X, registry=pk.Registry(block=["broken:point"]), **options)
        assert result.preview.costs == blocked.preview.costs
        assert not [line for line in blocked.report.notes if name in line]


def test_a_broken_cost_is_left_out_where_branches_go(install: Install) -> None:
    broken = install(f"{COSTS}prunekit_budgets = costing(negative)\n")
    model = Residual()
    result = pk.prune(model, X, branches=["inner"], registry=broken.registry)
    assert result.report.absent == ("inner",)
    assert "negative" not in result.preview.costs
    assert len([line for line in result.report.notes if "previews leave out the cost 'negative'" in line]) == 1
    graph = pk.Graph.of(Residual(), X, registry=broken.registry)
    costs = graph.costs_without(["inner"])
    assert costs["params"] == (20 + 16 + 16 + 15, 20 + 16 + 15)
    assert "negative" not in costs
    assert any("'negative'" in line for line in graph.report().notes)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(4, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 3)
        self.other = nn.Linear(4, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        x = x + self.inner(x)
        return self.last(x + self.other(x))


def gained(broken: Broken) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), broken.module.Gain(8), nn.LayerNorm(8), nn.Linear(8, 3))


LAYER_CASES = {
    "twice": (
        "prunekit_replacements = swapping(Twice)",
        "replacement 'stand_in', from broken:point (class Twice), on 1",
        "A replacement computes something else than the module that it replaces.",
        "output 0 differs: relative error 1.00e+00 on the example inputs, allowed 1e-03",
        None,
    ),
    "copies": (
        "prunekit_replacements = swapping(Copies)",
        "replacement 'stand_in', from broken:point (class Copies), on 1",
        "A replacement failed.",
        "gain is a parameter of its own",
        None,
    ),
    "no_module": (
        "prunekit_replacements = swapping(no_module)",
        "replacement 'stand_in', from broken:point (def no_module), on 1",
        "A replacement failed.",
        "it returned a str, which is no module",
        None,
    ),
    "torn": (
        "prunekit_replacements = swapping(torn)",
        "replacement 'stand_in', from broken:point (def torn), on 1",
        "A replacement failed.",
        "AttributeError: 'Gain' object has no attribute 'scale' (AT)",
        AttributeError,
    ),
    "wide": (
        "prunekit_layer_types = stating(wide)",
        "attributes of 'gain' for Gain, from broken:point (def wide)",
        "A layer type is wrong.",
        "it gives width = 9 for the shapes that the layer has, and the layer holds 8",
        None,
    ),
    "missing": (
        "prunekit_layer_types = stating(missing)",
        "attributes of 'gain' for Gain, from broken:point (def missing)",
        "A layer type is wrong.",
        "KeyError: 'scale' (AT)",
        KeyError,
    ),
}


@pytest.mark.parametrize("name", LAYER_CASES)
def test_a_broken_layer_type_or_replacement(name: str, install: Install) -> None:
    hook, where, headline, why, cause = LAYER_CASES[name]
    broken = install(f"{LAYERS}{hook}\n")
    model = gained(broken)
    before = State.of(model)
    with pytest.raises(pk.PluginError) as caught:
        pk.prune(model, X, registry=broken.registry, verify="never")
    before.check(model)
    error = caught.value
    assert error.headline == headline
    assert error.where == re.sub(r"\((.*)\)", lambda found: f"({broken.site(found[1])})", where)
    assert error.why == why.replace("AT", broken.site(f"# {name}$") if cause else "")
    assert error.hint.endswith("; until then, leave the plugin out: PRUNEKIT_BLOCK=broken:point")
    assert type(error.__cause__) is (cause or type(None))


def test_a_replacement_isn_t_compared_without_values_and_the_report_says_so(install: Install) -> None:
    broken = install(f"{LAYERS}prunekit_replacements = swapping(Twice)\n")
    model = gained(broken).to("meta")
    graph = pk.DependencyGraph(broken.registry).build_dependency(model, X.to("meta"))
    assert (
        f"the replacement 'stand_in', from broken:point ({broken.site('class Twice')}) was not compared with 1: "
        "the model or its inputs have no values (meta device)"
    ) in graph.report().notes


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("forgetful", "its rule returned None, and the operation has an output"),
        ("stumbling", "its rule raised KeyError: 'sefl: the arguments of .* are self.*' \\(AT\\)"),
    ],
)
def test_a_broken_rule_pins_and_is_named_in_the_report(rule: str, why: str, install: Install) -> None:
    broken = install(f"{LAYERS}prunekit_op_rules = ruling({rule})\n")
    model = nn.Sequential(*network(), nn.Linear(3, 6), nn.Linear(6, 2))
    report = pk.prune(model, X, registry=broken.registry).report
    assert report.pruned == {"2": (3, 1), "3": (6, 3)}
    (line,) = report.not_understood
    said = why.replace("AT", re.escape(broken.site(f"# {rule}$")) if "AT" in why else "")
    place = re.escape(
        f" (rule of broken:point in {broken.site(f'def {rule}')}; without it: PRUNEKIT_BLOCK=broken:point)"
    )
    assert re.fullmatch(f"aten::relu in 1: {said}{place}", line), line


@pytest.mark.parametrize(
    ("name", "trouble"),
    [
        ("spoils", "it gives 2.bias values that are not finite"),
        (
            "worsens",
            r"it makes the outputs on the calibration data worse than the cut alone \(error [\d.e-]+ -> [\d.e+]+\)",
        ),
    ],
)
def test_what_a_compensator_makes_worse_is_undone_and_told(name: str, trouble: str, install: Install) -> None:
    broken, model = install(SOURCE), network()
    plain, bias = network(), network()[2].bias
    pk.prune(plain, X, importance="magnitude")
    options: dict[str, Any] = {"importance": "magnitude", "calibration": [X], "registry": broken.registry}
    result = pk.prune(model, X, compensation=[name], **options)
    assert torch.equal(model[2].bias, bias)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    assert result.compensation is not None
    said = f"{trouble}; " + re.escape(f"compensator {name!r}, from broken:point ({broken.site(f'def {name}')})")
    assert re.fullmatch(said, result.compensation.undone[name])
    assert f"undone: {name}: " in str(result)
    before, after = result.compensation.output_error
    assert after == before
    repaired_both = pk.prune(network(), X, compensation=["least_squares", name], **options).compensation
    alone = pk.prune(network(), X, compensation=["least_squares"], **options).compensation
    assert repaired_both is not None
    assert alone is not None
    assert repaired_both.output_error == alone.output_error
    assert repaired_both.layers == alone.layers
    assert list(repaired_both.undone) == [name]


# -- objects that no plugin brought


def test_an_object_that_was_given_is_named_by_its_file_and_line() -> None:
    def halved(group: pk.Group) -> torch.Tensor:
        return torch.ones(group.size() // 0)

    line = halved.__code__.co_firstlineno
    model = network()
    with pytest.raises(pk.PluginError) as caught:
        pk.prune(model, X, importance=halved)
    assert caught.value.where == f"criterion {halved.__qualname__} ({__file__}:{line}), on group 0"
    assert caught.value.why.startswith("ZeroDivisionError: ")
    assert caught.value.why.endswith(f" ({__file__}:{line + 1})")
    assert caught.value.hint == "correct it"
    assert isinstance(caught.value.__cause__, ZeroDivisionError)

    with pytest.raises(pk.ArgumentError, match="The schedule must return ascending") as wrong:
        pk.BasePruner(model, X, iterative_pruning_ratio_scheduler=lambda ratio, steps: [ratio])
    assert f"({__file__}:" in wrong.value.where


def test_plugins_that_are_given_as_an_argument_are_named_but_can_t_be_blocked() -> None:
    hook = plugin.hookimpl(lambda: {"own": lambda: lambda group: torch.ones(1)}, specname="prunekit_importance")
    registry = pk.Registry(extra={"mine": SimpleNamespace(hook=hook)})
    with pytest.raises(pk.PluginError) as caught:
        pk.prune(network(), X, importance="own", registry=registry)
    assert caught.value.where.startswith(f"criterion 'own', from mine ({__file__}:")
    assert caught.value.hint == "return a tensor [group.size()], or None to leave the group whole"


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, pk.UnitsError("of its own")])
def test_what_is_nobody_s_fault_passes(error: Any) -> None:
    def interrupted(group: pk.Group) -> torch.Tensor:
        raise error

    model = network()
    before = State.of(model)
    kind = error if isinstance(error, type) else type(error)
    with pytest.raises(kind) as caught:
        pk.prune(model, X, importance=interrupted)
    assert type(caught.value) is kind
    before.check(model)


def test_whole_numbers_are_scores() -> None:
    plan = pk.prune(network(), X, importance=lambda group: torch.arange(group.size()).flip(0)).plan
    assert list(plan.kept.values()) == [(0, 1, 2, 3)]


def test_a_criterion_may_run_the_model_backwards_and_write_to_its_own() -> None:
    class Loss:
        def __init__(self, model: nn.Module) -> None:
            self.model, self.sums = model, torch.zeros(8)

        def __call__(self, group: pk.Group) -> torch.Tensor:
            self.model(X).square().sum().backward()
            self.sums.add_(1)
            gradient = self.model[0].weight.grad  # type: ignore[index]
            return (self.model[0].weight.detach() * gradient).sum(1).abs()  # type: ignore[index]

    model = network()
    assert pk.prune(model, X, importance=Loss(model)).report.pruned == {"0": (8, 4)}


def test_a_criterion_that_trains_the_norms_is_stopped() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).train()
    before = State.of(model)

    def runs(group: pk.Group) -> torch.Tensor:
        return model(X).sum() + torch.zeros(group.size())

    with pytest.raises(pk.PluginError, match=r"writes to 1\.(running_mean|num_batches_tracked)"):
        pk.prune(model, X, importance=runs)
    before.check(model)

    def sets_mode(group: pk.Group) -> torch.Tensor:
        model.eval()
        return torch.ones(group.size())

    with pytest.raises(pk.PluginError, match="it sets training to False"):
        pk.prune(model, X, importance=sets_mode)
    before.check(model)


def test_a_criterion_without_data_is_told_what_it_lacks(install: Install) -> None:
    broken, model = install(SOURCE), network()
    criterion = broken.module.Needs()
    criterion.needs = ("moments",)
    with pytest.raises(pk.ArgumentError, match=r"The criterion has no statistics\.[\s\S]*Needs[\s\S]*calibration="):
        pk.prune(model, X, importance=criterion, registry=broken.registry)
    criterion = broken.registry.make("prunekit_importance", "needs_fisher")
    with pytest.raises(pk.ArgumentError, match="give calibration data: prune") as caught:
        pk.prune(model, X, importance=criterion, registry=broken.registry)
    assert caught.value.where == (f"criterion 'needs_fisher', from broken:point ({broken.site('class NeedsFisher')})")


def score(group: pk.Group) -> torch.Tensor:
    return torch.ones(group.size())


class Scores:
    def __call__(self, group: pk.Group) -> torch.Tensor:
        return torch.ones(group.size())


class Powered(Scores):
    def __init__(self, power: int) -> None:
        self.power = power


def set_up(settings: object) -> Scores:
    return Scores()


FUNCTION = "register the class, or a function that returns a criterion"


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (score, FUNCTION),
        (Scores(), FUNCTION),
        (Powered, "give the arguments of its constructor defaults"),
        (set_up, "declare settings with prunekit_settings, and take them as a keyword-only argument: *, settings"),
    ],
)
def test_what_cannot_be_called_for_a_criterion_is_told_how_to_register_it(value: Any, hint: str) -> None:
    own = SimpleNamespace(
        hook=plugin.hookimpl(lambda: {"mine": value}, specname="prunekit_importance"),
    )
    with pytest.raises(pk.PluginError) as caught:
        pk.prune(network(), X, importance="mine", registry=pk.Registry(extra={"own": own}))
    assert caught.value.headline == "A criterion can't be made."
    assert "owners.py" not in caught.value.why
    assert caught.value.hint.partition(";")[0] == hint
    with pytest.raises(AssertionError, match=re.escape(f"; {hint}")):
        check_criterion(value)


def test_a_compensator_that_is_registered_as_it_is_is_told_to_be_made() -> None:
    def repairs(repair: plugin.Repair) -> None: ...

    own = SimpleNamespace(hook=plugin.hookimpl(lambda: {"mine": repairs}, specname="prunekit_compensators"))
    with pytest.raises(pk.PluginError, match="what to do: register the class, or a function that returns a compensat"):
        pk.prune(network(), X, calibration=[X], compensation="mine", registry=pk.Registry(extra={"own": own}))


# -- the command line

TOY = ("tests.cli.toys:perceptron", "--input", "2,4")


@pytest.mark.parametrize("name", ["raises", "unmade", "halves", "mask"])
def test_the_command_line_says_the_same(
    name: str, install: Install, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    broken, out = install(SOURCE), tmp_path / "small.safetensors"
    assert main(["prune", *TOY, "--ratio", "0.5", "--importance", name, "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"{CASES[name].headline}\n  where: criterion {name!r}, from broken:point ({broken.path}:")
    assert "until then, leave the plugin out: PRUNEKIT_BLOCK=broken:point" in said
    assert "Traceback" not in said
    assert not out.exists()


def test_a_command_of_a_plugin_that_raises(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    broken = install(SOURCE)
    assert main(["greet"]) == 1
    assert capsys.readouterr().err == (
        "A command failed.\n"
        f"  where: command 'greet', from broken:point ({broken.site('def greet')})\n"
        f"  why: IndexError: list index out of range ({broken.site('# greet$')})\n"
        "  what to do: correct it; until then, leave the plugin out: PRUNEKIT_BLOCK=broken:point\n"
    )


def test_no_traceback_reaches_the_terminal(install: Install, tmp_path: Path) -> None:
    install(SOURCE)
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(root)])}
    command = [sys.executable, "-c", "import sys; from prunekit_plugins.cli.entry import main; sys.exit(main())"]
    words = ["prune", *TOY, "--ratio", "0.5", "--importance", "raises"]
    ended = subprocess.run(
        [*command, *words], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("A criterion failed.\n  where: criterion 'raises', from broken:point (")
    assert "Traceback" not in ended.stdout + ended.stderr


LEAVES = """
from prunekit import plugin
from torch import nn


def leaves(*args, **kwargs):
    raise REASON  # leaves


@plugin.hookimpl
def prunekit_importance():
    return {"unmade": leaves, "leaves": lambda: leaves}


@plugin.hookimpl
def prunekit_schedules():
    return {"leaves": leaves}


@plugin.hookimpl
def prunekit_allocators():
    return {"leaves": leaves}


@plugin.hookimpl
def prunekit_compensators():
    return {"leaves": lambda: leaves}


@plugin.hookimpl
def prunekit_budgets():
    return {"leaves": leaves}


@plugin.hookimpl
def prunekit_weights():
    return {"leaves": leaves}


@plugin.hookimpl
def prunekit_replacements():
    return {"leaves": plugin.Replacement("leaves", nn.Tanh, leaves)}
"""
EXITS: dict[str, Callable[[nn.Module, pk.Registry], object]] = {
    "criterion that can't be made": scored("unmade"),
    "criterion": scored("leaves"),
    "schedule": scheduled("leaves"),
    "allocator": allocated("leaves"),
    "compensator": repaired("leaves"),
    "cost model": lambda model, registry: pk.prune(model, X, target={"leaves": 0.5}, registry=registry),
    "form of weights": opened("leaves"),
    "replacement": lambda model, registry: pk.prune(nn.Sequential(*model, nn.Tanh()), X, registry=registry),
}


@pytest.mark.parametrize("name", EXITS)
def test_an_object_that_ends_the_program_is_an_error_of_its_plugin(name: str, install: Install) -> None:
    broken, model = install(LEAVES.replace("REASON", "SystemExit(4)")), network()
    before = State.of(model)
    with pytest.raises(pk.PluginError) as caught:
        EXITS[name](model, broken.registry)
    before.check(model)
    assert "from broken:point" in caught.value.where
    assert caught.value.why == f"SystemExit: 4 ({broken.site('# leaves')})"
    assert type(caught.value.__cause__) is SystemExit


@pytest.mark.parametrize("name", EXITS)
def test_an_interrupt_is_no_error_of_a_plugin(name: str, install: Install) -> None:
    source = LEAVES.replace("REASON", "KeyboardInterrupt")
    if name != "cost model":  # previews, which nobody interrupts, ask for it as well
        source, _, rest = source.partition("@plugin.hookimpl\ndef prunekit_budgets")
        source += rest.partition("\n\n\n")[2]
    broken = install(source)
    with pytest.raises(KeyboardInterrupt):
        EXITS[name](network(), broken.registry)


def test_a_rule_that_ends_the_program_pins_what_it_is_for(install: Install) -> None:
    source = "from prunekit import plugin\n\n\ndef leaves(call):\n    raise SystemExit(4)  # leaves\n\n\n"
    hook = "@plugin.hookimpl\ndef prunekit_op_rules():\n    return {'aten::relu': leaves}\n"
    broken = install(source + hook)
    (gap,) = pk.Graph.of(network(), X, registry=broken.registry).report().not_understood
    assert f"its rule raised SystemExit: 4 ({broken.site('# leaves')})" in gap


def test_the_kit_fails_what_ends_the_program(install: Install) -> None:
    broken = install(LEAVES.replace("REASON", "SystemExit(4)"))
    with pytest.raises(AssertionError) as caught:
        check_plugin("broken", registry=broken.registry)
    failed = str(caught.value).splitlines()
    assert {line.split(":")[0] for line in failed} == {
        "prunekit_importance unmade",
        "prunekit_importance leaves",
        "prunekit_schedules leaves",
        "prunekit_allocators leaves",
        "prunekit_compensators leaves",
        "prunekit_budgets leaves",
    }
    assert all(f"SystemExit: 4 ({broken.site('# leaves')})" in line for line in failed)


DECLINES = """
from prunekit import plugin
from torch import nn


def declines(module):
    return None


class Picky(nn.Tanh):
    def forward(self, x):
        assert False


@plugin.hookimpl
def prunekit_replacements():
    return {
        "tanh": plugin.Replacement("tanh", nn.Tanh, declines),
        "picky": plugin.Replacement("picky", Picky, declines),
    }
"""


def test_a_replacement_that_converts_nothing_is_told(install: Install) -> None:
    broken = install(DECLINES)
    where = f"from broken:point ({broken.site('def declines')}) returned None for"
    result = pk.prune(nn.Sequential(*network(), nn.Tanh(), nn.Tanh()), X, registry=broken.registry)
    assert result.report.pruned == {"0": (8, 4)}
    (note,) = (note for note in result.report.notes if "returned None" in note)
    assert note == f"replacement 'tanh', {where} 3 and 1 more: what isn't converted stays"
    with pytest.raises(pk.RecordingError) as caught:
        pk.prune(nn.Sequential(*network(), broken.module.Picky()), X, registry=broken.registry)
    assert caught.value.why == f"AssertionError: ; replacement 'picky', {where} 3: what isn't converted stays"


def test_where_a_rule_leaves_nothing_to_prune_its_plugin_is_named(install: Install) -> None:
    broken = install(BREAKS)
    with pytest.raises(pk.NothingToPruneError) as caught:
        pk.prune(network(), X, registry=broken.registry)
    said = f"its rule raised ZeroDivisionError: division by zero ({broken.site('1 / 0')}) (rule of broken:point in "
    assert f"not understood: aten::relu in 1: {said}{broken.site('def breaks')}; " in caught.value.why
    assert "without it: PRUNEKIT_BLOCK=broken:point)" in caught.value.why


def test_a_criterion_that_says_nothing_is_named(install: Install) -> None:
    broken = install(BREAKS.replace("aten::relu", "aten::nothing_like_it"))
    with pytest.raises(pk.NothingToPruneError) as caught:
        pk.prune(network(), X, importance="silent", registry=broken.registry)
    whose = f"criterion 'silent', from broken:point ({broken.site('def silent')})"
    assert caught.value.why.startswith(f"0: the criterion has nothing to say about it ({whose})")


BREAKS = """
from prunekit import plugin


def breaks(call):
    return 1 / 0


@plugin.hookimpl
def prunekit_op_rules():
    return {"aten::relu": breaks}


def silent(group):
    return None


@plugin.hookimpl
def prunekit_importance():
    return {"silent": lambda: silent}
"""
