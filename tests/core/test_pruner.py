"""The pruner: scopes, limits, steps, interactive mode, and the faults that must not come back."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_plugins.importance import GroupMagnitudeImportance, RandomImportance
from prunekit_plugins.measure import count_macs
from tests.models import Attention, Chain, Encoder, Residual

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def widths(model: nn.Module) -> list[int]:
    return [m.out_features for m in model.modules() if isinstance(m, nn.Linear)]


def chain(*sizes: int, seed: int = 0) -> Chain:
    torch.manual_seed(seed)
    return Chain(*sizes)


def test_local_keeps_the_largest_units_of_every_group() -> None:
    model = chain(4, 10, 6, 3)
    first, second = model.layers[0], model.layers[1]
    s = first.weight.square().sum(1) + second.weight.square().sum(0)
    best = sorted(torch.argsort(s, descending=True)[:5].tolist())
    expected = first.weight[best].clone()
    pruner = pk.BasePruner(model, torch.randn(1, 4), GroupMagnitudeImportance(group_reduction="sum"))
    assert pruner.step() is None
    assert widths(model) == [5, 3, 3]
    assert torch.equal(model.layers[0].weight, expected)
    assert pruner.graph.applied.kept["layers.0"] == tuple(best)


@pytest.mark.parametrize(
    ("size", "ratio", "left"), [(20, 0.9, 2), (10, 0.9, 1), (10, 0.1, 9), (64, 0.3, 44), (7, 0.5, 3)]
)
def test_count_is_exact_for_decimal_ratios(size: int, ratio: float, left: int) -> None:
    model = chain(4, size, 3)
    pk.BasePruner(model, torch.randn(1, 4), "magnitude", pruning_ratio=ratio).step()
    assert widths(model) == [left, 3]


@pytest.mark.parametrize("steps", [1, 2, 4, 5])
def test_many_steps_end_where_one_does(steps: int) -> None:
    model = chain(4, 40, 16, 3)
    pruner = pk.BasePruner(model, torch.randn(1, 4), "magnitude", pruning_ratio=0.5, iterative_steps=steps)
    for _ in range(steps + 2):  # further steps change nothing
        pruner.step()
    assert widths(model) == [20, 8, 3]


def test_steps_are_relative_to_the_original_size() -> None:
    model = chain(4, 8, 3)
    pruner = pk.BasePruner(model, torch.randn(1, 4), "magnitude", pruning_ratio=0.5, iterative_steps=4)
    seen = []
    for _ in range(4):
        pruner.step()
        seen.append(widths(model)[0])
    assert seen == [7, 6, 5, 4]


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("global_pruning", [False, True])
def test_max_pruning_ratio_holds(steps: int, global_pruning: bool) -> None:
    model = chain(4, 64, 64, 3)
    with torch.no_grad():
        model.layers[0].weight.mul_(1e-3)
        model.layers[0].bias.mul_(1e-3)
    pruner = pk.BasePruner(
        model,
        torch.randn(1, 4),
        GroupMagnitudeImportance(normalizer=None),
        pruning_ratio=0.6,
        max_pruning_ratio=0.7,
        iterative_steps=steps,
        global_pruning=global_pruning,
    )
    for _ in range(steps):
        pruner.step()
    assert min(widths(model)[:2]) >= 20  # ceil(64 * 0.3)
    assert sum(widths(model)[:2]) == (52 if global_pruning else 50)


def test_global_ranks_all_units_together() -> None:
    model = chain(4, 10, 10, 3)
    with torch.no_grad():
        model.layers[0].weight.fill_(1.0)
        model.layers[1].weight.fill_(1.0)
        model.layers[2].weight.fill_(0.01)
    pruner = pk.BasePruner(
        model, torch.randn(1, 4), GroupMagnitudeImportance(normalizer=None, group_reduction="gate"), global_pruning=True
    )
    pruner.step()
    # 10 of 20 units go, all from the second layer, whose consumer is small; one unit always stays
    assert widths(model) == [9, 1, 3]


def test_equal_scores_are_broken_by_position_not_all_together() -> None:
    model = chain(4, 10, 3)
    for p in model.parameters():
        p.data.fill_(1.0)
    for global_pruning in (False, True):
        pruner = pk.BasePruner(copy.deepcopy(model), torch.randn(1, 4), "magnitude", global_pruning=global_pruning)
        assert pruner.plan().kept == {"layers.0": (0, 1, 2, 3, 4)}


def test_round_to_goes_to_the_nearest_multiple_and_never_empties() -> None:
    model = chain(4, 40, 22, 6, 3)
    pk.BasePruner(model, torch.randn(1, 4), "magnitude", pruning_ratio=0.5, round_to=8).step()
    # 20 -> 24 (halves go up), 11 -> 8, 3 -> one multiple would be 8, more than the 6 there are
    assert widths(model) == [24, 8, 6, 3]


def test_round_to_respects_max_pruning_ratio() -> None:
    model = chain(4, 40, 3)
    pk.BasePruner(model, torch.randn(1, 4), "magnitude", pruning_ratio=0.55, max_pruning_ratio=0.55, round_to=16).step()
    assert widths(model)[0] == 32  # 18 would round to 16, below the 18 that must stay


def test_ignored_layers_by_module_name_type_and_container() -> None:
    for ignored in (lambda m: m.conv2, lambda m: "conv2", lambda m: m.bn2):
        model = Residual()
        pk.BasePruner(model, X, "magnitude", ignored_layers=[ignored(model)]).step()
        assert (model.conv2.out_channels, model.conv1.out_channels) == (12, 4)
    model = Residual()
    pruner = pk.BasePruner(model, X, "magnitude", ignored_layers=[nn.Conv2d])
    with pytest.raises(pk.NothingToPruneError, match="ignored layer"):
        pruner.step()
    two = nn.Sequential(chain(4, 10, 10), nn.ReLU(), chain(10, 10, 3))
    pk.BasePruner(two, torch.randn(1, 4), "magnitude", ignored_layers=[two[0]]).step()
    assert widths(two) == [10, 10, 5, 3]


def test_pruning_ratio_dict_overrides_and_scopes() -> None:
    model = chain(4, 10, 10, 10, 3)
    ratios = {model.layers[0]: 0.2, (model.layers[1], "layers.2"): 0.5}
    pruner = pk.BasePruner(
        model,
        torch.randn(1, 4),
        GroupMagnitudeImportance(normalizer=None),
        pruning_ratio=0.9,
        pruning_ratio_dict=ratios,
    )
    names = {scope.name: (scope.groups, scope.ratio, scope.ranked) for scope in pruner.scopes()}
    assert names == {
        "pruning_ratio_dict[0]": (("layers.0",), 0.2, False),
        "pruning_ratio_dict[1]": (("layers.1", "layers.2"), 0.5, True),
    }
    with torch.no_grad():
        model.layers[1].weight.mul_(100)
    pruner.step()
    assert widths(model) == [8, 9, 1, 3]


def test_ratio_zero_leaves_the_model_alone() -> None:
    model = chain(4, 10, 3)
    before = copy.deepcopy(model.state_dict())
    result = pk.prune(model, torch.randn(1, 4), 0.0)
    assert not result.plan.cuts
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_interactive_groups_can_be_pruned_changed_or_skipped() -> None:
    model = chain(4, 10, 10, 10, 3)
    pruner = pk.BasePruner(model, torch.randn(1, 4), "magnitude")
    for number, group in enumerate(pruner.step(interactive=True)):
        assert group.size() == 5
        if number == 0:
            group.prune()
        elif number == 1:
            group.prune(idxs=group[0].idxs[:2])
        # the third is skipped
    assert widths(model) == [5, 8, 10, 3]
    assert model(torch.randn(2, 4)).shape == (2, 3)


def test_interactive_equals_the_whole_step() -> None:
    torch.manual_seed(0)
    whole, single = Residual(), Residual()
    single.load_state_dict(whole.state_dict())
    pk.BasePruner(whole, X, "magnitude").step()
    for group in pk.BasePruner(single, X, "magnitude").step(interactive=True):
        group.prune()
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), single.parameters(), strict=True))


def test_width_and_head_dim_stay_in_step() -> None:
    """``width // num_heads`` ties two sizes; whatever is asked for, the program must still run and be exact."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 16), Attention(16, 4), nn.Linear(16, 3)).double()
    x = torch.randn(2, 6, 10, dtype=torch.float64)
    for ratio, steps in itertools.product((0.3, 0.5, 0.8), (1, 3)):
        pruned = copy.deepcopy(model)
        pruner = pk.BasePruner(
            pruned, x, RandomImportance(seed=1), pruning_ratio=ratio, global_pruning=True, iterative_steps=steps
        )
        for _ in range(steps):
            pruner.step()
        assert pruned[0].out_features <= {0.3: 16, 0.5: 12, 0.8: 4}[ratio]
        assert pruner.graph.knowledge.ties == [frozenset({"0", "1.qkv#head_dim"})]
        assert pk.check_exact(model, pruned, pruner.graph.applied, x).error < 1e-10


def test_attention_keeps_its_temperature_when_the_head_dim_shrinks() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 16), Attention(16, 4), nn.Linear(16, 3)).double()
    x = torch.randn(2, 6, 10, dtype=torch.float64)
    pruned = copy.deepcopy(model)
    plan = pk.prune(pruned, x, 0.5).plan
    (bias, weight) = sorted((r.parameter, r.rows, r.factor) for r in plan.rescales)
    assert bias == ("1.qkv.bias", ((0, 16),), pytest.approx(0.5**0.5))
    assert weight[:2] == ("1.qkv.weight", ((0, 16),))


def test_nothing_the_caller_passed_is_changed() -> None:
    model = chain(4, 10, 10, 3)
    ratios = {model.layers[0]: 0.2}
    ignored = ["layers.1"]
    x = torch.randn(1, 4)
    before = x.clone()
    a = pk.BasePruner(model, x, "magnitude", pruning_ratio_dict=ratios, ignored_layers=ignored)
    b = pk.BasePruner(copy.deepcopy(model), x, "magnitude")
    a.step()
    assert (ratios, ignored, torch.equal(x, before)) == ({model.layers[0]: 0.2}, ["layers.1"], True)
    assert b.scopes()[0].groups == ("layers.0", "layers.1")


def test_training_mode_gradients_and_identity_survive() -> None:
    model = Residual().train()
    model.conv2.eval()
    model(X).sum().backward()
    parameters, gradients = dict(model.named_parameters()), {n: p.grad.clone() for n, p in model.named_parameters()}
    statistics = model.bn1.running_mean.clone()
    plan = pk.prune(model, X).plan
    assert model.training
    assert not model.conv2.training
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name]
        kept = {cut.parameter: plan.positions(cut) for cut in plan.parameters}.get(name, {})
        expected = gradients[name]
        for dim, positions in kept.items():
            expected = expected.index_select(dim, positions)
        assert torch.equal(parameter.grad, expected)
    assert torch.equal(model.bn1.running_mean, statistics[list(plan.kept["conv1#stream"])])


def test_frozen_parameters_are_pruned_and_stay_frozen() -> None:
    model = Residual().requires_grad_(False)
    pk.prune(model, X)
    assert model.conv1.out_channels == 4
    assert not any(p.requires_grad for p in model.parameters())


def test_a_target_is_met_by_the_largest_model_that_meets_it() -> None:
    torch.manual_seed(0)
    model = Residual()
    result = pk.prune(model, X, target={"macs": 0.5})
    before, after = result.preview.costs["macs"]
    assert 0.35 * before < after <= 0.5 * before
    both = pk.prune(Residual(), X, target={"macs": 0.9, "params": 500}).preview
    assert both.params_after <= 500


def test_target_that_cannot_be_reached_says_what_can() -> None:
    model = Residual()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(pk.ArgumentError, match=r"can't be reached.*(?s:.)*smallest model has params="):
        pk.prune(model, X, target={"params": 2})
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_preview_agrees_with_what_is_applied() -> None:
    model = Residual()
    pruner = pk.BasePruner(model, X, "magnitude")
    preview = pruner.plan().preview()
    assert preview.params_before == sum(p.numel() for p in model.parameters())
    pruner.step()
    assert preview.params_after == sum(p.numel() for p in model.parameters())
    size = sum(t.numel() * t.element_size() for t in itertools.chain(model.parameters(), model.buffers()))
    assert preview.bytes_after == size


def test_macs_agree_with_the_flop_counter_of_pytorch() -> None:
    for model, x in ((Residual(), X), (Encoder(), torch.randn(2, 6, 10))):
        model.eval()
        result = pk.prune(model, x)
        assert result.preview.costs["macs"][1] == count_macs(model, x)


def test_a_plan_made_from_one_mode_can_be_checked() -> None:
    class TwoFaced(nn.Module):
        """In train mode two layers are added up, which ties them."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(4, 8)
            self.c, self.d = nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.c(self.a(x).relu()) + self.d(self.b(x).relu())
            return y + (self.a(x) + self.b(x)).sum() if self.training else y

    model, x = TwoFaced().eval(), torch.randn(2, 4)
    original = copy.deepcopy(model)
    graph = pk.DependencyGraph().build_dependency(model, x, modes=(False,))
    assert [group.name for group in graph.groups()] == ["a", "b"]
    plan = graph.remove({"b": [0, 5]})
    assert pk.check_exact(original, model, plan, x)
    assert (model.a.out_features, model.b.out_features) == (8, 6)
