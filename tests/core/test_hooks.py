"""Every hook, through a plugin: what it brings is found, and used where it is for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit import plugin
from prunekit.testing import Outcome, check_plugin
from prunekit_plugins.cli.app import run
from tests.models import Chain

EXAMPLE = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def registry_of(hook: str, entries: dict[Any, Any]) -> pk.Registry:
    return pk.Registry(extra={"own": SimpleNamespace(implementation=plugin.hookimpl(lambda: entries, specname=hook))})


def chain() -> Chain:
    torch.manual_seed(0)
    return Chain(4, 8, 3)


def op_rules() -> None:
    def stays(call: plugin.OpCall) -> list[plugin.Axis]:
        call.pin(call["self"].axes, "the plugin says so")
        return list(call["self"].axes)

    registry = registry_of("prunekit_op_rules", {"aten::relu": stays})
    with pytest.raises(pk.NothingToPruneError, match="the plugin says so"):
        pk.prune(chain(), EXAMPLE, registry=registry)


def layer_types() -> None:
    class Wide(nn.Linear):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__(inputs, outputs)
            self.doubled = 2 * outputs

    kind = plugin.LayerType(
        "wide",
        attributes=lambda module, resizing: {
            "doubled": 2 * resizing.size("weight", 0),
            "in_features": resizing.size("weight", 1),
            "out_features": resizing.size("weight", 0),
        },
    )
    model = nn.Sequential(Wide(4, 8), nn.Linear(8, 3))
    pk.prune(model, EXAMPLE, 0.5, registry=registry_of("prunekit_layer_types", {Wide: kind}))
    assert (model[0].doubled, model[0].out_features) == (8, 4)


def importance() -> None:
    registry = registry_of("prunekit_importance", {"first": lambda: lambda g: -torch.arange(g.size()).float()})
    assert pk.prune(chain(), EXAMPLE, importance="first", registry=registry).plan.cuts[0].kept == (0, 1, 2, 3)


def regularizers() -> None:
    class Ones:
        def __init__(self, groups: Callable[[], Iterable[pk.Group]]) -> None:
            self.groups = groups

        def refresh(self) -> None:
            pass

        def regularize(self) -> None:
            for view in next(iter(self.groups())).views():
                view.tensor.grad = torch.ones_like(view.tensor)

    model = chain()
    registry = registry_of("prunekit_regularizers", {"ones": Ones})
    graph = pk.DependencyGraph(registry).build_dependency(model, EXAMPLE)
    regularizer = registry.named("prunekit_regularizers", "ones")(graph.get_all_groups)
    regularizer.regularize()
    assert all(parameter.grad is not None for parameter in model.layers[0].parameters())


def schedules() -> None:
    registry = registry_of("prunekit_schedules", {"late": lambda ratio, steps: [*[0.0] * steps, ratio]})
    model = chain()
    pruner = pk.BasePruner(
        model, EXAMPLE, iterative_steps=2, iterative_pruning_ratio_scheduler="late", registry=registry
    )
    widths = []
    for _ in range(2):
        pruner.step()
        widths.append(model.layers[0].out_features)
    assert widths == [8, 4]


def pruners() -> None:
    class Gentle(pk.BasePruner):
        pass

    registry = registry_of("prunekit_pruners", {"gentle": Gentle})
    assert registry.named("prunekit_pruners", "gentle") is Gentle
    model = chain()
    registry.named("prunekit_pruners", "gentle")(model, EXAMPLE, pruning_ratio=0.25, registry=registry).step()
    assert model.layers[0].out_features == 6


def budgets() -> None:
    def units(analysis: plugin.Analysis, kept: plugin.Kept) -> float:
        return float(sum(len(kept.get(name, range(group.size))) for name, group in analysis.groups.items()))

    model = chain()
    pk.prune(model, EXAMPLE, target={"units": 3}, registry=registry_of("prunekit_budgets", {"units": units}))
    assert model.layers[0].out_features == 3


def compensators() -> None:
    model = chain()
    before = model(EXAMPLE).detach()
    written = []

    def centre() -> Callable[[plugin.Repair], None]:
        def centring(repair: plugin.Repair) -> None:
            with pytest.raises(pk.PluginError, match="A compensator gave values that don't fit"):
                repair.write("layers.1.bias", torch.zeros(2))
            missing = (before - repair.module(EXAMPLE)).mean(0)
            written.append(repair.values("layers.1.bias") + missing)
            repair.write("layers.1.bias", written[0])

        return centring

    registry = registry_of("prunekit_compensators", {"centre": centre})
    pk.prune(model, EXAMPLE, calibration=[EXAMPLE], compensation="centre", registry=registry)
    assert torch.equal(model.layers[1].bias, written[0])
    assert torch.allclose(model(EXAMPLE).mean(0), before.mean(0), atol=1e-6)


def replacements() -> None:
    class Square(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(width))
            self.text = str(width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert self.text == str(x.shape[-1])
            return x * self.gain

    class Free(nn.Module):
        def __init__(self, source: Square) -> None:
            super().__init__()
            self.gain = source.gain

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.gain

    model = nn.Sequential(nn.Linear(4, 8), Square(8), nn.Linear(8, 3))
    registry = registry_of("prunekit_replacements", {"free": plugin.Replacement("free", Square, Free)})
    gain = model[1].gain
    plan = pk.prune(model, EXAMPLE, registry=registry).plan
    assert type(model[1]) is Free
    assert model[1].gain is gain
    assert [swap.replacement for swap in plan.swaps] == ["free"]


def allocators() -> None:
    seen = []

    def smallest(problem: plugin.Problem) -> list[int]:
        seen.append(len(problem.choices))
        return [len(choice.options) - 1 for choice in problem.choices]

    model = chain()
    registry = registry_of("prunekit_allocators", {"smallest": smallest})
    pk.prune(model, EXAMPLE, target={"params": 0.9}, allocation="smallest", registry=registry)
    assert seen == [1]
    assert model.layers[0].out_features == 1


def weights() -> None:
    opened = []

    class Ascending:
        def __init__(self, path: str, model: nn.Module) -> None:
            opened.append(path)

        def __contains__(self, name: str) -> bool:
            return True

        def dtype(self, name: str) -> torch.dtype:
            return torch.float32

        def names(self, name: str) -> tuple[str, ...]:
            return (name,)

        def read(self, name: str, plan: pk.Plan) -> torch.Tensor:
            return torch.arange(8.0)[:, None].expand(8, 4).clone() if name.endswith("0.weight") else torch.ones(3, 8)

    with torch.device("meta"):
        model = Chain(4, 8, 3)
    registry = registry_of("prunekit_weights", {"mine": Ascending})
    plan = pk.prune(model, EXAMPLE.to("meta"), 0.5, weights="x.mine", registry=registry).plan
    assert opened == ["x.mine"]
    assert list(plan.kept.values()) == [(4, 5, 6, 7)]


def commands() -> None:
    called = []

    def greet(name: str) -> None:
        """Greet."""
        called.append(name)

    assert run(["greet", "you"], registry_of("prunekit_commands", {"greet": greet})) == 0
    assert called == ["you"]


def serving_profiles() -> None:
    engine = plugin.ServingEngine(lambda *given: plugin.ServingProfile(round_to=3, notes=("threes",)), "1.0")
    registry = registry_of("prunekit_serving_profiles", {"mine": engine})
    result = pk.prune(chain(), EXAMPLE, 0.5, serve="mine", registry=registry)
    assert len(result.plan.cuts[0].kept) == 3
    assert result.report.notes == ("threes",)


def checks() -> None:
    own = SimpleNamespace(
        one=plugin.hookimpl(lambda: {"flat": lambda ratio, steps: [0.0] * steps}, specname="prunekit_schedules"),
        two=plugin.hookimpl(lambda: {("prunekit_schedules", "flat"): seen.append}, specname="prunekit_checks"),
    )
    seen: list[pk.Registry] = []
    registry = pk.Registry(extra={"own": own})
    (checked,) = check_plugin("own", registry=registry)
    assert (seen, checked.outcome) == ([registry], Outcome.PASSED)


def settings() -> None:
    @attrs.frozen
    class Late:
        steps: int = 1

    def late(ratio: float, steps: int, *, settings: Late) -> list[float]:
        return [*[0.0] * settings.steps, *[ratio] * (steps + 1 - settings.steps)]

    own = {"prunekit_settings": {"late": Late}, "prunekit_schedules": {"late": late}}
    hooks = {hook: plugin.hookimpl(lambda entries=entries: entries, specname=hook) for hook, entries in own.items()}
    config = plugin.Config.of({"plugin": {"late": {"steps": 2}}}, Path("prunekit.toml"))
    registry = pk.Registry(extra={"own": SimpleNamespace(**hooks)}, config=config)
    assert registry.named("prunekit_schedules", "late")(0.5, 3) == [0, 0, 0.5, 0.5]
    assert registry.settings("late") == Late(2)


USES: dict[str, Callable[[], None]] = {
    "prunekit_op_rules": op_rules,
    "prunekit_layer_types": layer_types,
    "prunekit_importance": importance,
    "prunekit_regularizers": regularizers,
    "prunekit_schedules": schedules,
    "prunekit_pruners": pruners,
    "prunekit_budgets": budgets,
    "prunekit_compensators": compensators,
    "prunekit_replacements": replacements,
    "prunekit_allocators": allocators,
    "prunekit_weights": weights,
    "prunekit_commands": commands,
    "prunekit_serving_profiles": serving_profiles,
    "prunekit_checks": checks,
    "prunekit_settings": settings,
}


@pytest.mark.parametrize("hook", USES)
def test_what_a_plugin_brings_is_used(hook: str) -> None:
    USES[hook]()


@pytest.mark.parametrize("hook", USES)
def test_the_higher_rank_wins_and_none_of_it_stays_elsewhere(hook: str) -> None:
    table = pk.default_registry().entries(hook)
    key, entry = next(iter(table.items()))
    found = registry_of(hook, {key: entry.value}).entries(hook)[key]
    assert (found.owner.name, found.overrides) == ("own", (entry.owner.name,))
    assert pk.default_registry().entries(hook)[key].owner == entry.owner
    assert entry.owner.distribution == "prunekit"
