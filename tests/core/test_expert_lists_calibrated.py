"""Experts that are modules of a list: targets, criteria and compensation, against hooks on the modules."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunekit as pk
from prunekit.plugin import ExpertStatistics, Sizer
from prunekit_plugins.importance import (
    ExpertFrequencyImportance,
    ExpertReconstructionImportance,
    REAPImportance,
    ReroutingImportance,
)
from tests.core.test_expert_lists import (
    EXPERTS,
    WIDTH,
    Around,
    InTurn,
    Named,
    Routed,
    Shared,
    Special,
    Unlike,
    made,
)
from tests.core.test_experts import TOKENS

MORE = torch.randn(30, WIDTH, generator=torch.Generator().manual_seed(2))
BATCHES = [TOKENS, MORE]
MANY = [torch.randn(400, WIDTH, generator=torch.Generator().manual_seed(seed)) for seed in (3, 4)]


class Reshaping(Routed):
    """What the experts put out is read by an operation that the loop over them runs as well."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        weights, chosen = self.route(self.router(x))
        weights = weights.to(x.dtype)
        mask = F.one_hot(chosen, num_classes=self.num_experts).permute(2, 1, 0)
        result = torch.zeros_like(x)
        for number in (mask.sum((1, 2)) > 0).nonzero():
            place, token = torch.where(mask[number].squeeze(0))
            read = x[None, token].reshape(-1, x.shape[-1])
            result.index_add_(0, token, self.run(number, read) * weights[token, place, None])
        found: torch.Tensor = self.out(x + result.reshape(1, -1, x.shape[-1])[0])
        return found


class First(Routed):
    """A token is sent to one expert, whose number is no list."""

    def __init__(self) -> None:
        super().__init__(top_k=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        weights, chosen = self.router(x).softmax(-1).max(-1)
        mask = F.one_hot(chosen, num_classes=self.num_experts).permute(1, 0)
        result = torch.zeros_like(x)
        for number in (mask.sum(1) > 0).nonzero():
            (token,) = torch.where(mask[number].squeeze(0))
            result.index_add_(0, token, self.run(number, x[token]) * weights[token, None])
        found: torch.Tensor = self.out(x + result)
        return found


class Afterwards(First):
    """What the experts put out is weighted when they all ran; the weights aren't made by the operation that chooses."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        shares = self.router(x).softmax(-1)
        chosen, weights = F.one_hot(shares.argmax(-1), self.num_experts), shares.max(-1).values[:, None]
        result = torch.zeros_like(x)
        for number in (chosen.sum(0) > 0).nonzero():
            (token,) = chosen[:, number].squeeze(1).nonzero(as_tuple=True)
            result[token] = self.run(number, x[token])
        found: torch.Tensor = self.out(x + weights * result)
        return found


KINDS = (Routed, Named, InTurn, Reshaping, First, Afterwards)


def routing(model: Routed, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the experts read, the weights, and whom tokens are sent to, seen by a hook on the router."""
    with torch.no_grad():
        x = model.stem(x)
        logits = model.router(x)
        if isinstance(model, InTurn):
            return (x, *model.route(logits))
        return (x, *logits.softmax(-1).topk(model.top_k))


def seen(model: Routed, *parts: str) -> ExpertStatistics:
    return pk.calibrate(model, BATCHES, parts=parts).experts["router#experts"]


def scored(criterion: Callable[[pk.Group], torch.Tensor | None], model: Routed) -> torch.Tensor:
    found = criterion(pk.Graph.of(model, TOKENS).whole_group("router#experts"))
    assert found is not None
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_frequency_is_the_part_of_the_tokens(kind: type[Routed]) -> None:
    model = made(kind)
    counts = sum(torch.bincount(routing(model, batch)[2].flatten(), minlength=EXPERTS) for batch in BATCHES)
    found = scored(ExpertFrequencyImportance(pk.calibrate(model, BATCHES, parts=["routing"])), model)
    assert torch.equal(found, torch.as_tensor(counts).double() / 40)


@pytest.mark.parametrize("kind", KINDS)
def test_reap_is_the_mean_weighted_norm_of_what_an_expert_puts_out(kind: type[Routed]) -> None:
    model = made(kind)
    sums, counts = torch.zeros(EXPERTS, dtype=torch.float64), torch.zeros(EXPERTS)
    for batch in BATCHES:
        x, weights, chosen = routing(model, batch)
        for number, expert in enumerate(model.experts.children()):
            token, place = (chosen == number).nonzero(as_tuple=True)
            with torch.no_grad():
                sums[number] += (weights[token, place] * expert(x[token]).norm(dim=1)).double().sum()
            counts[number] += len(token)
    found = scored(REAPImportance(pk.calibrate(model, BATCHES, parts=["contributions"]), relative=False), model)
    assert torch.allclose(found, sums / counts.clamp(min=1), rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_products_are_those_of_what_two_experts_add_to_a_token(kind: type[Routed]) -> None:
    model = made(kind)
    adds = torch.zeros(EXPERTS, 40, WIDTH, dtype=torch.float64)
    x, weights, chosen = routing(model, torch.cat(BATCHES))
    for number, expert in enumerate(model.experts.children()):
        token, place = (chosen == number).nonzero(as_tuple=True)
        with torch.no_grad():
            adds[number, token] = (weights[token, place, None] * expert(x[token])).double()
    statistics = pk.calibrate(model, BATCHES, parts=["products"])
    found = statistics.experts["router#experts"]
    assert found.products is not None
    torch.testing.assert_close(found.products, torch.einsum("itd,jtd->ij", adds, adds), rtol=1e-5, atol=1e-6)
    scores = scored(ExpertReconstructionImportance(statistics), model)
    assert found.weighed_products is not None
    reached = found.routed > 0
    first = 1 / torch.linalg.inv(found.weighed_products[reached][:, reached]).diagonal() / found.examples
    torch.testing.assert_close(scores[reached].min(), first.min(), rtol=1e-5, atol=0)


def run_without(model: Routed, expert: int, x: torch.Tensor) -> torch.Tensor:
    """Runs a model whose router has one expert at minus infinity."""

    def barred(module: nn.Module, given: object, result: torch.Tensor) -> torch.Tensor:
        return result.index_fill(-1, torch.tensor([expert]), -torch.inf)

    handle = model.router.register_forward_hook(barred)
    with torch.no_grad():
        found: torch.Tensor = model(x)
    handle.remove()
    return found


def changes(model: Routed, batches: Sequence[torch.Tensor]) -> torch.Tensor:
    """Squared changes of the outputs, one expert at minus infinity, over the tokens that were sent to it."""
    expected = torch.zeros(EXPERTS, dtype=torch.float64)
    for batch in batches:
        with torch.no_grad():
            whole = model(batch)
        for expert in range(EXPERTS):
            own = (routing(model, batch)[2] == expert).any(1)
            expected[expert] += (run_without(model, expert, batch) - whole)[own].double().square().sum()
    return expected


@pytest.mark.parametrize("kind", KINDS)
def test_rerouting_is_the_change_with_the_expert_at_minus_infinity(kind: type[Routed]) -> None:
    model = made(kind)
    model.out = nn.Identity()  # type: ignore[assignment]
    statistics = seen(model, "rerouting")
    expected = changes(model, BATCHES)
    assert statistics.error is not None
    assert torch.allclose(statistics.error, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_the_squared_change_of_the_outputs(kind: type[Routed]) -> None:
    model = made(kind)
    statistics = pk.calibrate(model, MANY, parts=["rerouting"])
    (found,) = statistics.experts.values()
    expected = changes(model, MANY)
    assert found.damage is not None
    assert torch.allclose(found.damage, expected, rtol=0.15)
    assert torch.allclose(scored(ReroutingImportance(statistics), model), found.damage / found.examples)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("experts", [(0, 3, 4), (2,), ()])
def test_costs_are_those_of_what_is_left(kind: type[Routed], experts: tuple[int, ...]) -> None:
    model = made(kind)
    graph = pk.Graph.of(model, TOKENS)
    width = next(group.name for group in graph.groups() if group.name.endswith(".up"))
    before = sum(p.numel() for p in model.parameters())
    plan = graph.remove({**({"router#experts": experts} if experts else {}), width: (0, 5, 7)})
    after = sum(p.numel() for p in model.parameters())
    preview = plan.preview()
    assert preview.costs["params"] == (before, after)
    assert preview.costs["weights"] == (4 * before, 4 * after)
    assert (preview.params_before, preview.params_after) == (before, after)
    counted = graph.analysis.elements(Sizer(plan.kept))
    assert sum(int(str(size)) for name, size in counted.items()) == after


@pytest.mark.parametrize("kind", KINDS)
def test_work_is_that_of_the_experts_that_a_token_is_sent_to(kind: type[Routed]) -> None:
    model = made(kind)
    work = len(TOKENS) * (WIDTH * (WIDTH + EXPERTS + 3) + model.top_k * 2 * WIDTH * 12)
    plan = pk.Graph.of(model, TOKENS).remove({"router#experts": (0, 3)})
    assert plan.preview().costs["macs"] == (work, work - len(TOKENS) * WIDTH * 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", [0.7, 0.5])
def test_a_target_is_met_within_one_unit(kind: type[Routed], target: float) -> None:
    model = made(kind)
    with torch.no_grad():
        model.router.bias[:3] -= 0.5  # fewer tokens are sent to these
    before = sum(p.numel() for p in model.parameters())
    result = pk.prune(model, TOKENS, target={"params": target}, calibration=MANY)
    after = sum(p.numel() for p in model.parameters())
    assert result.report.pruned["router#experts"][1] < EXPERTS
    left = len(model.experts)
    shapes = {tuple(expert.up.weight.shape) for expert in model.experts.children()}  # type: ignore[union-attr]
    ((_, width),) = shapes
    unit = left * (2 * width + 1)  # one more unit in each expert
    assert target * before - unit < after <= target * before
    assert result.preview.params_after == after == result.preview.costs["params"][1]


class Stack(nn.Module):
    """Three mixtures of listed experts that are residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Routed() for _ in range(3))
        for block in self.blocks:
            block.out = nn.Linear(WIDTH, WIDTH)  # type: ignore[assignment]
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        found: torch.Tensor = self.head(x)
        return found


@pytest.mark.parametrize("calibration", [None, MANY])
def test_a_target_by_depth_takes_as_many_mixtures_as_it_needs(calibration: list[torch.Tensor] | None) -> None:
    torch.manual_seed(0)
    model = Stack().eval()
    before = sum(p.numel() for p in model.parameters())
    one = sum(p.numel() for p in model.blocks[0].parameters())
    graph = pk.Graph.of(model, TOKENS)
    assert graph.costs_without(["blocks.1"])["params"] == (before, before - one)
    result = pk.prune(model, TOKENS, target={"params": 0.7}, by="depth", calibration=calibration)
    assert len(result.plan.absent) == 1
    assert sum(p.numel() for p in model.parameters()) == before - one == result.preview.costs["params"][1]
    with pytest.raises(pk.plugin.ArgumentError, match="can't be reached"):
        pk.prune(Stack().eval(), TOKENS, target={"params": 0.05}, by="depth")


def test_a_branch_has_the_parameters_of_experts_that_no_recording_ran() -> None:
    model = Around().eval()
    branch = next(one for one in pk.Graph.of(model, TOKENS).branches() if one.name == "mixture")
    assert set(branch.parameters) == {f"mixture.{name}" for name, _ in model.mixture.named_parameters()}


@pytest.mark.parametrize("kind", [*KINDS, Unlike, Shared])
def test_compensation_fits_layers_around_listed_experts_and_experts_where_that_helps(kind: type[Routed]) -> None:
    model, original = made(kind), made(kind)
    result = pk.prune(model, MANY[0], ratio=0.4, calibration=MANY)
    assert result.compensation is not None
    fitted = [layer.consumer for layer in result.compensation.layers]
    assert fitted[:2] == ["router.weight", "out.weight"]
    before, after = result.compensation.output_error
    assert after < before
    seen = {name for name in result.compensation.left if name.startswith("experts")}
    assert seen.isdisjoint(fitted)
    plain, again = copy.deepcopy(original), copy.deepcopy(original)
    result.plan.apply(plain)
    for name, parameter in model.named_parameters():
        changed = not torch.equal(parameter, plain.get_parameter(name))
        assert changed == (f"{name.rpartition('.')[0]}.weight" in fitted), name
    result.plan.apply(again)
    assert pk.compensate(again, result.plan, MANY, original=original).left == result.compensation.left
    assert torch.allclose(again(TOKENS), model(TOKENS))


def test_experts_are_fitted_where_some_never_run_and_what_goes_in_stays() -> None:
    model = made(Special)
    result = pk.prune(model, MANY[0], ratio=0.4, calibration=MANY)
    assert result.compensation is not None
    assert {layer.consumer for layer in result.compensation.layers} == {f"experts.{n}.down.weight" for n in range(4)}
    before, after = result.compensation.output_error
    assert after < before
    assert model.router.weight.shape == made(Special).router.weight.shape
    assert any("no recording ran all" in note for note in result.report.notes)
