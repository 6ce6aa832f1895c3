"""Mixtures of a kind of their own: experts of several classes, one that does nothing, lists in lists, shared ones."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunekit as pk

WIDTH = 12


class Gated(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(WIDTH, hidden), nn.Linear(WIDTH, hidden), nn.Linear(hidden, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return result


class Plain(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, hidden), nn.Linear(hidden, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.down(self.up(x).relu())
        return result


class Nothing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)


class Switch(nn.Module):
    """One expert for each token, of several classes; one does nothing. What it puts out is added to what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 5)
        last = nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, WIDTH))
        self.experts = nn.ModuleList([Gated(10), Plain(14), Nothing(), Plain(14), last])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = self.router(x).softmax(-1).max(-1)
        result = x.clone()
        for number in chosen.unique().tolist():
            sent = chosen == number
            result[sent] = x[sent] + weights[sent][:, None] * self.experts[number](x[sent])
        return result


class Nested(nn.Module):
    """A list of lists: a group is chosen first, by a router, then an expert of it, by another one."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.routers = nn.Linear(WIDTH, 2), nn.ModuleList(nn.Linear(WIDTH, 3) for _ in range(2))
        self.groups = nn.ModuleList(nn.ModuleList(Plain(10) for _ in range(3)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result, group = torch.zeros_like(x), self.router(x).argmax(-1)
        for number, (router, experts) in enumerate(zip(self.routers, self.groups, strict=True)):
            rows = (group == number).nonzero().squeeze(-1)
            own = x[rows]
            weights = router(own).softmax(-1)
            outputs = torch.zeros_like(own)
            for place, expert in enumerate(experts):  # type: ignore[arg-type]
                sent = (weights.argmax(-1) == place).nonzero().squeeze(-1)
                outputs = outputs.index_copy(0, sent, expert(own[sent]) * weights[sent, place, None])
            result = result.index_add(0, rows, outputs)
        return x + result


class Beside(nn.Module):
    """Two experts of several by sigmoid scores with a correction, and one that all tokens go through."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.correction = nn.Linear(WIDTH, 4, bias=False), nn.Parameter(torch.randn(4) / 10)
        self.experts, self.shared = nn.ModuleList(Gated(10) for _ in range(4)), Gated(10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.router(x).sigmoid()
        chosen = (scores + self.correction).topk(2, -1).indices
        weights = scores.gather(1, chosen)
        weights = weights / weights.sum(-1, keepdim=True)
        result = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            token, place = torch.where(chosen == number)
            if token.numel():
                result[token] += expert(x[token]) * weights[token, place, None]
        return x + result + self.shared(x)


class Stack(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.first, self.layers = nn.Linear(6, WIDTH), nn.ModuleList(kind() for _ in range(3))
        self.last = nn.Linear(WIDTH, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        result: torch.Tensor = self.last(x)
        return result


def made(kind: type[nn.Module]) -> Stack:
    torch.manual_seed(0)
    return Stack(kind).eval()


def batches(seed: int = 1, count: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(50, 6, generator=generator) for _ in range(count)]


def error(model: nn.Module, original: nn.Module, data: list[torch.Tensor]) -> float:
    with torch.no_grad():
        wrong = sum(float((model(x) - original(x)).square().sum()) for x in data)
        return wrong / sum(float(original(x).square().sum()) for x in data)


KINDS = (Switch, Nested, Beside)
ASKED = {
    "ratio": {"ratio": 0.4},
    "target": {"target": {"params": 0.7}},
    "depth": {"target": {"params": 0.85}, "by": "depth"},
    "both": {"target": {"params": 0.6}, "by": "both"},
}


def masked(original: Stack, plan: pk.Plan) -> Stack:
    """Puts zeros in the place of all units that left."""
    model = copy.deepcopy(original)
    with torch.no_grad():
        for cut in plan.parameters:
            values = model.get_parameter(cut.parameter)
            for dim, kept in plan.positions(cut).items():
                left = torch.zeros(values.shape[dim])
                left[kept] = 1
                values.mul_(left.reshape([-1 if one == dim else 1 for one in range(values.dim())]))
    return model


CASES = [(kind, asked) for kind in KINDS for asked in ASKED if (kind, asked) != (Switch, "depth")]


@pytest.mark.parametrize(("kind", "asked"), CASES)
def test_any_mixture_is_cut_exactly_and_compensated(kind: type[nn.Module], asked: str) -> None:
    model, plain, original = made(kind), made(kind), made(kind)
    result = pk.prune(model, batches()[0], **ASKED[asked], calibration=batches())
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in original.parameters())
    result.plan.apply(plain)
    assert result.compensation is not None
    assert error(model, original, batches()) <= error(plain, original, batches())
    for x in batches(seed=7):  # other tokens are sent to other experts
        with torch.no_grad():
            found = plain(x)
            assert bool(model(x).isfinite().all())
            assert bool(found.isfinite().all())
            assert result.plan.absent or torch.allclose(found, masked(original, result.plan)(x), atol=1e-5)
    fitted = [layer.consumer for layer in result.compensation.layers]
    assert any("expert" in name or "groups" in name for name in fitted) == (asked != "depth")


def test_what_experts_read_stays_where_the_example_runs_some_of_them() -> None:
    model, original = made(Switch), made(Switch)
    example = batches()[0]
    result = pk.prune(model, example, ratio=0.4)
    ran = set[str]()
    for name, module in original.named_modules():
        module.register_forward_hook(lambda module, given, result, name=name: ran.add(name))
    original(example)
    missing = [name for name in ("layers.0", "layers.1", "layers.2") if {f"{name}.experts.{n}" for n in range(5)} - ran]
    assert missing
    told = [note for note in result.report.notes if note.startswith("WARNING: values decide which entries of")]
    assert [note.split(" run, ")[0].rpartition(" ")[2] for note in told] == [f"{name}.experts" for name in missing]
    assert tuple(model.last.weight.shape) == (3, WIDTH)
    whole = pk.prune(made(Switch), torch.cat([10 * batch for batch in batches(count=20)]), ratio=0.4)
    assert not any("values decide which" in note for note in whole.report.notes)
    assert "first#stream" in whole.report.pruned


def test_branches_in_loops_over_experts_are_not_scored_where_other_data_run_other_ones() -> None:
    model = made(Switch)
    with pytest.raises(pk.plugin.PrunekitError, match="the criterion has nothing to say about it"):
        pk.prune(model, batches()[0], target={"params": 0.85}, by="depth", calibration=batches())
