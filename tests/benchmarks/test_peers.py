"""The short implementations of other methods: their formulas on toys, against computations from first principles."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("transformers", reason="the decoders are those of transformers")
from peers import flap, obs, replaceme, shortgpt, sleb, slicegpt, taylor, vbp, wanda_sp
from peers.budget import Budget, one_ranking, same_part
from peers.decoder import Kept, Sizes, costs, cut, layers_of
from peers.evidence import Evidence, next_token_loss
from peers.least_squares import RIDGE, damped, refit

from ..models import small_llama

LENGTH = 12


def decoder(layers: int = 3) -> Any:
    """Two groups of two query heads, 16 neurons, and weights large enough for layers to matter."""
    model = small_llama(
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        intermediate_size=16,
        tie_word_embeddings=True,
    )
    for name, value in model.named_parameters():
        if value.dim() == 2 and "embed" not in name:
            value.data.mul_(10)
    return model


def windows(count: int = 16) -> Tensor:
    return torch.randint(64, (count, LENGTH), generator=torch.Generator().manual_seed(1))


def samples(features: int = 6, rows: int = 50) -> tuple[Tensor, Tensor, Tensor]:
    """A weight, what it reads, and the mean products of that."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, features, generator=generator) @ torch.randn(features, features, generator=generator)
    return torch.randn(3, features, generator=generator), x, x.T @ x / rows


def damage(weight: Tensor, second: Tensor, kept: list[int]) -> float:
    """The smallest mean squared error with these columns, by solving the normal equations."""
    hessian = damped(second).double()
    weight = weight.double()
    total = torch.einsum("oi,ij,oj->", weight, hessian, weight)
    if not kept:
        return float(total)
    cross = weight @ hessian[:, kept]
    return float(total - (cross * torch.linalg.solve(hessian[kept][:, kept], cross.T).T).sum())


def test_least_squares_fit_what_was_put_out() -> None:
    weight, x, second = samples()
    kept = torch.tensor([True, False, True, True, False, True])
    wanted = torch.linalg.lstsq(x[:, kept], x @ weight.T).solution.T
    torch.testing.assert_close(refit(weight, second, kept, ridge=0.0)[:, kept], wanted, rtol=1e-3, atol=1e-3)
    assert not refit(weight, second, kept)[:, ~kept].any()


def test_the_refit_is_the_update_of_optimal_brain_surgeon() -> None:
    weight, _, second = samples()
    hessian = second + 1e-6 * torch.eye(6)
    kept = torch.tensor([True, False, True, True, False, True])
    inverse = torch.linalg.inv(hessian)
    gone = ~kept
    updated = weight - weight[:, gone] @ torch.linalg.inv(inverse[gone][:, gone]) @ inverse[gone]
    torch.testing.assert_close(refit(weight, hessian, kept, ridge=0.0), updated, rtol=1e-3, atol=1e-3)


def check_damages_at_their_turns(
    weight: torch.Tensor, second: torch.Tensor, found: torch.Tensor, columns: Sequence[Sequence[int]]
) -> None:
    """Holds damages against a search: at each turn the unit goes that costs least; none costs less than an earlier one.

    Args:
        weight, second: What is multiplied with what.
        found: The damage of each unit.
        columns: The columns of each unit.
    """
    left, highest = list(range(len(columns))), 0.0
    while left:
        before = damage(weight, second, [at for one in left for at in columns[one]])
        after = {
            gone: damage(weight, second, [at for one in left if one != gone for at in columns[one]]) - before
            for gone in left
        }
        first = min(after, key=after.__getitem__)
        highest = max(highest, after[first])
        assert float(found[first]) == pytest.approx(highest, rel=1e-3)
        left.remove(first)


def test_damages_of_neurons_are_what_each_costs_at_its_turn() -> None:
    weight, _, second = samples()
    found = obs.neuron_damages(weight, second, rounds=6)
    check_damages_at_their_turns(weight, second, found, [[one] for one in range(6)])


def test_damages_of_groups_are_what_each_costs_at_its_turn() -> None:
    weight, _, second = samples()
    found = obs.group_damages(weight, second, size=2)
    check_damages_at_their_turns(weight, second, found, [[0, 1], [2, 3], [4, 5]])


def test_what_damages_are_parts_of_is_a_mean_squared_norm() -> None:
    weight, x, second = samples()
    torch.testing.assert_close(obs.written(weight, second), (x @ weight.T).square().sum(1).mean())


def test_flap_scores_fluctuations_and_leaves_means_behind() -> None:
    weight, x, _ = samples()
    expected = x.var(0, correction=0) * (weight**2).sum(0)
    covariance = torch.cov(x.T, correction=0)
    torch.testing.assert_close(flap.fluctuation(weight, covariance), expected)
    model = decoder()
    evidence, small = Evidence(model, windows()), copy.deepcopy(model)
    flap.prune(small, evidence, Budget("macs", costs(model, LENGTH)["macs"], 0.8))
    first = next(number for number in range(3) if layers_of(small)[number].mlp.down_proj.in_features < 16)
    layer, down = layers_of(small)[first], layers_of(model)[first].mlp.down_proj
    seen = evidence.moments["neurons", first].mean
    kept = [
        row
        for row in range(16)
        if (layers_of(model)[first].mlp.up_proj.weight[row] == layer.mlp.up_proj.weight).all(1).any()
    ]
    torch.testing.assert_close(layer.mlp.down_proj(seen[kept]), down(seen), rtol=1e-4, atol=1e-4)


def test_wanda_multiplies_weights_by_norms_of_what_they_read() -> None:
    weight, x, second = samples()
    expected = [sum(abs(float(w)) for w in weight[:, j]) * float((x[:, j] ** 2).mean() ** 0.5) for j in range(6)]
    torch.testing.assert_close(wanda_sp.products(weight, second), torch.tensor(expected))


def silenced(number: int, layers: int = 4) -> Any:
    """A decoder one of whose layers adds nothing."""
    model = decoder(layers)
    layers_of(model)[number].self_attn.o_proj.weight.data.zero_()
    layers_of(model)[number].mlp.down_proj.weight.data.zero_()
    return model


@pytest.mark.parametrize("method", [shortgpt, sleb, replaceme])
def test_the_layer_that_adds_nothing_goes_first(method: Any) -> None:
    model = silenced(2)
    small, ids = copy.deepcopy(model), windows()
    method.prune(small, Evidence(model, ids), Budget("params", costs(model, LENGTH)["params"], 0.999))
    assert len(layers_of(small)) == 3
    with torch.no_grad():
        expected, found = model(input_ids=ids).logits, small(input_ids=ids, use_cache=False).logits
    assert (expected - found).abs().max() < 0.1 * expected.abs().max()  # ReplaceMe's ridge is a hundredth


def test_losses_without_a_layer_are_those_of_the_model_without_it() -> None:
    model, ids = decoder(), windows()
    found = sleb.losses(model, ids)
    for number in range(3):
        small = copy.deepcopy(model)
        small.model.layers = nn.ModuleList([layer for other, layer in enumerate(layers_of(small)) if other != number])
        with torch.no_grad():
            assert found[number] == pytest.approx(float(next_token_loss(small, ids)), rel=1e-5)
    assert len(layers_of(model)) == 3


def test_the_map_that_takes_the_place_of_layers_is_a_least_squares_fit() -> None:
    _, x, _ = samples()
    assert replaceme.best_run([x, x, x + 5, x + 5.01, -x], 1) == 2
    wanted = torch.randn(50, 4, generator=torch.Generator().manual_seed(3))
    ridge = (RIDGE * (x.T @ x).diagonal().mean()).sqrt() * torch.eye(6)
    expected = torch.linalg.lstsq(torch.cat([x, ridge]), torch.cat([wanted, torch.zeros(6, 4)])).solution
    torch.testing.assert_close(replaceme.transform(x, wanted), expected, rtol=1e-3, atol=1e-4)


def test_a_full_basis_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slicegpt, "width_within", lambda *_: 16)
    model, ids = decoder(), windows()
    for value in (model.model.norm.weight, layers_of(model)[1].input_layernorm.weight):
        value.data.uniform_(0.5, 2.0)
    small = copy.deepcopy(model)
    slicegpt.prune(small, Evidence(model, ids), Budget("macs", 1, 1.0))
    with torch.no_grad():
        torch.testing.assert_close(
            small(input_ids=ids, use_cache=False).logits, model(input_ids=ids).logits, rtol=1e-3, atol=1e-4
        )


def test_salience_is_the_gradient_of_the_mean_loss_by_the_weight() -> None:
    model, ids = decoder(), windows()
    weight = layers_of(model)[1].mlp.up_proj.weight
    found = Evidence(model, ids, batch=4).salience["model.layers.1.mlp.up_proj.weight"]
    (gradient,) = torch.autograd.grad(next_token_loss(model, ids), weight)
    torch.testing.assert_close(found, (gradient * weight).abs().detach(), rtol=1e-3, atol=1e-7)
    assert weight.grad is None


def test_variance_based_pruning_keeps_what_varies_and_all_heads() -> None:
    model = decoder()
    evidence, small = Evidence(model, windows()), copy.deepcopy(model)
    vbp.prune(small, evidence, Budget("params", costs(model, LENGTH)["params"], 0.8))
    variances = [evidence.moments["neurons", number].covariance.diagonal() for number in range(3)]
    sizes = [layers_of(small)[number].mlp.down_proj.in_features for number in range(3)]
    threshold = torch.cat(variances).sort().values[3 * 16 - sum(sizes)]
    assert sizes == [int((of >= threshold).sum()) for of in variances]
    assert all(layer.self_attn.o_proj.in_features == 16 for layer in layers_of(small))


METHODS = {
    "obs": obs.prune,
    "flap": flap.prune,
    "wanda": wanda_sp.prune,
    "taylor": taylor.prune,
    "shortgpt": shortgpt.prune,
    "sleb": sleb.prune,
    "replaceme": replaceme.prune,
    "slicegpt": slicegpt.prune,
    "vbp": vbp.prune,
}


@pytest.mark.parametrize("cost", ["macs", "params"])
@pytest.mark.parametrize("name", METHODS)
def test_a_budget_holds_and_the_model_that_the_evidence_is_of_stays(name: str, cost: Any) -> None:
    model, ids = decoder(layers=8), windows()
    before = copy.deepcopy(model.state_dict())
    whole, small = costs(model, LENGTH), copy.deepcopy(model)
    METHODS[name](small, Evidence(model, ids), Budget(cost, whole[cost], 0.85))
    left = costs(small, LENGTH)[cost] / whole[cost]
    assert 0.72 < left <= 0.85  # a layer is an eighth of the decoder
    with torch.no_grad():
        assert small(input_ids=ids, use_cache=False).logits.isfinite().all()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_costs_are_those_that_pytorch_counts() -> None:
    model, ids = decoder(), windows(1)
    small = copy.deepcopy(model)
    kept = Kept.everything(Sizes.of(model, LENGTH))
    kept.neurons[1, ::3] = False
    kept.groups[2, 0] = False
    kept.groups[0] = False
    cut(small, Sizes.of(model, LENGTH), kept)
    for one in (model, small):
        one.set_attn_implementation("eager")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            one(input_ids=ids, use_cache=False)
        assert counter.get_total_flops() / 2 == costs(one, LENGTH)["macs"] * LENGTH


def test_what_a_unit_costs_is_what_the_model_loses() -> None:
    model = decoder()
    sizes, whole = Sizes.of(model, LENGTH), costs(model, LENGTH)
    for cost, (neurons, groups) in itertools.product(("macs", "params"), ((1, 0), (0, 1))):
        small, kept = copy.deepcopy(model), Kept.everything(sizes)
        kept.neurons[1, :neurons] = False
        kept.groups[1, :groups] = False
        cut(small, sizes, kept)
        expected = neurons * sizes.neuron_cost() + groups * sizes.group_cost(cost)
        assert whole[cost] - costs(small, LENGTH)[cost] == expected


def test_one_ranking_takes_the_lowest_scores_until_enough_is_gone() -> None:
    sizes = Sizes(layers=2, hidden=3, groups=1, width=2, group=2, head=1, length=5)  # 6 a neuron, 12 or 32 a group
    neurons, groups = torch.tensor([[1.0, 5.0, 2.0], [7.0, 0.5, 9.0]]), torch.tensor([[1.5], [8.0]])
    kept = one_ranking(sizes, neurons, groups, Budget("params", 100, 0.8))
    assert kept.neurons.tolist() == [[False, True, True], [True, False, True]]  # 6 + 6, then a group of 12
    assert kept.groups.tolist() == [[False], [True]]
    with pytest.raises(ValueError, match="cost less than"):
        one_ranking(sizes, neurons, groups, Budget("params", 100, 0.1))


def test_the_same_part_of_each_layer_goes() -> None:
    sizes = Sizes(layers=3, hidden=4, groups=2, width=2, group=2, head=1, length=5)
    neurons, groups = torch.arange(12.0).view(3, 4), torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    kept = same_part(sizes, neurons, groups, Budget("params", 144, 0.75), range(1, 3))  # 18 of 48 in each
    assert kept.neurons.tolist() == [[True] * 4, [False, True, True, True], [False, True, True, True]]
    assert kept.groups.tolist() == [[True, True], [True, False], [False, True]]
