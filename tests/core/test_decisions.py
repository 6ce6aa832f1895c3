"""Programs that decide by value: replays and the exactness check follow what was decided when they were recorded."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_core.record.decisions import answered, decided
from prunekit_plugins.importance import RandomImportance

aten = torch.ops.aten
REAL, WHOLE = torch.tensor([[0.5, -1.0, 2.0], [3.0, 0.0, -2.0]]), torch.tensor([[1, 0, 2], [0, 5, 6]])


@pytest.mark.parametrize(
    ("op", "args"),
    [
        (aten.gt.Scalar, (REAL, 0.0)),
        (aten.topk.default, (REAL, 2)),
        (aten.sort.default, (REAL,)),
        (aten.argmax.default, (REAL, 1)),
        (aten.nonzero.default, (REAL,)),
        (aten._local_scalar_dense.default, (REAL[0, 0],)),
        (aten.equal.default, (REAL, REAL)),
        (aten.to.dtype, (REAL, torch.int64)),
        (aten.copy_.default, (WHOLE.clone(), REAL)),
        (aten._unique2.default, (REAL, True, True)),
    ],
)
def test_operations_that_make_real_numbers_discrete_decide(op: Any, args: tuple[Any, ...]) -> None:
    found = decided(op, args, {}, op(*args))
    assert found is not None
    assert any(answer is not None for answer in found)


@pytest.mark.parametrize(
    ("op", "args"),
    [
        (aten.add.Tensor, (REAL, REAL)),
        (aten.gt.Scalar, (WHOLE, 0)),
        (aten.sum.default, (WHOLE,)),
        (aten.nonzero.default, (WHOLE,)),
        (aten.index.Tensor, (REAL, [WHOLE > 1])),
        (aten.arange.default, (3,)),
        (aten.to.dtype, (REAL, torch.float64)),
    ],
)
def test_all_others_follow_by_themselves(op: Any, args: tuple[Any, ...]) -> None:
    assert decided(op, args, {}, op(*args)) is None


def test_real_numbers_beside_a_decision_are_computed_where_there_are_as_many() -> None:
    """``lstsq`` decides the rank, and says that some of its outputs have no shape of their own; its solution has."""
    matrix, right = torch.eye(3).unsqueeze(0) + 0.1, torch.arange(3.0).view(1, 3, 1)
    answers = decided(aten.linalg_lstsq.default, (matrix, right), {}, aten.linalg_lstsq.default(matrix, right))
    assert answers is not None
    args = (matrix * 2, right)
    found = answered(answers, [{}] * 4, args, aten.linalg_lstsq.default(*args))
    assert torch.equal(found[0], aten.linalg_lstsq.default(*args)[0])
    assert torch.equal(found[2], answers[2])


def test_answers_are_cut_to_what_stays_and_values_beside_them_are_computed() -> None:
    answers = decided(aten.topk.default, (REAL, 2), {}, aten.topk.default(REAL, 2))
    assert answers is not None
    fewer = REAL[1:] + 10  # chooses alike
    cut = {0: torch.tensor([1])}
    found = answered(answers, [cut, cut], (fewer, 2), aten.topk.default(fewer, 2))
    assert torch.equal(found[0], torch.tensor([[13.0, 10.0]]))
    assert torch.equal(found[1], torch.tensor([[0, 1]]))
    place = torch.zeros(2, 3, dtype=torch.int64)
    answers = decided(aten.copy_.default, (place, REAL), {}, place.copy_(REAL))
    assert answers is not None
    again = torch.full((2, 3), 7)
    assert answered(answers, [{}], (again, REAL), again) is again
    assert torch.equal(again, place)
    assert not torch.equal(
        answered(answers, [{}], (), again.clone()).add_(1), answers[0]
    )  # answers are never handed out


class Detector(nn.Module):
    """Scores places, keeps those above a threshold, the best of them, and reads features there, as often as it says."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.features, self.scores = nn.Linear(6, 12), nn.Linear(12, 16), nn.Linear(16, 3)
        self.inner, self.boxes = nn.Linear(16, 10), nn.Linear(10, 4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        stem = self.stem(x)
        features = self.features(torch.where(stem > 0, stem, 0.1 * stem))
        scores = self.scores(features).sigmoid()
        place, label = torch.where(scores > 0.5)
        best, order = scores[place, label].topk(max(1, len(place) // 2))
        inner = self.inner(features[place[order]])
        for _ in range(int(best.sum().item()) % 3):
            inner = inner.tanh()
        level = best.mul(8).floor().to(torch.int64).clamp(0, 7)
        return {"boxes": self.boxes(inner), "scores": best, "labels": label[order], "level": level}


@pytest.fixture
def detector() -> nn.Module:
    torch.manual_seed(0)
    return Detector().double().eval()


X = torch.randn(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def masked(original: nn.Module, plan: pk.Plan) -> nn.Module:
    """Zeroes by hand what was removed."""
    model = copy.deepcopy(original)
    for cut in plan.parameters:
        tensor = model.get_parameter(cut.parameter).data
        for dim, kept in plan.positions(cut).items():
            gone = sorted(set(range(tensor.shape[dim])) - set(kept.tolist()))
            tensor.index_fill_(dim, torch.tensor(gone), 0.0)
    return model


def test_a_detector_loses_half_of_everything_and_decides_as_the_masked_original(detector: nn.Module) -> None:
    original = copy.deepcopy(detector)
    result = pk.prune(detector, X, importance=RandomImportance())
    assert {name: kept for name, (_, kept) in result.report.pruned.items()} == {"stem": 6, "features": 8, "inner": 5}
    expected, found = masked(original, result.plan)(X), detector(X)
    for key, value in expected.items():
        assert found[key].shape == value.shape
        assert torch.allclose(found[key].double(), value.double(), atol=1e-12), key
    assert len(found["boxes"]) != len(original(X)["boxes"])  # others are chosen than by the original
    check = pk.check_exact(original, detector, result.plan, X)
    assert check.exact, str(check)
    assert check.decisions >= 5


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["stem", "features", "scores", "inner", "boxes"])
def test_the_check_fails_when_what_is_decided_on_differs(detector: nn.Module, layer: str) -> None:
    original = copy.deepcopy(detector)
    plan = pk.prune(detector, X, importance=RandomImportance()).plan
    weight = detector.get_submodule(layer).weight.data
    weight.copy_(weight.roll(1, 0))
    assert not pk.check_exact(original, detector, plan, X)


def test_a_label_is_not_taken_on_trust() -> None:
    class Labels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.out = nn.Linear(6, 8), nn.Linear(8, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.first(x).relu()).argmax(-1)

    torch.manual_seed(0)
    model = Labels().eval()
    original, x = copy.deepcopy(model), X.float()
    plan = pk.prune(model, x).plan
    assert pk.check_exact(original, model, plan, x)
    model.out.weight.data += 1e-3 * torch.randn(5, 4)  # too little to change a label
    assert not pk.check_exact(original, model, plan, x)


@pytest.mark.slow
def test_replays_run_on_the_weights_that_stay() -> None:
    """Native code trusts its input: random weights would lead it to places that don't exist."""

    class Bounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.out = nn.Linear(6, 8), nn.Linear(8, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            if not bool(torch.isfinite(x).all()) or float(x.detach().abs().max()) > 50:
                raise ValueError("out of bounds")
            seen.append(x)  # a copy that nothing reads would count as an output
            return self.out(x)

    torch.manual_seed(0)
    model, seen = Bounded().eval(), list[torch.Tensor]()
    original = copy.deepcopy(model)
    kept = pk.prune(model, X.float()).plan.kept["first"]
    assert any(torch.equal(x, original.first(X.float())[:, list(kept)]) for x in seen if x.shape[1] == 4)


class Copying(nn.Module):
    """Copies tensors while it runs: what the copy's memory holds is no number of the program."""

    def __init__(self, live: bool) -> None:
        super().__init__()
        self.first, self.last, self.live = nn.Linear(6, 16), nn.Linear(16, 3), live

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 1e9:
            x = -x
        y = self.first(x if self.live else copy.deepcopy(x)).relu()
        result: torch.Tensor = self.last(copy.deepcopy(y) if self.live else y)
        return result


@pytest.mark.parametrize("live", [False, True])
def test_tensors_that_are_copied_while_the_program_runs(live: bool) -> None:
    torch.manual_seed(0)
    model, x = Copying(live).double().requires_grad_(False), torch.randn(4, 6, dtype=torch.float64)
    original = copy.deepcopy(model)
    try:
        result = pk.prune(model, x)
    except pk.NothingToPruneError:
        assert live  # nobody sees where the numbers of the copy come from
        assert torch.equal(model(x), original(x))
        return
    gone = [unit for unit in range(16) if unit not in result.plan.kept["first"]]
    with torch.no_grad():
        original.first.weight[gone], original.first.bias[gone] = 0, 0
    assert torch.allclose(model(x), original(x), rtol=1e-12, atol=1e-12)
