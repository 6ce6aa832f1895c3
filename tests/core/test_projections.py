"""Projections of outputs: in which metric a change of them counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunekit_plugins.calibration.batches import Batch, Batches
from prunekit_plugins.calibration.demand import Demand
from prunekit_plugins.calibration.projections import Projections, usual_count
from prunekit_plugins.calibration.stream import gather

DRAWS = 40_000


def batch(inputs: Any) -> Batch:
    return next(iter(Batches.of([inputs]).read(torch.device("cpu"))))


def second_moments(outputs: Any, inputs: Any, draws: int = DRAWS) -> list[Tensor]:
    """``E[v v^T]`` of each output, from many draws."""
    projections, generator, given = Projections.of(outputs), torch.Generator().manual_seed(0), batch(inputs)
    sums = [torch.zeros(one.numel(), one.numel()).double() for one in projections.tensors]
    for _ in range(draws):
        for total, v in zip(sums, projections.draw(given, generator), strict=True):
            total.addr_(v.flatten().double(), v.flatten().double())
    return [total / draws for total in sums]


def test_logits_count_by_the_divergence_of_their_distributions() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 5, requires_grad=True)
    chances = logits[0].detach().double().softmax(0)
    (found,) = second_moments({"logits": logits}, torch.zeros(1, 2))
    torch.testing.assert_close(found, chances.diag() - chances.outer(chances), rtol=0.03, atol=0.004)
    change = 1e-3 * torch.randn(5).double()
    before = logits[0].detach().double()
    divergence = F.kl_div((before + change).log_softmax(0), before.log_softmax(0), reduction="sum", log_target=True)
    assert float(change @ found @ change) == pytest.approx(2 * float(divergence), rel=0.05)


def test_positions_are_distributions_of_their_own() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 2, 3, requires_grad=True)
    (found,) = second_moments({"logits": logits}, torch.zeros(1, 2))
    expected = torch.block_diag(*(p.diag() - p.outer(p) for p in logits[0].detach().double().softmax(1)))
    torch.testing.assert_close(found, expected, rtol=0.03, atol=0.006)


@pytest.mark.parametrize(
    "outputs",
    [
        torch.zeros(1, 3),  # a tensor without a name
        {"scores": torch.zeros(1, 3)},
        {"logits": torch.zeros(3, 1)},  # one number each
        {"logits": torch.zeros(1, 1, 1, 3)},  # of a picture: its classes aren't the last dim
        {"past_key_values": [torch.zeros(1, 3)]},  # there are no logits beside them
    ],
)
def test_other_outputs_count_by_squared_changes(outputs: Any) -> None:
    leaf = outputs if isinstance(outputs, Tensor) else next(iter(outputs.values()))
    (leaf[0] if isinstance(leaf, list) else leaf).requires_grad_(True)
    (found,) = second_moments(outputs, torch.zeros(1, 2), 2000)
    torch.testing.assert_close(found, torch.eye(3).double(), rtol=0, atol=0.1)


def test_beside_logits_what_repeats_the_inside_does_not_count() -> None:
    names = ("logits", "boxes", "past_key_values", "hidden_states", "encoder_last_hidden_state")
    outputs = {name: torch.zeros(1, 2, 3, requires_grad=True) for name in names}
    found = Projections.of(outputs)
    assert [id(one) for one in found.tensors] == [id(outputs["logits"]), id(outputs["boxes"])]
    assert [root is None for root in found.roots] == [False, True]
    assert Projections.of({"labels": torch.zeros(3)}).tensors == []


def test_positions_that_a_mask_leaves_out_do_not_count() -> None:
    ids, mask = torch.zeros(2, 3, dtype=torch.long), torch.tensor([[1, 1, 0], [1, 0, 0]])
    given = batch({"input_ids": ids, "attention_mask": mask})
    outputs = {"logits": torch.randn(2, 3, 4, requires_grad=True), "values": torch.zeros(2, 3, 2, requires_grad=True)}
    for v in Projections.of(outputs).draw(given, torch.Generator().manual_seed(0)):
        assert torch.equal((v != 0).any(2), mask.bool())


def test_beside_means_next_to() -> None:
    tensors = {name: torch.zeros(1, 2, 3, requires_grad=True) for name in ("logits", "cache", "other", "inner", "last")}
    outputs = {
        "cache": tensors["other"],  # there are no logits beside it
        "out": {"logits": tensors["logits"], "cache": tensors["cache"], "state": {"x": tensors["last"]}},
        "hidden_states": {"logits": tensors["inner"]},
    }
    found = Projections.of(outputs)
    assert {id(one) for one in found.tensors} == {id(tensors[name]) for name in ("logits", "other", "inner")}


def test_a_position_that_does_not_count_may_have_no_distribution() -> None:
    mask = torch.tensor([[1, 1, 0]])
    given = batch({"input_ids": torch.zeros(1, 3, dtype=torch.long), "attention_mask": mask})
    logits = torch.randn(1, 3, 4)
    logits[0, 2] = -torch.inf
    (v,) = Projections.of({"logits": logits.requires_grad_(True)}).draw(given, torch.Generator().manual_seed(0))
    assert torch.equal((v != 0).any(2), mask.bool())


def test_half_precision_is_drawn_in_single() -> None:
    """Probabilities of a thousandth add up to 1 in float32 alone."""
    logits = torch.linspace(-0.1, 0.1, 3000)[None].half()
    drawn = []
    for one in (logits, logits.float()):
        projections = Projections.of({"logits": one.clone().requires_grad_(True)})
        (v,) = projections.draw(batch(torch.zeros(1, 2)), torch.Generator().manual_seed(0))
        assert v.dtype is one.dtype
        drawn.append(v.float())
    torch.testing.assert_close(drawn[0], drawn[1], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(("examples", "count"), [(1, 2), (40, 2), (64, 4), (1000, 8)])
def test_larger_batches_have_more(examples: int, count: int) -> None:
    assert usual_count(batch(torch.zeros(examples, 2))) == count


class Sink(nn.Module):
    """Two features are huge at a position whose output nothing uses."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.size, self.layer = size, nn.Linear(8, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.zeros_like(x[:, :1])
        first[..., :2] = self.size
        return self.layer(torch.cat([first, x[:, 1:]], 1))[:, 1:]


@pytest.mark.parametrize("widest", [4096, 0])
@pytest.mark.parametrize("size", [0.0, 300.0])
def test_values_that_count_for_nothing_hide_no_damage(size: float, widest: int) -> None:
    torch.manual_seed(0)
    model, batches = Sink(size), [torch.randn(16, 5, 8) for _ in range(12)]
    seen = gather(model, batches, Demand(("moments", "curvatures"), widest=widest)).sites["layer.weight"]
    weight, curvature = model.layer.weight.detach().double(), seen.curvature if widest else seen.diagonal.diag_embed()
    assert curvature is not None
    second = (seen.moments.variance + seen.moments.mean.square())[0]
    found = (weight * (curvature[0].double() @ weight)).sum(0) * second
    exact = torch.cat(batches)[:, 1:].double().square().sum((0, 1)) / (16 * 12) * weight.square().sum(0)
    ratios = (found / exact)[2:]  # of those without huge values
    assert 0.6 < float(ratios.median()) < 1.6
    assert float(ratios.min()) > 0.4
