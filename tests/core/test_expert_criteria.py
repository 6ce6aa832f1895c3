"""Criteria for experts, by computations that don't use the library: hooks on the router, and brute force."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit.plugin import ArgumentError, Statistics
from prunekit_plugins.calibration.statistics import PARTS
from prunekit_plugins.importance import (
    CalibratedImportance,
    ExpertFrequencyImportance,
    ExpertReconstructionImportance,
    REAPImportance,
    ReroutingImportance,
)
from prunekit_plugins.importance.effect import typical_effect
from prunekit_plugins.reports import report_data, to_markdown
from tests.core.test_experts import (
    EXPERTS,
    KINDS,
    TOKENS,
    WIDTH,
    Grouped,
    LookedUp,
    Looped,
    Mixture,
    experts_of,
    graph_of,
    made,
    without_experts,
)

OF_EXPERTS = ["rerouting", "reap", "expert_reconstruction", "expert_frequency"]
MORE = torch.randn(30, WIDTH, generator=torch.Generator().manual_seed(2))
BATCHES = [TOKENS, MORE]
MANY = [torch.randn(1000, WIDTH, generator=torch.Generator().manual_seed(3))]
PARTS_OF_EXPERTS = ("routing", "contributions", "products", "rerouting")


def calibrated(model: nn.Module, *parts: str, batches: Any = None) -> Statistics:
    return pk.calibrate(model, batches or BATCHES, parts=parts or PARTS_OF_EXPERTS)


def routing(model: Mixture, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a mixture reads, its weights and the experts that are chosen."""
    with torch.no_grad():
        x = model.stem(x)
        weights, chosen = model.router(x).softmax(-1).topk(model.top_k)
    return x, weights, chosen


def outputs(model: Mixture, x: torch.Tensor) -> torch.Tensor:
    """What every expert puts out for every token: ``[tokens, experts, features]``."""
    with torch.no_grad():
        hidden = torch.einsum("td,edh->teh", x, model.up).relu()
        return torch.einsum("teh,ehd->ted", hidden, model.down) * model.scale[None, :, None]


def scored(criterion: Callable[[Any], torch.Tensor | None], model: nn.Module) -> torch.Tensor:
    graph = graph_of(model)
    found = criterion(graph.whole_group(experts_of(graph)))
    assert found is not None
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_frequency_is_the_part_of_the_tokens(kind: type[Mixture]) -> None:
    model = made(kind)
    counts = torch.zeros(EXPERTS)
    for batch in BATCHES:
        counts += torch.bincount(routing(model, batch)[2].flatten(), minlength=EXPERTS)
    found = scored(ExpertFrequencyImportance(calibrated(model, "routing")), model)
    assert torch.equal(found, counts.double() / 40)


@pytest.mark.parametrize("kind", KINDS)
def test_reap_is_the_mean_weighted_norm_of_what_an_expert_puts_out(kind: type[Mixture]) -> None:
    model = made(kind)
    sums, counts = torch.zeros(EXPERTS, dtype=torch.float64), torch.zeros(EXPERTS)
    for batch in BATCHES:
        x, weights, chosen = routing(model, batch)
        norms = outputs(model, x).norm(dim=2)
        for token, experts in enumerate(chosen):
            for place, expert in enumerate(experts):
                sums[expert] += float(weights[token, place] * norms[token, expert])
                counts[expert] += 1
    statistics = calibrated(model, "contributions")
    found = scored(REAPImportance(statistics, relative=False), model)
    assert torch.allclose(found, sums / counts, rtol=1e-6)
    (seen,) = statistics.experts.values()
    norm = torch.cat([mixed(model, batch) for batch in BATCHES]).square().sum(1).mean().sqrt()
    assert torch.allclose(scored(REAPImportance(statistics), model), found / float(norm), rtol=1e-5)
    assert (seen.top_k, seen.tokens, seen.examples) == (2, 40, 40)


def mixed(model: Mixture, x: torch.Tensor) -> torch.Tensor:
    """What the experts put out together."""
    x, weights, chosen = routing(model, x)
    picked = outputs(model, x).gather(1, chosen[..., None].expand(-1, -1, WIDTH))
    return (picked * weights[..., None]).sum(1)


def added(model: Mixture, x: torch.Tensor) -> torch.Tensor:
    """What each unit adds to what the experts put out: ``[units, tokens, features]``, float64."""
    x, weights, chosen = routing(model, x)
    gates = torch.zeros(len(x), EXPERTS, dtype=torch.float64).scatter_(1, chosen, weights.double())
    return (outputs(model, x).double() * gates[..., None]).transpose(0, 1)


def left_by(adds: torch.Tensor, gone: Sequence[int]) -> float:
    """The squared error of the best fit by the units that stay, each with a factor of its own."""
    columns = adds.flatten(1).T
    stay = [unit for unit in range(len(adds)) if unit not in gone]
    whole = columns.sum(1, keepdim=True)
    factors = torch.linalg.lstsq(columns[:, stay], whole, driver="gelsd").solution
    return float((whole - columns[:, stay] @ factors).square().sum())


def one_by_one(adds: torch.Tensor) -> torch.Tensor:
    """What units add to that error if the cheapest goes first, then the cheapest of the others: tried one by one.

    At least as much as those before them.
    """
    gone: list[int] = []
    floor = 0.0
    found = torch.zeros(len(adds), dtype=torch.float64)
    while len(gone) < len(adds):
        tried = {unit: left_by(adds, [*gone, unit]) for unit in range(len(adds)) if unit not in gone}
        unit = min(tried, key=tried.__getitem__)
        found[unit] = floor = max(floor, tried[unit] - left_by(adds, gone))
        gone.append(unit)
    return found


def without_gradients(statistics: Statistics) -> Statistics:
    ((name, seen),) = statistics.experts.items()
    return attrs.evolve(statistics, experts={name: attrs.evolve(seen, weighed_products=None)})


@pytest.mark.parametrize("kind", KINDS)
def test_expert_reconstruction_is_the_error_after_a_least_squares_fit_of_those_that_stay(kind: type[Mixture]) -> None:
    model = made(kind)
    adds = torch.cat([added(model, batch) for batch in BATCHES], 1)
    if kind is Grouped:
        adds = torch.stack([adds[[0, 2, 4]].sum(0), adds[[1, 3, 5]].sum(0)])
    statistics = calibrated(model, "products")
    (seen,) = statistics.experts.values()
    assert seen.products is not None
    torch.testing.assert_close(seen.products, torch.einsum("itd,jtd->ij", adds, adds), rtol=1e-5, atol=1e-6)
    found = scored(ExpertReconstructionImportance(without_gradients(statistics)), model)
    expected = one_by_one(adds)
    torch.testing.assert_close(found, expected / adds.sum(0).square().sum(), rtol=1e-5, atol=1e-7)
    singles = torch.tensor([left_by(adds, [unit]) for unit in range(len(adds))], dtype=torch.float64)
    assert bool((expected > 1.02 * singles).any())  # the order matters


def test_expert_reconstruction_is_the_squared_change_of_the_outputs() -> None:
    model = made(LookedUp)
    torch.manual_seed(1)
    batches = [torch.randn(400, WIDTH)]
    criterion = ExpertReconstructionImportance(calibrated(model, "products", batches=batches))
    assert criterion.additive
    expected = one_by_one(added(model, batches[0]) @ model.out.weight.T.double().detach())
    torch.testing.assert_close(scored(criterion, model), expected / 400, rtol=0.1, atol=0)
    assert not ExpertReconstructionImportance(without_gradients(calibrated(model, "products"))).additive


def test_of_two_experts_that_do_the_same_one_goes_for_nothing() -> None:
    model = made(LookedUp)
    with torch.no_grad():
        model.router.weight[1::2], model.router.bias[1::2] = (
            model.router.weight[::2],
            model.router.bias[::2],
        )  # in pairs
        model.up[1], model.down[1], model.scale[1] = model.up[0], model.down[0], model.scale[0]
    found = scored(ExpertReconstructionImportance(calibrated(model, "products", batches=MANY)), model)
    assert float(found[:2].min()) < 1e-6 * float(found[2:].min())
    assert float(found[:2].max()) > float(found[2:].min())


@pytest.mark.parametrize("kind", KINDS)
def test_rerouting_is_the_change_with_the_expert_at_minus_infinity(kind: type[Mixture]) -> None:
    model = made(kind)
    model.out = nn.Identity()  # type: ignore[assignment]
    (found,) = calibrated(model, "rerouting", batches=[TOKENS]).experts.values()
    with torch.no_grad():
        whole = model(TOKENS)
    expected = []
    for expert in range(EXPERTS):
        own = (routing(model, TOKENS)[2] == expert).any(1)
        expected.append((without_experts(model, (expert,)) - whole)[own].double().square().sum())
    assert found.error is not None
    assert torch.allclose(found.error, torch.stack(expected), rtol=1e-5)


def test_damage_is_the_squared_change_of_the_outputs() -> None:
    model = made(LookedUp)
    torch.manual_seed(1)
    batches = [torch.randn(400, WIDTH)]
    statistics = calibrated(model, "rerouting", batches=batches)
    (seen,) = statistics.experts.values()
    expected = []
    for expert in range(EXPERTS):
        own = (routing(model, batches[0])[2] == expert).any(1)
        with torch.no_grad():
            change = without_experts(model, (expert,), batches[0]) - model(batches[0])
        expected.append(float(change[own].square().sum()))
    assert seen.damage is not None
    assert torch.allclose(seen.damage, torch.tensor(expected).double(), rtol=0.1)
    criterion = ReroutingImportance(statistics)
    assert criterion.additive
    assert torch.allclose(scored(criterion, model), seen.damage / 400)


def without_neuron(model: Mixture, expert: int, neuron: int, x: torch.Tensor) -> torch.Tensor:
    """What a model puts out if nothing reads a neuron of an expert."""
    small = copy.deepcopy(model)
    with torch.no_grad():
        small.down[expert, neuron] = 0
        return small(x)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_of_neurons_are_the_squared_changes_without_each(kind: type[Mixture]) -> None:
    model = made(kind)
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(128, WIDTH, generator=generator) for _ in range(8)]  # 64 projections
    statistics = calibrated(model, "neurons", batches=batches)
    (seen,) = statistics.experts.values()
    ((group, found),) = seen.neurons.items()
    assert group == "up"
    expected = torch.zeros(len(found), dtype=torch.float64)
    for neuron in range(len(found)):
        for expert in range(EXPERTS):
            for batch in batches:
                with torch.no_grad():
                    change = without_neuron(model, expert, neuron, batch) - model(batch)
                expected[neuron] += change.double().square().sum()
    assert torch.allclose(found, expected, rtol=0.5)  # from 64 projections

    assert float(found.sum()) == pytest.approx(float(expected.sum()), rel=0.1)


def test_losses_of_neurons_are_kept_in_files(tmp_path: Path) -> None:
    model = made(LookedUp)
    statistics = calibrated(model, "neurons")
    statistics.save(tmp_path / "statistics.safetensors")
    found = Statistics.load(tmp_path / "statistics.safetensors")
    (before,), (after,) = statistics.experts.values(), found.experts.values()
    assert "neurons" in found
    assert "rerouting" not in found
    assert list(after.neurons) == ["up"]
    assert torch.equal(after.neurons["up"], before.neurons["up"])


def test_neurons_of_experts_are_scored_by_their_losses() -> None:
    model = made(LookedUp)
    statistics = calibrated(model, "covariances", "curvatures", "neurons", batches=MANY)
    found = CalibratedImportance(statistics)(graph_of(model).whole_group("up"))
    (seen,) = statistics.experts.values()
    assert found is not None
    assert torch.allclose(found, seen.neurons["up"] / 1000 / typical_effect(statistics))


def test_a_ratio_takes_the_neurons_of_experts_that_do_least() -> None:
    model = made(LookedUp)
    with torch.no_grad():
        model.up[:, :, [1, 5]] *= 30  # large weights
        model.down[:, [1, 5]] *= 1e-2  # that hardly anything depends on
        model.up[:, :, [1, 5]] *= 1e-1
    result = pk.prune(model, TOKENS, 0.25, calibration=MANY, ignored_layers=["stem"])
    (cut,) = (cut for cut in result.plan.cuts if cut.group == "up")
    assert cut.kept == (0, 2, 3, 4, 6, 7)


def test_experts_of_several_groups_that_leave_together_share_a_score() -> None:
    model = made(Grouped)
    model.out = nn.Identity()  # type: ignore[assignment]
    (seen,) = calibrated(model, batches=[TOKENS]).experts.values()
    with torch.no_grad():
        whole = model(TOKENS)
    expected = [(without_experts(model, gone) - whole).square().sum() for gone in ((0, 2, 4), (1, 3, 5))]
    assert seen.error is not None
    assert torch.allclose(seen.error, torch.stack(expected).double(), rtol=1e-5)
    assert int(seen.routed.sum()) == 20


def test_positions_that_a_mask_leaves_out_dont_count() -> None:
    class Sequences(LookedUp):
        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
            return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    model = made(Sequences)
    x = MORE.reshape(3, 10, WIDTH)
    mask = torch.ones(3, 10)
    mask[1, 4:] = 0
    (seen,) = calibrated(model, batches=[{"x": x, "attention_mask": mask}]).experts.values()
    (whole,) = calibrated(model, batches=[{"x": x}]).experts.values()
    chosen = routing(model, x.flatten(0, 1))[2][mask.flatten() > 0]
    assert torch.equal(seen.routed, torch.bincount(chosen.flatten(), minlength=EXPERTS))
    assert (seen.tokens, whole.tokens) == (24, 30)
    assert seen.weighted is not None
    assert whole.weighted is not None
    assert seen.error is not None
    assert bool((seen.weighted <= whole.weighted).all())
    assert float(seen.weighted.sum()) < float(whole.weighted.sum())
    assert whole.error is not None
    assert bool((seen.error <= whole.error).all())


def shy(kind: Callable[[], Mixture] = LookedUp) -> Mixture:
    """A mixture that never chooses its first expert, whose weights are the largest of all."""
    model = made(kind)
    with torch.no_grad():
        model.router.bias[0] = -1e4
        model.up[0] *= 100
    return model


@pytest.mark.parametrize("criterion", OF_EXPERTS)
def test_an_expert_that_calibration_never_reached_stays(criterion: str) -> None:
    model = shy()
    result = pk.prune(model, TOKENS, 0.0, expert_pruning_ratio=0.9, expert_importance=criterion, calibration=BATCHES)
    assert result.report.pruned == {"router#experts": (EXPERTS, 2)}
    assert 0 in result.plan.kept["router#experts"]
    told = "router#experts: calibration never reached expert 0 of 6: unknown, not worthless, they stay"
    assert told in result.report.notes


def test_the_expert_goes_whose_stand_ins_do_least_harm() -> None:
    model = made(LookedUp)
    (seen,) = calibrated(model).experts.values()
    assert seen.damage is not None
    least = set(seen.damage.argsort()[:3].tolist())
    result = pk.prune(model, TOKENS, 0.0, expert_pruning_ratio=0.5, calibration=BATCHES)
    assert set(range(EXPERTS)) - set(result.plan.kept["router#experts"]) == least


def seldom() -> Mixture:
    """A mixture that sends few tokens to three of its experts."""
    model = made(Looped)
    with torch.no_grad():
        model.router.bias[:3] -= 1.5
    return model


def test_a_target_takes_experts_with_calibration_data_and_none_without() -> None:
    plain = pk.prune(seldom(), TOKENS, target={"params": 0.7})
    assert "router#experts" not in plain.report.pruned
    result = pk.prune(seldom(), TOKENS, target={"params": 0.7}, calibration=MANY)
    assert result.report.pruned["router#experts"][1] < EXPERTS
    assert result.preview.params_after <= 0.7 * result.preview.params_before
    assert result.protocol.arguments["allocation"] == "estimated"
    stays = pk.prune(seldom(), TOKENS, target={"params": 0.7}, calibration=MANY, expert_pruning_ratio=0.0)
    assert "router#experts" not in stays.report.pruned


def test_a_target_ranks_where_scores_of_experts_are_no_damages() -> None:
    result = pk.prune(seldom(), TOKENS, target={"params": 0.7}, calibration=MANY, expert_importance="reap")
    assert result.protocol.arguments["allocation"] == "global"
    assert result.protocol.arguments["expert_importance"] == "reap"
    assert result.report.pruned["router#experts"][1] < EXPERTS


def test_a_criterion_for_experts_lets_them_leave_at_the_ratio_of_other_units() -> None:
    result = pk.prune(made(Looped), TOKENS, 0.5, expert_importance="reap", calibration=MANY)
    assert result.report.pruned["router#experts"] == (EXPERTS, 3)


def test_statistics_of_experts_are_stored(tmp_path: Any) -> None:
    statistics = calibrated(made(LookedUp))
    statistics.save(tmp_path / "statistics.safetensors")
    again = Statistics.load(tmp_path / "statistics.safetensors")
    assert all(part in again for part in PARTS_OF_EXPERTS)
    assert {part for part in PARTS if part in again} == {*PARTS_OF_EXPERTS, "neurons"}
    ours, theirs = statistics.experts["router#experts"], again.experts["router#experts"]
    assert ours.rest() == theirs.rest()
    assert all(torch.equal(value, theirs.tensors()[name]) for name, value in ours.tensors().items())


def test_a_batch_that_isnt_chosen_over_leaves_the_model_as_it_was() -> None:
    model = made(Looped)
    before = copy.deepcopy(model.state_dict())
    calibrated(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_criterion_for_experts_without_statistics_is_refused() -> None:
    with pytest.raises(ArgumentError, match="has no statistics"):
        pk.prune(made(LookedUp), TOKENS, 0.0, expert_pruning_ratio=0.5, expert_importance="reap")


def test_statistics_of_experts_that_have_left_since_are_refused() -> None:
    model = made(LookedUp)
    graph = graph_of(model)
    statistics = calibrated(model)
    graph.remove({"router#experts": [1]})
    with pytest.raises(ArgumentError, match="pruned since"):
        REAPImportance(statistics)(graph.whole_group("router#experts"))


def test_a_target_that_top_k_puts_out_of_reach_is_told_before_calibration_starts() -> None:
    class Unread:
        def __iter__(self) -> Any:
            raise AssertionError("calibration data are read")

    model = made(LookedUp)
    with pytest.raises(ArgumentError, match=r"target can't be reached(.|\n)*the smallest model has"):
        pk.prune(model, TOKENS, target={"params": 0.02}, calibration=Unread(), ignored_layers=[model.stem])
    assert len(model.up) == EXPERTS


def test_a_report_lists_the_experts_that_left() -> None:
    model = shy()
    result = pk.prune(model, TOKENS, 0.0, expert_pruning_ratio=0.5, calibration=BATCHES)
    gone = sorted(set(range(EXPERTS)) - set(result.plan.kept["router#experts"]))
    text = to_markdown(report_data(result))
    assert "## Experts" in text
    assert f"| router#experts | 6 | 3 | {', '.join(map(str, gone))} |" in text
    assert "calibration never reached expert 0 of 6" in text


def test_a_target_of_a_model_without_experts_weighs_damages_as_ever() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, 12), nn.ReLU(), nn.Linear(12, 3))
    result = pk.prune(model, TOKENS, target={"params": 0.6}, calibration=BATCHES)
    assert result.protocol.arguments["allocation"] == "estimated"


@pytest.mark.parametrize("criterion", OF_EXPERTS)
def test_tokens_that_are_not_finite_dont_count(criterion: str) -> None:
    bad = MANY[0].clone()
    bad[5, 0] = torch.nan
    left = torch.cat([bad[:5], bad[6:]])
    results = [
        pk.prune(made(LookedUp), TOKENS, 0.0, expert_pruning_ratio=0.5, expert_importance=criterion, calibration=[data])
        for data in (bad, left)
    ]
    assert results[0].plan.kept == results[1].plan.kept
    assert "router#experts: 1 of 1000 tokens not finite" in results[0].report.notes
    found, expected = (calibrated(made(LookedUp), batches=[data]).experts["router#experts"] for data in (bad, left))
    assert torch.equal(found.routed, expected.routed)
    for part in ("weighted", "error", "products"):
        assert torch.allclose(getattr(found, part), getattr(expected, part))


def test_a_mixture_that_puts_out_nothing_finite_is_an_error() -> None:
    model = made(LookedUp)
    with torch.no_grad():
        model.up *= 1e25
        model.down *= 1e25
    with pytest.raises(ArgumentError, match="No value that a layer read was finite") as caught:
        calibrated(model, "routing")
    assert caught.value.where == "the experts of router#experts"


def test_a_ratio_that_leaves_too_few_is_told_once() -> None:
    result = pk.prune(made(LookedUp), TOKENS, 0.0, expert_pruning_ratio=0.99)
    (note,) = (note for note in result.report.notes if note.startswith("router#experts keeps"))
    assert note.endswith("as many as are chosen for a token: expert_pruning_ratio=0.99 would leave 1")
