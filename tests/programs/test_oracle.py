"""The oracles must be able to fail: one wrong index, in one parameter, is seen."""

from __future__ import annotations

import copy

import attrs
import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_core.modules.surgery import select_positions, tensor_at
from tests.programs.spec import Block
from tests.programs.trial import make, masked, relative

PROGRAMS = {
    "residual": ("pictures", (Block("conv", 2, 1), Block("batch_norm"), Block("residual", 0, 0, (Block("conv", 2),)))),
    "grouped": ("pictures", (Block("conv", 1, 1), Block("transposed", 1, 1), Block("depthwise"))),
    "glu": ("pictures", (Block("branches", 0, 0, (Block("conv", 1), Block("glu", 3, 1))), Block("prelu", 1))),
    "dense": ("pictures", (Block("dense", 0, 0, (Block("conv", 1),)), Block("squeeze", 2, 1), Block("scale"))),
    "attention": ("tokens", (Block("residual", 0, 0, (Block("norm"), Block("attention", 0, 0))), Block("gated", 2, 1))),
    "grouped queries": ("tokens", (Block("attention", 0, 6), Block("experts", 0, 1))),
    "shared": ("tokens", (Block("packed", 1), Block("tied", 2), Block("low_rank", 1))),
}


class Pruned:
    def __init__(self, name: str) -> None:
        self.original, self.x = make(*PROGRAMS[name], 0, 5)
        self.small = copy.deepcopy(self.original)
        self.plan = pk.BasePruner(self.small, self.x, "random").plan()
        self.plan.apply(self.small)

    def seen(self, wrong: nn.Module) -> tuple[bool, bool]:
        """Whether the library's check, and whether the masked original, tell that the network is wrong."""
        with torch.no_grad():
            error = relative(masked(self.original, wrong, self.plan)(self.x), wrong(self.x))
        return not pk.check_exact(self.original, wrong, self.plan, self.x), error > 1e-9


def shifted(positions: torch.Tensor, size: int) -> torch.Tensor | None:
    """Exchanges one kept position for a removed neighbour."""
    kept = set(positions.tolist())
    for place, position in enumerate(positions.tolist()):
        for other in (position - 1, position + 1):
            if 0 <= other < size and other not in kept:
                result = positions.clone()
                result[place] = other
                return result
    return None


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_right_network_passes(name: str) -> None:
    case = Pruned(name)
    assert case.plan.cuts
    assert case.seen(case.small) == (False, False)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_one_shifted_index_in_one_parameter_is_seen(name: str) -> None:
    """Weights and buffers only: a key's bias, for example, truly changes nothing behind a softmax."""
    case = Pruned(name)
    tried = 0
    for cut in case.plan.parameters:
        if cut.parameter.endswith("bias"):
            continue
        whole = tensor_at(case.original, cut.parameter).detach()
        factor = {r.parameter for r in case.plan.rescales}
        if cut.parameter in factor:
            continue
        positions = case.plan.positions(cut)
        for dim, kept in positions.items():
            moved = shifted(kept, cut.shape[dim])
            if moved is None:
                continue
            wrong = copy.deepcopy(case.small)
            tensor_at(wrong, cut.parameter).data.copy_(select_positions(whole, {**positions, dim: moved}))
            assert case.seen(wrong) == (True, True), f"{cut.parameter}, dim {dim}"
            tried += 1
    assert tried >= 3


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_another_unit_of_a_group_is_seen(name: str) -> None:
    """The same wrong unit everywhere: a sound network, but not the one that the plan says."""
    case = Pruned(name)
    tried = 0
    for place, cut in enumerate(case.plan.cuts):
        moved = shifted(torch.tensor(cut.kept), cut.size)
        if moved is None:
            continue
        cuts = list(case.plan.cuts)
        cuts[place] = attrs.evolve(cut, kept=tuple(sorted(moved.tolist())))
        other = attrs.evolve(case.plan, cuts=tuple(cuts))
        wrong = other.apply(copy.deepcopy(case.original))
        assert case.seen(wrong) == (True, True), cut.group
        assert pk.check_exact(case.original, wrong, other, case.x)
        tried += 1
    assert tried >= 1


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_trained_weight_is_seen(name: str) -> None:
    case = Pruned(name)
    wrong = copy.deepcopy(case.small)
    with torch.no_grad():
        next(wrong.parameters()).view(-1)[0] += 1e-3
    assert case.seen(wrong) == (True, True)


def test_zero_initialised_parameters_don_t_hide_an_error() -> None:
    """A scale of zeros makes every output alike; the check randomises it in both networks first."""
    case = Pruned("dense")
    for net in (case.original, case.small):
        for module in net.modules():
            if "weight" in module._parameters and module._parameters["weight"].dim() == 3:
                nn.init.zeros_(module._parameters["weight"])
    wrong = copy.deepcopy(case.small)
    cut = next(cut for cut in case.plan.parameters if cut.parameter == "stem.weight")
    positions = case.plan.positions(cut)
    moved = shifted(positions[0], cut.shape[0])
    assert moved is not None
    whole = tensor_at(case.original, "stem.weight").detach()
    tensor_at(wrong, "stem.weight").data.copy_(select_positions(whole, {**positions, 0: moved}))
    assert pk.check_exact(case.original, case.small, case.plan, case.x)
    assert not pk.check_exact(case.original, wrong, case.plan, case.x)
