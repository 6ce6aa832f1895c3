"""A default device (``torch.set_default_device``) is the model's affair: prunekit's own tensors say where they lie.

The default is the meta device here, which every machine has and whose tensors fit nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_plugins.budgets.timetable import Timetable
from prunekit_plugins.pruners import BNScalePruner, GroupNormPruner, GrowingRegPruner
from tests.models import Encoder, Residual
from tests.plugins.preparing import PREPARE
from tests.plugins.test_kit import names

SEEDED = torch.Generator().manual_seed(0)
PICTURES = torch.randn(12, 3, 8, 8, generator=SEEDED, dtype=torch.float64)
TOKENS = torch.randn(12, 6, 10, generator=SEEDED, dtype=torch.float64)


@pytest.fixture
def elsewhere() -> Iterator[Callable[[Callable[[], Any]], Any]]:
    """Runs something with another default device."""

    def run(work: Callable[[], Any]) -> Any:
        torch.set_default_device("meta")
        try:
            return work()
        finally:
            torch.set_default_device(None)

    yield run
    torch.set_default_device(None)


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build().double().eval()


def same(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def makers(pruner: type[pk.BasePruner]) -> Callable[[nn.Module, torch.Tensor], None]:
    def train(model: nn.Module, x: torch.Tensor) -> None:
        owner: Any = pruner(model, x[:2], reg=0.05)
        for _ in range(2):
            model(x).square().mean().backward()
            owner.regularize(model)
            owner.update_regularizer()
        for parameter in model.parameters():
            parameter.data += parameter.grad

    return train


WAYS: dict[str, Callable[[nn.Module, torch.Tensor], Any]] = {
    "ratio": lambda model, x: pk.prune(model, x[:2], 0.5),
    "global": lambda model, x: pk.prune(model, x[:2], 0.4, global_pruning=True),
    "round_to": lambda model, x: pk.prune(model, x[:2], 0.4, round_to=4),
    "target": lambda model, x: pk.prune(model, x[:2], target={"macs": 0.5}),
    "memory": lambda model, x: pk.prune(model, x[:2], target={"memory": 0.7}),
    "greedy": lambda model, x: pk.prune(model, x[:2], target={"params": 0.5}, allocation="greedy"),
    "dp": lambda model, x: pk.prune(model, x[:2], target={"params": 0.5}, allocation="dp"),
    "calibrated": lambda model, x: pk.prune(model, x[:2], target={"macs": 0.6}, calibration=x.split(4)),
    "measured dp": lambda model, x: pk.prune(
        model, x[:2], target={"macs": 0.6}, calibration=x.split(4), allocation="dp", stages=2
    ),
    "group norm": makers(GroupNormPruner),
    "growing": makers(GrowingRegPruner),
    "bn scale": makers(BNScalePruner),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("build", "x"), [(Residual, PICTURES), (Encoder, TOKENS)], ids=["residual", "encoder"])
def test_the_answer_is_the_same(build: Callable[[], nn.Module], x: torch.Tensor, way: str, elsewhere: Any) -> None:
    if build is Encoder and way == "bn scale":
        pytest.skip("it has no batch norm")
    expected, found, untouched = seeded(build), seeded(build), seeded(build)
    WAYS[way](expected, x)
    elsewhere(lambda: WAYS[way](found, x))
    assert same(expected, found)
    assert not same(expected, untouched)


OF_BRANCHES = {
    "block_influence", "branch_residual", "gate_fisher", "gate_taylor", "output_change", "relative_energy",
}  # fmt: skip
"""Criteria that have nothing to say about units."""
OF_EXPERTS = {"expert_frequency", "expert_reconstruction", "reap", "rerouting"}
"""Criteria that have nothing to say where there are no experts."""


@pytest.mark.parametrize("criterion", sorted({*names("prunekit_importance")} - OF_BRANCHES - OF_EXPERTS))
def test_every_criterion(criterion: str, elsewhere: Any) -> None:
    def scored() -> dict[str, torch.Tensor | None]:
        model = seeded_model
        importance = pk.default_registry().named("prunekit_importance", criterion)()
        graph = pk.DependencyGraph().build_dependency(model, PICTURES[:2])
        if criterion in PREPARE:
            PREPARE[criterion](importance, model, PICTURES)
        torch.manual_seed(0)
        found = {group.name: importance(group) for group in graph.get_all_groups()}
        model.zero_grad()
        return found

    seeded_model = seeded(Residual)
    expected, found = scored(), elsewhere(scored)
    assert any(values is not None for values in expected.values())
    for name, values in expected.items():
        assert (values is None) == (found[name] is None), name
        assert values is None or torch.equal(values, found[name]), name


def test_proofs_and_masks(elsewhere: Any) -> None:
    original, model = seeded(Encoder), seeded(Encoder)
    plan = pk.prune(model, TOKENS[:2], 0.5).plan
    check = elsewhere(lambda: pk.check_exact(original, model, plan, TOKENS[:2]))
    assert check
    assert check.error == pk.check_exact(original, model, plan, TOKENS[:2]).error
    assert same(elsewhere(lambda: plan.mask(original)), plan.mask(original))


def test_checkpoints(tmp_path: Path, elsewhere: Any) -> None:
    model = seeded(Residual)
    pk.save(model, tmp_path / "dense.safetensors")
    plan = pk.prune(model, PICTURES[:2], 0.5).plan
    small, loaded, statistics = tmp_path / "small.safetensors", seeded(Residual), tmp_path / "s.safetensors"

    def work() -> pk.Statistics:
        pk.prune_checkpoint(tmp_path / "dense.safetensors", small, plan)
        pk.load(loaded, small)
        pk.calibrate(model, [PICTURES]).save(statistics)
        return pk.Statistics.load(statistics)

    again = elsewhere(work)
    assert same(loaded, model)
    for name, seen in pk.calibrate(model, [PICTURES]).sites.items():
        assert torch.equal(again.sites[name].moments.mean, seen.moments.mean)


def test_operations_are_run_where_the_model_is(elsewhere: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each is said to take as long as its result has elements: no time is looked at."""

    def elements(self: Timetable, run: Callable[[], Any]) -> float:
        result = run()
        assert result.device.type == "cpu"
        return float(result.numel())

    monkeypatch.setattr(Timetable, "_time", elements)
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path))
    model = seeded(Residual)
    result = elsewhere(lambda: pk.prune(model, PICTURES[:2], target={"latency": 0.7}))
    assert result.plan.cuts
    assert all(parameter.device.type == "cpu" for parameter in result.model.parameters())


def test_the_model_s_own_tensors_follow_the_default() -> None:
    """What a forward makes lies on the default device: here that of the model, which is no CPU."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.up, self.down = nn.Embedding(9, 6), nn.Linear(6, 8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.down(self.up(x + self.embed(torch.arange(x.shape[1]))).relu())
            return out

    with torch.device("meta"):
        model, x = Positions(), torch.empty(2, 5, 6)
        result = pk.prune(model, x, 0.5, importance="random")
    assert result.model.up.weight.shape == (4, 6)
