"""Each check of the kit fails on what is wrong, in one line that says what; what is right passes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch
import typer
from torch import nn

import prunekit as pk
from prunekit import plugin, testing
from prunekit.testing import (
    check_allocator,
    check_command,
    check_compensator,
    check_cost,
    check_criterion,
    check_layer_type,
    check_pruner,
    check_regularizer,
    check_replacement,
    check_rule,
    check_schedule,
    check_serving_profile,
    check_weights,
    sample,
)


@pytest.mark.parametrize(
    ("check", "words"),
    [
        (check_criterion, "a class or function that makes a criterion"),
        (check_regularizer, "a class or function that makes a regularizer"),
        (check_compensator, "a class or function that makes a compensator"),
        (check_pruner, "a class or function that makes a pruner"),
        (check_cost, "a function (analysis, kept) -> float"),
        (check_schedule, "a function (ratio, steps) -> [0, ..., ratio]"),
        (check_allocator, "a function (Problem) -> picked options"),
        (check_serving_profile, "a function of a model that returns a ServingProfile"),
        (check_command, "a function with typer annotations"),
        (lambda thing: check_weights(thing, print), "a function (path, model) -> weights"),
        (lambda thing: check_layer_type(thing, sample(2, 3)), "a layer"),
        (lambda thing: check_replacement(thing, nn.Tanh(), sample(2, 3)), "a Replacement"),
        (lambda thing: check_rule(thing, [sample(2, 3)]), "a function of some tensors"),
        (lambda thing: check_rule(torch.relu, thing), "a list of tensors"),
        (lambda thing: check_layer_type(nn.Linear(3, 2), thing), "a list of tensors"),
    ],
)
def test_what_is_no_argument_of_a_check_is_told(check: Callable[[Any], Any], words: str) -> None:
    with pytest.raises(AssertionError) as caught:
        check(5)
    assert f" takes {words}, not " in str(caught.value)
    assert str(caught.value).endswith(("not 5", "not 'int'"))


# -- criteria


def rows(group: pk.Group) -> torch.Tensor:
    found = [view.per_unit(view.slices(view.values()).abs().sum(1), group.size()) for view in group.views()]
    return torch.stack(found).sum(0)


def spoils(what: Callable[[pk.Group], Any]) -> Callable[[], Any]:
    """A criterion that does something to the model while it scores."""

    def score(group: pk.Group) -> torch.Tensor:
        scores = rows(group)
        what(group)
        return scores

    return lambda: score


class Statistical:
    """Right: the mean of what the consumers read, by unit."""

    needs: Sequence[str] = ("moments",)

    def __init__(self) -> None:
        self.statistics: plugin.Statistics | None = None

    def __call__(self, group: pk.Group) -> torch.Tensor | None:
        assert self.statistics is not None
        scores = None
        for view in group.views():
            for seen in self.statistics.of(f"{view.path}.{view.name}"):
                if view.role is pk.Role.IN and view.dim == (0 if seen.site.inputs_first else 1):
                    found = view.per_unit(seen.site.along(self.values(seen), view.dim), group.size())
                    scores = found if scores is None else scores + found
        return scores

    def values(self, seen: plugin.SiteStatistics) -> torch.Tensor:
        return seen.moments.mean


class Covariant(Statistical):
    """Right as well: reads covariances, or variances where there is no room for them."""

    needs = ("covariances",)
    otherwise = ("moments",)

    def values(self, seen: plugin.SiteStatistics) -> torch.Tensor:
        whole = seen.moments.covariance
        return seen.moments.variance if whole is None else whole.diagonal(dim1=-2, dim2=-1)


class Slopes(Statistical):
    """Right as well: the gradients of a loss."""

    needs = ("gradients",)

    def __call__(self, group: pk.Group) -> torch.Tensor | None:
        assert self.statistics is not None
        gradients = self.statistics.gradients
        found = [
            view.per_unit(view.slices(gradients[f"{view.path}.{view.name}"]).square().sum(1), group.size())
            for view in group.views()
            if f"{view.path}.{view.name}" in gradients
        ]
        return torch.stack(found).sum(0)


class NeedsWhatIsNot(Statistical):
    needs = ("covariance",)


class ForgetsOtherwise(Covariant):
    def values(self, seen: plugin.SiteStatistics) -> torch.Tensor:
        assert seen.moments.covariance is not None, "no covariances"
        return seen.moments.covariance.diagonal(dim1=-2, dim2=-1)


class NeedsText(Statistical):
    needs = "moments"


class NeverSet:
    needs = ("moments",)

    def __call__(self, group: pk.Group) -> torch.Tensor:
        return rows(group)


def halves_past_pytorch(group: pk.Group) -> None:
    values = group.views()[0].tensor.detach().numpy()
    values *= 0.5


@pytest.mark.parametrize("make", [Statistical, Covariant, Slopes])
def test_criteria_get_the_statistics_that_they_need(make: type[Statistical]) -> None:
    check_criterion(make)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            spoils(lambda group: group.views()[0].tensor.data.mul_(1.1)),
            "the criterion changes the values of stem.weight",
        ),
        (spoils(lambda group: group[0].dep.layer.requires_grad_(False)), "changes requires_grad of stem.weight"),
        (spoils(lambda group: group[0].dep.layer.register_forward_hook(print)), "changes the hooks of stem"),
        (spoils(halves_past_pytorch), "changes the values of stem.weight"),
        (spoils(lambda group: group[0].dep.layer.eval()), r"changes the mode of stem \(train or eval\)"),
        (spoils(lambda group: (rows(group).sum().requires_grad and None) or torch.rand(1)), "PyTorch's random numbers"),
        (
            spoils(lambda group: setattr(group.views()[0].tensor, "grad", torch.ones_like(group.views()[0].tensor))),
            "changes the gradient of stem.weight",
        ),
        (lambda: lambda group: rows(group).tolist(), "the criterion returns list, not a tensor"),
        (lambda: lambda group: rows(group).long(), "scores must be floating-point numbers, not torch.int64"),
        (lambda: lambda group: {}["no"], r"scoring the group raises KeyError: 'no' \(.*test_kit_broken.py:\d+\)"),
        (lambda: 3, "what makes a criterion, a callable on groups, not 3"),
        (rows, "making the criterion raises TypeError: rows.* missing 1 required positional argument: 'group'"),
        (NeedsWhatIsNot, "NeedsWhatIsNot needs 'covariance', which is no part of statistics: .*covariances"),
        (NeverSet, "NeverSet: it has needs but no attribute `statistics`"),
        (NeedsText, "needs is 'moments', not a list of names"),
        (ForgetsOtherwise, "no covariances"),
    ],
)
def test_wrong_criteria_fail(make: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_criterion(make)


# -- layer types


class Wide(nn.Module):
    """A linear map whose weight is ``[inputs, width]``, which the operation is given transposed."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.inputs, self.width = inputs, width
        self.weight = nn.Parameter(torch.randn(inputs, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight

    def extra_repr(self) -> str:
        return f"{self.inputs}, {self.width}"


def cut(layer: nn.Module, indices: Sequence[int], dim: int, attribute: str) -> nn.Module:
    size = layer.weight.shape[dim]
    gone = set(plugin.check_indices(indices, size, "Wide"))
    kept = torch.tensor([unit for unit in range(size) if unit not in gone])
    plugin.shrink_tensor(layer.weight, {dim: kept})
    setattr(layer, attribute, len(kept))
    return layer


def cut_width(layer: nn.Module, indices: Sequence[int]) -> nn.Module:
    return cut(layer, indices, 1, "width")


def cut_inputs(layer: nn.Module, indices: Sequence[int]) -> nn.Module:
    return cut(layer, indices, 0, "inputs")


def returns_nothing(layer: nn.Module, indices: Sequence[int]) -> Any:
    cut_width(layer, indices)


def along(dim: int) -> Any:
    return lambda module, layouts: layouts["weight"][dim]


def sizes(inputs: int, width: int) -> Any:
    return lambda module, resizing: {
        "inputs": resizing.size("weight", inputs),
        "width": resizing.size("weight", width),
    }


WIDE = plugin.LayerType(
    "wide",
    prune_out=cut_width,
    prune_in=cut_inputs,
    flat_out=along(1),
    flat_in=along(0),
    attributes=sizes(0, 1),
    roles={"weight": (pk.Role.IN, pk.Role.OUT)},
)


def registry_of(hook: str, entries: Mapping[Any, Any], **more: Any) -> pk.Registry:
    own = SimpleNamespace(hook=plugin.hookimpl(lambda: entries, specname=hook), **more)
    return pk.Registry(extra={"own": own})


def check_wide(kind: plugin.LayerType, layer: nn.Module | None = None) -> tuple[str, ...]:
    registry = registry_of("prunekit_layer_types", {Wide: kind})
    return check_layer_type(layer or Wide(4, 6), torch.randn(3, 4), registry=registry)


class Summed(Wide):
    """Its outputs are cumulated, so that none of them can leave."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).cumsum(-1)


def test_a_right_layer_type_passes() -> None:
    assert len(check_wide(WIDE)) == 2


SWAPPED = {"weight": (pk.Role.OUT, pk.Role.IN)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"roles": SWAPPED}, r"flat_in says that the inputs lie along weight\[0\], whose role is OUT"),
        (
            {"roles": SWAPPED, "prune_in": None, "flat_in": None},
            r"flat_out says that the outputs lie along weight\[1\], whose role is IN|are the roles swapped\?",
        ),
        (
            {"roles": SWAPPED, "prune_in": None, "flat_in": None, "prune_out": None, "flat_out": None},
            r"the units along weight\[0\] come in with the inputs and go no further, but the role there is OUT, not IN",
        ),
        ({"flat_in": along(1), "flat_out": along(0)}, r"outputs lie along weight\[0\], whose role is IN"),
        ({"prune_in": None, "flat_in": None, "flat_out": along(0)}, r"outputs lie along weight\[0\], whose role is IN"),
        ({"attributes": sizes(1, 0)}, "before pruning: wide.inputs is 4, its parameters say 6"),
        ({"flat_out": None}, "prune_out is declared without flat_out, so that nobody calls it"),
        ({"prune_in": None}, "flat_in is declared without prune_in, so that nobody calls it"),
        ({"prune_out": cut_inputs, "prune_in": cut_width}, r"cut_(inputs|width) (leaves|without)"),
        ({"prune_out": returns_nothing}, "returns_nothing takes a layer back, not None"),
        ({"roles": {"wieght": (pk.Role.IN, pk.Role.OUT)}}, "there is no parameter wieght"),
        (
            {"prune_out": lambda layer, indices: cut(layer, indices, 1, "widths")},
            r"leaves width at 6, the graph at 3|makes Wide",
        ),
    ],
)
def test_wrong_layer_types_fail(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_wide(attrs.evolve(WIDE, **changes))


def test_a_function_that_is_never_called_fails() -> None:
    with pytest.raises(AssertionError, match="prune_out was never called: none of the channels that flat_out numbers"):
        check_wide(WIDE, Summed(4, 6))


def test_a_dim_that_is_wrong_on_a_square_layer_is_found() -> None:
    with pytest.raises(AssertionError, match=r"leaves (inputs|width) at"):
        check_wide(attrs.evolve(WIDE, attributes=sizes(1, 0)), Wide(4, 4))


def test_a_layer_that_does_not_run_on_its_inputs() -> None:
    with pytest.raises(AssertionError, match="calling Wide with the inputs raises RuntimeError"):
        check_layer_type(Wide(5, 6), torch.randn(3, 4), registry=registry_of("prunekit_layer_types", {Wide: WIDE}))


# -- replacements


class Labelled(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.label = str(width)
        self.gain = nn.Parameter(torch.randn(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert self.label == str(x.shape[-1])
        return x * self.gain


class Free(nn.Module):
    def __init__(self, gain: nn.Parameter | None, factor: float = 1.0) -> None:
        super().__init__()
        self.gain, self.factor = gain, factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.gain is None else x * self.gain * self.factor


class Noisy(Free):
    """Another program in train mode."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + (1 if self.training else 0)


class TwoTensors(Free):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x), x


def forgets_itself(module: Any) -> Free:
    free = Free(module.gain)
    del module.gain
    return free


def check_free(convert: Callable[[Any], Any], module: nn.Module | None = None) -> tuple[str, ...]:
    return check_replacement(plugin.Replacement("free", Labelled, convert), module or Labelled(6), torch.randn(4, 6))


def test_a_right_replacement_passes() -> None:
    assert len(check_free(lambda module: Free(module.gain))) == 1


@pytest.mark.parametrize(
    ("convert", "message"),
    [
        (lambda module: Free(module.gain, 2.0), "free: in eval mode its outputs are not those of the module"),
        (lambda module: Noisy(module.gain), "free: in train mode its outputs are not those of the module"),
        (lambda module: TwoTensors(module.gain), "it returns 2 tensors, the module 1"),
        (lambda module: Free(nn.Parameter(module.gain.detach().clone())), "no objects of the module: gain"),
        (lambda module: Free(None), "the replacement lacks the parameters gain"),
        (lambda module: None, "convert returns None"),
        (lambda module: "free", "convert returns str, not a module"),
        (lambda module: module, "convert returns the module itself"),
        (forgets_itself, "convert changes the values of gain"),
        (lambda module: Free(module.gains), "convert raises AttributeError: .*gains"),
        (lambda module: torch.nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)), "no objects of the module"),
    ],
)
def test_wrong_replacements_fail(convert: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_free(convert)


def test_a_replacement_is_for_exactly_one_class() -> None:
    class Sub(Labelled):
        pass

    with pytest.raises(AssertionError, match="it replaces Labelled and no subclass, and the module is a Sub"):
        check_free(lambda module: Free(module.gain), Sub(6))


def test_a_replacement_that_can_not_shrink_either() -> None:
    class Stuck(Free):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.gain.view(2, 3).flatten().cumsum(0).diff(prepend=torch.zeros(1))

    with pytest.raises(AssertionError, match="free: no unit of the replacement can be removed"):
        check_free(lambda module: Stuck(module.gain))


# -- pruners


class Hasty(pk.BasePruner):
    def __init__(self, model: nn.Module, *args: Any, **options: Any) -> None:
        super().__init__(model, *args, **options)
        next(iter(model.parameters())).data.mul_(0.5)


class Idle(pk.BasePruner):
    def step(self, *args: Any, **options: Any) -> Any:
        return None


class Greedy(pk.BasePruner):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "pruning_ratio": 0.8})


class Deaf(pk.BasePruner):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "ignored_layers": None})


class Trains(pk.BasePruner):
    """Changes the weights that stay."""

    def step(self, *args: Any, **options: Any) -> Any:
        super().step(*args, **options)
        for parameter in self.model.parameters():
            parameter.data.mul_(0.9)


class Unsteady(pk.BasePruner):
    made = 0

    def __init__(self, *args: Any, **options: Any) -> None:
        Unsteady.made += 1
        sign = 1.0 if Unsteady.made % 3 else -1.0
        super().__init__(*args, **{**options, "importance": lambda group: sign * rows(group)})


class Fails(pk.BasePruner):
    def step(self, *args: Any, **options: Any) -> Any:
        raise ValueError("no")


def test_a_right_pruner_passes() -> None:
    check_pruner(pk.BasePruner)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Hasty, "making the pruner changes the values of stem.weight: the model must not be touched before step"),
        (Idle, "2 steps remove nothing"),
        (Greedy, "which is less than a ratio of 0.5 leaves"),
        (Deaf, r"ignored_layers=\[hidden\], but 2 of its 5 outputs are gone|ignored_layers"),
        (Trains, "the history leads to another model: .* has other values"),
        (Unsteady, "made anew, the pruner makes another model"),
        (Fails, r"step 1: step\(\) raises ValueError: no \(.*test_kit_broken.py:\d+\)"),
        (lambda model, inputs, **options: model, r"a pruner has step\(\), pruning_history\(\).*SmallNet hasn't"),
        (lambda model: None, "making the pruner raises TypeError"),
    ],
)
def test_wrong_pruners_fail(make: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_pruner(make)


# -- commands


def greets(name: str) -> None:
    """Say hello."""
    print(f"hello {name}")


def silent(name: str) -> None:
    print(name)


def leaves(name: str) -> None:
    """Leave."""
    sys.exit(0)


def stumbles(name: str) -> None:
    """Stumble."""
    raise ZeroDivisionError(name)


def refuses(name: str) -> None:
    """Refuse."""
    raise pk.ArgumentError("No.", where=name)


def unreadable(group: NoSuchType) -> None:  # noqa: F821  # as of a name that is imported for type checkers only
    """Take what nobody can type."""


def looks_up(context: typer.Context, name: str) -> None:
    """Say what is registered."""
    print(name in context.obj.entries("prunekit_importance"))


def test_a_right_command_passes() -> None:
    assert check_command(greets) == ""
    assert check_command(greets, ["you"]) == "hello you\n"
    assert check_command(looks_up, ["magnitude"], registry=pk.default_registry()) == "True\n"


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (silent, None, "the command has no docstring"),
        (leaves, ["a"], r"with a the command ends the program itself, with SystemExit\(0\)"),
        (stumbles, ["a"], r"with a the command raises ZeroDivisionError: a \(.*test_kit_broken.py:\d+\)"),
        (refuses, ["a"], "with a the command raises ArgumentError: No."),
        (greets, [], "with no arguments the command ends with exit code 2"),
        (unreadable, None, "reading the command's signature raises NameError: name 'NoSuchType' is not defined"),
    ],
)
def test_wrong_commands_fail(command: Any, arguments: list[str] | None, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_command(command, arguments)


# -- allocators


class Alternates:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self, problem: plugin.Problem) -> list[int]:
        self.count += 1
        return [*problem.smallest[:-1], problem.smallest[-1] - self.count % 2]


@pytest.mark.parametrize(
    ("allocator", "message"),
    [
        (lambda problem: None, "the allocator returns None, not a list with the number of an option for each choice"),
        (lambda problem: [0.0 for _ in problem.choices], "not a list with the number of an option"),
        (lambda problem: [0], "the allocator picks 1 options for 2 choices"),
        (lambda problem: [99 for _ in problem.choices], "the allocator picks option 99 of choice 0, which has"),
        (lambda problem: list(problem.whole), r"picks \[0, 0\], which costs .*; allowed is"),
        (lambda problem: list(problem.smallest), "the smallest option of every choice, whatever the budget"),
        (Alternates(), "and, asked again,"),
        (lambda problem: problem.nothing, "the allocator raises AttributeError"),
    ],
)
def test_wrong_allocators_fail(allocator: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_allocator(allocator)


# -- serving profiles


def zeroed(model: nn.Module, example: Any, registry: pk.Registry | None = None) -> plugin.ServingProfile:
    with torch.no_grad():
        next(model.parameters()).zero_()
    return plugin.ServingProfile()


def for_others(model: nn.Module, example: Any, registry: pk.Registry | None = None) -> plugin.ServingProfile:
    raise pk.ArgumentError("The engine is for others.")


ROUNDS = iter(range(1, 100))


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (lambda *given: {"uniform": True}, "it returns {'uniform': True}, not a ServingProfile"),
        (lambda *given: plugin.ServingProfile(round_to=next(ROUNDS)), "asked again, it returns another profile"),
        (lambda *given: given[3], "the serving profile raises IndexError"),
        (lambda *given: plugin.ServingProfile(round_to=64), "the network of the check isn't for the engine"),
        (zeroed, "it changes the model: the values of stem.weight"),
        (for_others, "give model="),
        (plugin.ServingEngine(lambda *given: plugin.ServingProfile()), "the engine says no version"),
    ],
)
def test_wrong_serving_profiles_fail(engine: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_serving_profile(engine)


def test_a_serving_profile_is_tried_on_the_model_that_is_given() -> None:
    model, example = nn.Sequential(nn.Linear(3, 128), nn.ReLU(), nn.Linear(128, 2)), torch.randn(1, 3)
    asks = plugin.ServingEngine(lambda *given: plugin.ServingProfile(round_to=64), "1.0")
    check_serving_profile(asks, model=model, example=example)
    with pytest.raises(AssertionError, match="the model isn't for the engine"):
        check_serving_profile(for_others, model=model, example=example)


# -- weights on disk


class Stored:
    """Right: what ``torch.save`` wrote."""

    def __init__(self, path: Path, model: nn.Module) -> None:
        self.values = torch.load(path, weights_only=True)

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def dtype(self, name: str) -> torch.dtype:
        found: torch.dtype = self.values[name].dtype
        return found

    def names(self, name: str) -> tuple[str, ...]:
        return (name,)

    def read(self, name: str, plan: pk.Plan) -> torch.Tensor:
        return self.cut(name, plan).clone()

    def cut(self, name: str, plan: pk.Plan) -> torch.Tensor:
        values = self.values[name]
        for cut in plan.parameters:
            if cut.parameter == name:
                values = plugin.select_positions(values, plan.positions(cut))
        return values


class Shares(Stored):
    def read(self, name: str, plan: pk.Plan) -> torch.Tensor:
        return self.values[name] if not plan.parameters else super().read(name, plan)


class Whole(Stored):
    def read(self, name: str, plan: pk.Plan) -> torch.Tensor:
        return self.values[name].clone()


class HasAll(Stored):
    def __contains__(self, name: str) -> bool:
        return True


class Rounds(Stored):
    def read(self, name: str, plan: pk.Plan) -> torch.Tensor:
        return super().read(name, plan).float()


class Fills(Stored):
    def __init__(self, path: Path, model: nn.Module) -> None:
        super().__init__(path, model)
        model.to_empty(device="cpu")


def write(path: Path, state: Mapping[str, torch.Tensor]) -> None:
    torch.save(dict(state), path)


def test_right_weights_pass() -> None:
    check_weights(Stored, write)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Shares, "stem.weight: what is read has no memory of its own"),
        (Whole, r"as a plan cuts it, shape \(6, 3, 3, 3\) is read, not \(3, 3, 3, 3\)"),
        (HasAll, "they hold a tensor that isn't there"),
        (Rounds, "stem.weight: torch.float32 is read, not torch.float64"),
        (Fills, "the model is no longer on the meta device"),
        (lambda path, model: {}, "weights answer `name in weights`, dtype, names and read; dict doesn't"),
        (lambda path: None, "opening the weights raises TypeError"),
    ],
)
def test_wrong_weights_fail(make: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_weights(make, write)


# -- the others


class NoRefresh:
    def __init__(self, groups: Any) -> None:
        pass

    def regularize(self) -> None:
        pass


def settling(
    change: Callable[[torch.Tensor], Any], offset: Any = None
) -> Callable[[], Callable[[plugin.Repair], None]]:
    """Makes a compensator that gives every consumer a changed weight."""

    def repairs(repair: plugin.Repair) -> None:
        for problem in repair.layers():
            repair.settle(problem, change(problem.weight), problem.offset if offset is None else offset)

    return lambda: repairs


def writing(name: str, values: Any) -> Callable[[], Callable[[plugin.Repair], None]]:
    """Makes a compensator that writes one tensor."""
    return lambda: lambda repair: repair.write(name, values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (settling(lambda weight: weight * float("nan")), "the compensator gives values that are not finite"),
        (
            settling(lambda weight: weight[:, :1]),
            r"on the weight of \S+\n  why: got shape \(1, 1, \d+\), it has the shape",
        ),
        (settling(lambda weight: weight.tolist()), "got list, it has the shape"),
        (
            settling(lambda weight: weight, torch.zeros(1, 1)),
            r"on the offset of \S+\n  why: got shape \(1, 1\), it has",
        ),
        (
            writing("stem.wieght", torch.zeros(3)),
            "there is no tensor 'stem.wieght'\n  what to do: did you mean 'stem.weight'",
        ),
        (writing("stem.weight", torch.zeros(3)), r"on stem.weight\n  why: got shape \(3,\), it has the shape \("),
    ],
)
def test_a_compensator_whose_values_do_not_fit_is_told(make: Callable[[], Any], message: str) -> None:
    with pytest.raises((AssertionError, pk.PluginError), match=message) as caught:
        check_compensator(make)
    if isinstance(caught.value, pk.PluginError):
        assert caught.value.headline == "A compensator gave values that don't fit."
        assert __file__ in caught.value.where
        assert caught.value.hint


@pytest.mark.parametrize(
    ("check", "thing", "message"),
    [
        (check_regularizer, NoRefresh, r"a regularizer has regularize\(\) and refresh\(\); NoRefresh hasn't"),
        (check_regularizer, lambda: None, "making the regularizer raises TypeError"),
        (check_compensator, lambda: 3, "what makes a compensator, a callable on a Repair, not 3"),
        (check_compensator, lambda: lambda repair: repair.nothing, "raises AttributeError|no attribute 'nothing'"),
        (check_cost, lambda analysis, kept: True, "the cost is True, not a number"),
        (check_cost, lambda analysis, kept: analysis.nothing, r"the cost model raises AttributeError: .*:\d+\)"),
        (check_schedule, lambda ratio, steps: None, r"schedule\(0.1, 1\) returns None, not a list of numbers"),
        (check_schedule, lambda ratio, steps: ["0", "1"], "not a list of numbers"),
        (check_schedule, lambda ratio: [], r"schedule\(0.1, 1\) raises TypeError"),
    ],
)
def test_what_has_the_wrong_type_is_told_in_one_line(check: Callable[[Any], None], thing: Any, message: str) -> None:
    with pytest.raises((AssertionError, pk.PluginError), match=message):
        check(thing)


def test_both_doors_of_the_kit_show_one_list() -> None:
    from prunekit_plugins import testing as inner

    assert testing.__all__ == inner.__all__ == sorted(inner.__all__)
    assert all(getattr(testing, name) is getattr(inner, name) for name in inner.__all__)
