"""Promise one: any model that runs can be analysed, whatever is odd about it."""

from __future__ import annotations

import copy
import threading
from collections import UserDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import prunekit as pk
from tests.models import Chain, Residual

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_half_precision_stays_half_and_runs() -> None:
    model = Chain(4, 16, 3).bfloat16()
    x = torch.randn(2, 4, dtype=torch.bfloat16)
    original = copy.deepcopy(model)
    plan = pk.prune(model, x).plan
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert pk.check_exact(original, model, plan, x)


def test_a_model_on_the_meta_device_is_planned_and_cut_without_weights() -> None:
    with torch.device("meta"):
        model = Residual()
        x = torch.empty(2, 3, 8, 8)
    first = lambda group: -torch.arange(group.size(), dtype=torch.float32)  # noqa: E731
    plan = pk.BasePruner(model, x, first).plan()
    real = Residual()
    expected = real.conv1.weight[:4].clone()
    plan.apply(real)
    assert torch.equal(real.conv1.weight, expected)
    plan.apply(model)
    assert model.conv1.weight.shape == (4, 3, 3, 3)
    assert model.conv1.weight.is_meta


def test_inputs_by_name_and_outputs_of_any_form() -> None:
    @dataclass
    class Output:
        logits: torch.Tensor
        cache: object | None
        steps: int

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 6)

        def forward(self, *, x: torch.Tensor, mask: torch.Tensor | None = None) -> Any:
            hidden = self.a(x).relu()
            return {"output": Output(self.b(hidden), None, 3), "states": [hidden]}

    model = Named()
    with pytest.raises(pk.NothingToPruneError, match=r"a\.weight\[0\]: an output of the model"):
        pk.prune(model, {"x": torch.randn(2, 4), "mask": None})  # the hidden state is an output, too
    chosen = pk.prune(
        model,
        {"x": torch.randn(2, 4)},
        forward_fn=lambda m, inputs: m(**inputs)["output"].logits,
    )
    assert chosen.report.pruned == {"a": (8, 4)}


def test_tensors_cached_in_forward_are_not_filled_with_fakes() -> None:
    class Caching(Chain):
        cache: torch.Tensor | None = None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.cache is None:
                self.cache = torch.ones(x.shape[-1])
            return super().forward(x * self.cache)

    model = Caching(4, 8, 3)
    pk.prune(model, torch.randn(2, 4))
    assert model.cache is None
    model(torch.randn(2, 4))
    pk.prune(model, torch.randn(2, 4))
    assert type(model.cache) is torch.Tensor


def test_programs_that_depend_on_values_are_recorded_on_real_tensors() -> None:
    class Picky(Chain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows = (x.sum(1) > -100).nonzero().flatten()
            if x.sum().item() > 1e9:
                rows = rows[:1]
            return super().forward(x[rows])

    model = Picky(4, 8, 3)
    weights = copy.deepcopy(model.state_dict())
    x = torch.randn(2, 4)
    original = copy.deepcopy(model)
    pruner = pk.BasePruner(model, x, "magnitude")
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())
    pruner.step()
    assert model.layers[0].out_features == 4
    assert "recorded on real tensors" in pruner.report().notes[0]
    assert pk.check_exact(original, model, pruner.graph.applied, x)


def test_a_model_that_cannot_be_copied_is_traced_all_the_same() -> None:
    model = Chain(4, 8, 3)
    model.lock = threading.Lock()
    pruner = pk.BasePruner(model, torch.randn(2, 4), "magnitude")
    assert "can't be deep-copied" in pruner.report().notes[0]
    pruner.step()
    assert model.layers[0].out_features == 4
    assert not model._forward_hooks


def test_wrappers_are_looked_through() -> None:
    compiled, parallel = Chain(4, 8, 3), Chain(4, 8, 3)
    pk.prune(torch.compile(compiled), torch.randn(2, 4))
    pk.prune(nn.DataParallel(parallel), torch.randn(2, 4))
    assert (compiled.layers[0].out_features, parallel.layers[0].out_features) == (4, 4)


def test_checkpointing_and_modes_inside_the_forward() -> None:
    class Regimes(Chain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                x = x * 2
            with torch.enable_grad():
                x = x.tanh()
            return checkpoint(super().forward, x, use_reentrant=False)

    model = Regimes(4, 8, 3)
    original = copy.deepcopy(model)
    x = torch.randn(2, 4)
    with torch.no_grad():
        plan = pk.prune(model, x).plan
    assert plan.kept.keys() == {"layers.0"}
    assert pk.check_exact(original, model, plan, x)


def test_tied_and_shared_parameters_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(11, 8)
            self.block = nn.Linear(8, 8)
            self.head = nn.Linear(8, 11, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.embed(x)
            return self.head(self.block(self.block(x)))

    model = Tied().double()
    original = copy.deepcopy(model)
    x = torch.arange(6)[None]
    plan = pk.prune(model, x).plan
    assert model.head.weight is model.embed.weight
    assert (model.embed.embedding_dim, model.head.in_features, tuple(model.block.weight.shape)) == (4, 4, (4, 4))
    assert pk.check_exact(original, model, plan, x).error < 1e-10


def test_further_inputs_are_part_of_the_program() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor, other: bool = False) -> torch.Tensor:
            return self.c(self.b(x) if other else self.a(x))

    model = Two()
    x = torch.randn(2, 4)
    one = pk.DependencyGraph().build_dependency(model, x)
    assert one.report().untouched == ("b.weight", "b.bias")
    both = pk.DependencyGraph().build_dependency(model, x, more_inputs=[(x, True)])
    (group,) = both.groups()
    assert {m.parameter for m in group.members} == {"a.weight", "a.bias", "b.weight", "b.bias", "c.weight"}


def test_the_same_model_gives_the_same_groups_and_the_same_plan() -> None:
    torch.manual_seed(0)
    model = Residual()
    texts = {pk.BasePruner(copy.deepcopy(model), X, "magnitude").plan().to_json() for _ in range(3)}
    assert len(texts) == 1
    reports = {str(pk.DependencyGraph().build_dependency(copy.deepcopy(model), X).report()) for _ in range(3)}
    assert len(reports) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_training_goes_on_while_a_loss_from_before_the_cut_is_still_alive(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).to(dtype)
    inputs = torch.randn(3, 4, dtype=dtype)
    loss = model(inputs).square().sum()
    loss.backward()
    pk.prune(model, inputs)
    model.zero_grad()
    fresh = copy.deepcopy(model)
    fresh(inputs).square().sum().backward()
    later = model(inputs).square().sum()
    later.backward()
    assert loss.grad_fn is not None
    for parameter, expected in zip(model.parameters(), fresh.parameters(), strict=True):
        assert parameter.dtype is dtype
        torch.testing.assert_close(parameter.grad, expected.grad, rtol=0, atol=0)


class Careless(nn.Module):
    """Computes something that nobody reads."""

    def __init__(self, aside: Any) -> None:
        super().__init__()
        self.aside, self.other = aside, nn.Linear(8, 2)
        self.first, self.second, self.last = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        self.aside(self, x)
        return self.last(self.second(x))


@pytest.mark.parametrize(
    ("aside", "size"),
    [
        (lambda m, x: x[:, -1].exp(), 4),
        (lambda m, x: x[:, 3].unsqueeze(0).cumsum(0), 4),
        (lambda m, x: x[:, 7], 8),  # nobody reads it, but position 7 has to be there
        (lambda m, x: x.view(2, 8), 8),
        (lambda m, x: x[:, 3].zero_(), 8),
        (lambda m, x: m.other(x), 4),
        (lambda m, x: float(x.sum()), 4),
    ],
    ids=["last", "chain", "beyond", "by number", "written", "layer", "number"],
)
def test_what_nobody_reads_only_has_to_run(aside: Any, size: int) -> None:
    torch.manual_seed(0)
    model, x = Careless(aside), torch.randn(2, 4)
    original = copy.deepcopy(model)
    plan = pk.prune(model, x).plan
    assert (model.first.out_features, model.second.out_features) == (size, 3)
    assert model.other.in_features == (4 if model.aside.__code__.co_names == ("other",) else 8)
    assert pk.check_exact(original, model, plan, x)


def test_a_mapping_that_is_no_dict_names_inputs() -> None:
    """What a tokenizer returns is one."""

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.down(self.up(x * scale).relu())
            return out

    torch.manual_seed(0)
    model = Named().double()
    original = copy.deepcopy(model)
    inputs = UserDict(x=torch.randn(3, 4).double(), scale=torch.tensor(2.0).double())
    result = pk.prune(model, inputs, 0.5, calibration=[inputs], compensation=None)
    assert model.up.weight.shape == (4, 4)
    assert pk.check_exact(original, model, result.plan, inputs)
