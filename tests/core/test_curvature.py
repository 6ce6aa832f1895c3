"""Curvatures: how much the outputs of a model move with those of a layer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

import prunekit as pk
from prunekit_plugins.calibration import curvature, demand, symmetric
from prunekit_plugins.calibration.curvature import WIDEST
from prunekit_plugins.calibration.demand import Demand
from prunekit_plugins.calibration.stream import gather
from prunekit_plugins.importance import CalibratedImportance, EffectImportance, ReconstructionImportance, reconstruction
from prunekit_plugins.importance.reconstruction import weighted
from prunekit_plugins.prune import calibrated

PARTS = ("covariances", "curvatures")


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()


@pytest.mark.slow
def test_of_a_linear_model_it_is_the_product_of_what_follows() -> None:
    """Outputs move by ``W2 e`` with the first layer's, so that ``G = W2^T W2``, and ``G = I`` for the last layer."""
    model = chain()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(12800, 3, generator=generator).double() + 2
    found = pk.calibrate(model, x.split(16), parts=PARTS)
    last = model[1].weight.detach()
    first, second = found.sites["0.weight"], found.sites["1.weight"]
    assert first.curvature is not None
    assert second.curvature is not None
    assert first.energy is not None
    torch.testing.assert_close(first.curvature[0].double(), last.T @ last, rtol=0.1, atol=0.03)
    torch.testing.assert_close(second.curvature[0].double(), torch.eye(2).double(), rtol=0.1, atol=0.05)
    torch.testing.assert_close(first.energy[0], model[0](x).detach().square().mean(0))


def test_places_of_a_convolution_add_up() -> None:
    """The mean over 16 places moves by a sixteenth of what one of them does; there are 16 that count."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    x = torch.randn(3200, 2, 4, 4).double()
    curvature = pk.calibrate(model, x.split(32), parts=PARTS).sites["0.weight"].curvature
    assert curvature is not None
    torch.testing.assert_close(curvature[0].double(), torch.eye(3).double() / 16, rtol=0.15, atol=0.006)


def test_the_model_and_the_random_state_stay() -> None:
    model, x = chain().train(), torch.randn(40, 3).double()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    pk.calibrate(model, [x], parts=PARTS)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_kept_in_a_file(tmp_path: Path) -> None:
    found = pk.calibrate(chain(), [torch.randn(40, 3).double()], parts=PARTS)
    found.save(tmp_path / "s.safetensors")
    again = pk.Statistics.load(tmp_path / "s.safetensors")
    assert "curvatures" in again
    for name, seen in found.sites.items():
        assert seen.curvature is not None
        assert seen.energy is not None
        assert torch.equal(again.sites[name].curvature, seen.curvature)  # type: ignore[arg-type]
        assert torch.equal(again.sites[name].energy, seen.energy)  # type: ignore[arg-type]
    assert "curvatures" not in pk.calibrate(chain(), [torch.randn(40, 3).double()])


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            result: Tensor = self.layers(x)
        return result


def test_without_gradients_it_is_told_and_done_without() -> None:
    torch.manual_seed(0)
    model, x = Detached(), torch.randn(60, 3)
    with pytest.raises(pk.ArgumentError, match="Curvatures need gradients") as error:
        pk.calibrate(model, [x], parts=PARTS)
    assert "no output has a gradient" in str(error.value)
    plain = pk.prune(
        copy.deepcopy(model), x[:1], target={"macs": 0.5}, calibration=[x], allocation="global",
        importance=CalibratedImportance(curvatures=False),
    )  # fmt: skip
    found = pk.prune(model, x[:1], target={"macs": 0.5}, calibration=[x])
    assert found.plan == plain.plan
    assert any("for want of gradients: no output has a gradient" in note for note in found.report.notes)
    assert found.protocol.arguments["allocation"] == "global"


def test_batches_with_bad_gradients_are_left_out() -> None:
    model, x = chain(), torch.randn(40, 3).double()
    bad = torch.full((4, 3), float("inf")).double()
    found = pk.calibrate(model, [x, bad], parts=PARTS)
    clean = pk.calibrate(model, [x], parts=PARTS)
    for name, seen in found.sites.items():
        assert torch.equal(seen.curvature, clean.sites[name].curvature)  # type: ignore[arg-type]
    assert any("1 batch left out, whose gradients were not finite" in note for note in found.notes)


def test_errors_count_by_what_they_do() -> None:
    """With curvature the scores are those of the consumer's weight times a root of the mean of G and its diagonal."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    x = torch.randn(200, 3).double()
    statistics = pk.calibrate(model, [x], parts=PARTS)
    (group,) = (g for g in pk.DependencyGraph().build_dependency(model, x).get_all_groups() if g.name == "0")
    found = ReconstructionImportance(statistics, normalizer=None)(group)
    curvature = statistics.sites["2.weight"].curvature
    assert curvature is not None
    mean = (curvature[0].double() + curvature[0].double().diagonal().diag()) / 2
    values, vectors = torch.linalg.eigh(mean)
    other = copy.deepcopy(model)
    other[2].weight.data = (vectors * values.clamp(min=0).sqrt()).T @ model[2].weight.detach()
    (group,) = (g for g in pk.DependencyGraph().build_dependency(other, x).get_all_groups() if g.name == "0")
    expected = ReconstructionImportance(statistics, normalizer=None, curvatures=False)(group)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-9)


def test_effects_are_curvature_times_energy() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    x = torch.randn(200, 3).double()
    statistics = pk.calibrate(model, [x], parts=PARTS)
    (group,) = pk.DependencyGraph().build_dependency(model, x).get_all_groups()
    seen = statistics.sites["0.weight"]
    assert seen.curvature is not None
    found = EffectImportance(statistics, normalizer=None)(group)
    expected = seen.curvature[0].double().diagonal() * model[0](x).detach().square().mean(0)
    torch.testing.assert_close(found, expected)


def test_scores_that_are_damages_add_up() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    x = torch.randn(200, 3).double()
    problems = []

    def solve(problem: Any) -> tuple[int, ...]:
        problems.append(problem)
        return tuple(problem.smallest)

    criterion = CalibratedImportance(pk.calibrate(model, [x], parts=PARTS))
    assert criterion.additive
    groups = {g.name: g for g in pk.DependencyGraph().build_dependency(model, x).get_all_groups()}
    pk.prune(copy.deepcopy(model), x[:1], target={"macs": 0.9}, importance=criterion, allocation=solve)
    for choice in problems[0].choices:
        (name,) = choice.options[0]
        scores = criterion(groups[name])
        assert scores is not None
        lost = [float(scores.sort()[0][: len(scores) - option[name]].sum()) for option in choice.options]
        assert choice.damages == pytest.approx(lost, rel=1e-6, abs=1e-9)
    result = pk.prune(model, x[:1], target={"macs": 0.5}, calibration=[x])
    assert result.protocol.arguments["allocation"] == "estimated"


def pair() -> nn.Sequential:
    """Its consumers put out 5 and 4."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4)).double()


def test_of_a_wide_consumer_it_is_the_diagonal(tmp_path: Path) -> None:
    model, x = pair(), torch.randn(200, 3).double()
    whole = pk.calibrate(model, [x], parts=PARTS)
    found = gather(model, [x], Demand(PARTS, widest=4))
    first, second = found.sites["0.weight"], found.sites["2.weight"]
    assert first.curvature is not None
    assert first.curvature.shape == (1, 5)
    assert torch.equal(second.curvature, whole.sites["2.weight"].curvature)  # type: ignore[arg-type]
    torch.testing.assert_close(first.diagonal, whole.sites["0.weight"].diagonal)
    torch.testing.assert_close(first.effect, whole.sites["0.weight"].effect)
    found.save(tmp_path / "s.safetensors")
    again = pk.Statistics.load(tmp_path / "s.safetensors").sites["0.weight"]
    assert torch.equal(again.curvature, first.curvature)  # type: ignore[arg-type]


def test_errors_count_by_a_diagonal_as_by_a_diagonal_matrix() -> None:
    model, x = pair(), torch.randn(200, 3).double()
    found = gather(model, [x], Demand(PARTS, widest=0))
    full = {name: attrs.evolve(s, curvature=torch.diag_embed(s.diagonal)) for name, s in found.sites.items()}
    (group,) = pk.DependencyGraph().build_dependency(model, x).get_all_groups()
    one, other = (ReconstructionImportance(s, None)(group) for s in (found, attrs.evolve(found, sites=full)))
    torch.testing.assert_close(one, other, rtol=1e-6, atol=0)


def test_the_energy_of_many_outputs_is_added_up_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = pair(), torch.randn(200, 3).double()
    batches = [x, torch.cat([x[:5], torch.full((1, 3), float("nan")).double(), x[5:9]])]
    whole = pk.calibrate(model, batches, parts=PARTS)
    monkeypatch.setattr(curvature, "BLOCK", 35)
    found = pk.calibrate(model, batches, parts=PARTS)
    for name, seen in found.sites.items():
        torch.testing.assert_close(seen.energy, whole.sites[name].energy)
    outputs = model[0](torch.cat([x, x[:9]])).detach()
    torch.testing.assert_close(found.sites["0.weight"].energy, outputs.square().mean(0)[None])


@pytest.mark.parametrize(("short", "dims"), [(0, 3), (1, 2)])
def test_curvatures_that_do_not_fit_are_diagonals_and_told(
    short: int, dims: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers with 3 and 5 inputs, 5 and 4 outputs: 9 + 25 covariances of 8 bytes, 25 + 16 curvatures of 4."""
    monkeypatch.setattr(demand, "ROOM", 8 * (9 + 25) + 4 * (25 + 16) - short)
    x, criterion = torch.randn(60, 3).double(), CalibratedImportance()
    asked = []
    monkeypatch.setattr(calibrated, "gather", lambda *a, **k: asked.append(gather(*a, **k)) or asked[-1])
    found = pk.prune(pair(), x[:1], target={"macs": 0.5}, calibration=[x], importance=criterion)
    (statistics,) = asked
    assert [seen.curvature.dim() for seen in statistics.sites.values()] == [dims] * 2
    assert found.protocol.arguments["allocation"] == "estimated"
    told = [note for note in found.report.notes if note.startswith("of the curvatures only the diagonals are used")]
    assert len(told) == short


def test_diagonals_are_not_told_of_where_there_are_no_curvatures(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = Detached(), torch.randn(60, 3)
    monkeypatch.setattr(demand, "ROOM", 8 * (9 + 64 + 64))
    notes = pk.prune(model, x[:1], target={"macs": 0.5}, calibration=[x]).report.notes
    assert sum("for want of gradients: no output has a gradient" in note for note in notes) == 1
    assert not any("diagonals" in note or "variances" in note for note in notes)


def test_a_large_vocabulary_needs_no_matrix_of_its_size() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, WIDEST + 1))
    x = torch.randn(20, 4)
    statistics = pk.calibrate(model, [x], parts=PARTS)
    assert statistics.sites["2.weight"].curvature.shape == (1, WIDEST + 1)  # type: ignore[union-attr]
    assert pk.prune(model, x[:1], target={"macs": 0.5}, calibration=[x]).plan.cuts


class Plain(nn.Module):
    """Two linear layers, one of which changes what the other put out in place."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(24, 40), nn.Linear(40, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu_())


class Functional(Plain):
    """The same, whose layers aren't called as modules."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = nn.functional.linear(x, self.up.weight, self.up.bias)
        return nn.functional.linear(hidden.relu_(), self.down.weight)


@pytest.mark.parametrize("widest", [WIDEST, 16])
@pytest.mark.parametrize("samples", [3, 64])
def test_gradients_by_outputs_and_by_weights_give_the_same(
    monkeypatch: pytest.MonkeyPatch, samples: int, widest: int
) -> None:
    """With few samples a linear layer's own gradient isn't taken; a weight that a function is given always has one."""
    torch.manual_seed(0)
    plain, functional = Plain(), Functional()
    functional.load_state_dict(plain.state_dict())
    monkeypatch.setattr(symmetric, "ROWS", 16)
    wish = Demand(parts=PARTS, widest=widest)
    tapped = list[str]()
    hook = curvature._Taps._hook

    def counted(taps: curvature._Taps, name: str) -> Any:
        tapped.append(name)
        return hook(taps, name)

    monkeypatch.setattr(curvature._Taps, "_hook", counted)
    batches = [torch.randn(samples, 24) for _ in range(3)]
    first, second = (gather(model, batches, wish).sites for model in (plain, functional))
    assert set(tapped) == ({"up.weight", "down.weight"} if samples == 3 else set())
    for name, seen in first.items():
        assert seen.curvature is not None
        torch.testing.assert_close(seen.curvature, second[name].curvature)
        if seen.curvature.dim() > 2:
            torch.testing.assert_close(seen.curvature, seen.curvature.transpose(1, 2))


class Tokens(nn.Module):
    """An embedding and a head, whose weights may be one parameter."""

    def __init__(self, *, tied: bool, head_first: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        embed, self.layer, head = nn.Embedding(30, 8), nn.Linear(8, 8), nn.Linear(8, 30, bias=False)
        head.weight = embed.weight if tied else nn.Parameter(embed.weight.detach().clone())
        parts = {"embed": embed, "head": head}
        for name in reversed(parts) if head_first else parts:
            self.add_module(name, parts[name])

    def forward(self, tokens: Tensor) -> Tensor:
        head: Tensor = self.head(self.layer(self.embed(tokens)).relu())
        return head


@pytest.mark.parametrize("head_first", [False, True])
@pytest.mark.parametrize("widest", [WIDEST, 16])
@pytest.mark.parametrize("length", [2, 40])
def test_a_head_that_is_tied_to_an_embedding_is_judged_by_what_it_puts_out(
    length: int, widest: int, head_first: bool
) -> None:
    """What the embedding's use adds to the gradient of the weight they share says nothing about the head."""
    batches = torch.randint(30, (4, 1, length)).unbind()
    demand = Demand(PARTS, widest=widest)
    models = (Tokens(tied=tied, head_first=head_first) for tied in (True, False))
    tied, untied = (gather(model, batches, demand).sites for model in models)
    (head,) = (seen for name, seen in tied.items() if name != "layer.weight")
    expected = untied["head.weight"].curvature
    assert head.curvature is not None
    assert expected is not None
    torch.testing.assert_close(head.curvature, expected)
    assert torch.equal(tied["layer.weight"].curvature, untied["layer.weight"].curvature)  # type: ignore[arg-type]


def test_scores_leave_a_curvature_of_any_dtype_as_it_was() -> None:
    torch.manual_seed(0)
    (seen,) = gather(nn.Sequential(nn.Linear(6, 4)), torch.randn(4, 8, 6).unbind(), Demand(PARTS)).sites.values()
    assert seen.curvature is not None
    seen = attrs.evolve(seen, curvature=seen.curvature.double())
    before = seen.curvature.clone()
    weighted(torch.randn(1, 4, 6), seen)
    assert torch.equal(seen.curvature, before)


def test_a_layer_whose_output_a_hook_changes_is_judged_by_its_weight() -> None:
    torch.manual_seed(0)
    plain, hooked = Plain(), Plain()
    hooked.load_state_dict(plain.state_dict())
    hooked.down.register_forward_hook(lambda module, inputs, output: output * 3)
    batches = [torch.randn(3, 24) for _ in range(3)]
    first, second = (pk.calibrate(model, batches, parts=PARTS).sites["down.weight"] for model in (plain, hooked))
    assert first.curvature is not None
    torch.testing.assert_close(second.curvature, first.curvature * 9)


@pytest.mark.parametrize(("rounds", "width"), [(24, 1), (8, 3), (3, 2)])
def test_units_go_one_after_the_other_as_from_an_inverse_that_is_made_anew(rounds: int, width: int) -> None:
    """What a unit adds is ``tr(W_U [(H^-1)_UU]^-1 W_U^T)``, with ``H`` and ``W`` of the features that are left."""
    torch.manual_seed(0)
    features, units = 24, 24 // width
    x = torch.randn(400, 10).double() @ torch.randn(10, features).double() + 0.3 * torch.randn(400, features).double()
    covariance, weight = x.T @ x / 400, torch.randn(7, features).double()
    labels = torch.arange(units).repeat(width)  # the features of a unit are apart from each other
    block = reconstruction._Block.of(weight.clone(), covariance, labels, 1e-2)
    assert block is not None
    found = reconstruction._take_away([block], units, rounds)

    variances = covariance.diagonal()
    regular = covariance + (1e-2 * variances.clamp(max=variances.mean()) + 1e-6 * variances.mean()).diag()
    left, floor, expected = list(range(units)), 0.0, torch.zeros(units).double()
    for number in range(rounds):
        stay = torch.isin(labels, torch.tensor(left))
        inverse = regular[stay][:, stay].inverse()
        fitted = weight @ regular[:, stay] @ inverse
        errors = {}
        for unit in left:
            own = labels[stay] == unit
            columns = fitted[:, own]
            errors[unit] = max(floor, float((columns @ inverse[own][:, own].inverse() * columns).sum()))
        gone = sorted(left, key=errors.__getitem__)[: len(left) // (rounds - number)]
        for unit in gone:
            expected[unit] = errors[unit]
        floor = max(errors[unit] for unit in gone)
        left = [unit for unit in left if unit not in gone]
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
