"""Scores of branches, each against an independent computation: by hooks, by gates in the code, by zeroed weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunekit as pk
from prunekit.plugin import BranchGroup, BranchNeed, MeanOverRows
from prunekit_plugins.calibration.branch_runs import BranchRuns
from prunekit_plugins.importance import (
    BlockInfluenceImportance,
    BranchResidualImportance,
    GateFisherImportance,
    GateTaylorImportance,
    MagnitudeImportance,
    OutputChangeImportance,
    RandomImportance,
    RelativeEnergyImportance,
)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 9), nn.Linear(9, 6)

    def inner(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down(F.gelu(self.up(x)))
        return out

    def forward(self, x: torch.Tensor, gate: torch.Tensor | float = 1.0) -> torch.Tensor:
        return x + self.inner(x) if isinstance(gate, float) else x + gate * self.inner(x)


class Net(nn.Module):
    """Two blocks, then one that is called twice, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.twice, self.head = nn.ModuleList([Block(), Block()]), Block(), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor | None = None, gates: Any = (1.0,) * 3) -> Any:
        for block, gate in zip(self.blocks, gates, strict=False):
            x = block(x, gate)
        x = self.twice(self.twice(x, gates[2]), gates[2])
        return {"logits": self.head(x)}


class Pictures(nn.Module):
    """Feature maps, added in place, with a relu in place behind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(1, 3, 1), nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        x = self.stem(x)
        out = self.conv(x)
        if gate is not None:
            out = out * gate
        out += x
        out = F.relu(out, inplace=True)
        return self.head(out.mean((2, 3)))


NAMES = ("blocks.0.up", "blocks.1.up", "twice.up")
TOKENS = [torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(n)) for n in range(2)]
IMAGES = [torch.randn(4, 1, 5, 5, generator=torch.Generator().manual_seed(n)) for n in range(2)]


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def scores(model: nn.Module, criterion: Any, batches: Any, *, off: tuple[str, ...] = ()) -> dict[str, float]:
    batches = pk.Batches.of(batches)
    graph = pk.Graph.of(model, next(iter(batches.read(None))).given)
    runs = BranchRuns(graph, batches, getattr(criterion, "loss_fn", None))
    gatherers = {b.name: criterion.branch(BranchGroup(graph, b)) for b in graph.branches() if b.name not in off}
    runs.gather(gatherers, off)
    return {name: gatherer.score() for name, gatherer in gatherers.items()}


def operands(model: Net, batches: list[torch.Tensor]) -> dict[str, list[tuple[torch.Tensor, torch.Tensor]]]:
    """What each block is given and what it adds, by forward hooks; tokens as rows."""
    found: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {name: [] for name in NAMES}

    def hook(name: str) -> Callable[..., None]:
        def seen(module: nn.Module, args: Any, out: torch.Tensor) -> None:
            found[name].append((args[0].flatten(0, 1), module.inner(args[0]).flatten(0, 1)))  # type: ignore[operator]

        return seen

    modules = [*model.blocks, model.twice]
    handles = [module.register_forward_hook(hook(name)) for name, module in zip(NAMES, modules, strict=True)]
    with torch.no_grad():
        for batch in batches:
            model(batch)
    for handle in handles:
        handle.remove()
    return found


def test_energy_and_influence_are_those_of_the_operands() -> None:
    model = net()
    seen = operands(model, TOKENS)
    rest = {name: torch.cat([p for p, _ in pairs]) for name, pairs in seen.items()}
    added = {name: torch.cat([q for _, q in pairs]) for name, pairs in seen.items()}
    for name, score in scores(model, RelativeEnergyImportance(), TOKENS).items():
        assert score == pytest.approx(float((added[name].norm(dim=1) / rest[name].norm(dim=1)).mean()), rel=1e-5)
    for name, score in scores(model, BlockInfluenceImportance(), TOKENS).items():
        p, s = rest[name], rest[name] + added[name]
        cosine = (p * s).sum(1) / (p.norm(dim=1) * s.norm(dim=1))
        assert score == pytest.approx(float((1 - cosine).mean()), rel=1e-4)


def test_tokens_that_the_mask_leaves_out_do_not_count() -> None:
    model, mask = net(), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
    pairs = operands(model, TOKENS[:1])["blocks.0.up"]
    keep = mask.flatten() > 0
    expected = float((pairs[0][1][keep].norm(dim=1) / pairs[0][0][keep].norm(dim=1)).mean())
    found = scores(model, RelativeEnergyImportance(), [{"x": TOKENS[0], "attention_mask": mask}])
    assert found["blocks.0.up"] == pytest.approx(expected, rel=1e-5)


def loss(outputs: Any, batch: Any) -> torch.Tensor:
    logits = outputs["logits"] if isinstance(outputs, dict) else outputs
    return F.cross_entropy(logits.flatten(0, -2), torch.arange(logits.flatten(0, -2).shape[0]) % logits.shape[-1])


@pytest.mark.parametrize("name", NAMES)
def test_gates_have_the_derivatives_of_gates_in_the_code(name: str) -> None:
    """The losses of single examples, by autograd, with a gate on the branch in the model's own code."""
    model, place, slopes = net(), NAMES.index(name), []
    for batch in TOKENS:
        gates: list[Any] = [1.0, 1.0, 1.0]
        gates[place] = gate = torch.ones(len(batch), 1, 1, requires_grad=True)
        whole = loss(model(batch, gates=gates), batch)
        slopes.append(torch.autograd.grad(whole, gate)[0].flatten() * len(batch))
    slope = torch.cat(slopes)
    taylor, fisher = (scores(model, kind(loss), TOKENS) for kind in (GateTaylorImportance, GateFisherImportance))
    assert taylor[name] == pytest.approx(float(slope.abs().mean()), rel=1e-4)
    assert fisher[name] == pytest.approx(float(slope.square().mean()), rel=1e-4)


def test_gates_say_that_inference_mode_has_no_gradients() -> None:
    with torch.inference_mode(), pytest.raises(pk.ArgumentError, match=r"in inference mode\.[\s\S]*torch\.no_grad"):
        scores(net(), GateTaylorImportance(), TOKENS)


@pytest.mark.parametrize("criterion", [GateTaylorImportance(), GateFisherImportance(loss)])
def test_gates_have_derivatives_where_the_caller_switched_gradients_off(criterion: Any) -> None:
    expected = scores(net(), criterion, TOKENS)
    with torch.no_grad():
        assert scores(net(), criterion, TOKENS) == expected


def test_gates_are_those_before_an_operation_in_place() -> None:
    torch.manual_seed(0)
    model = Pictures().eval()
    slopes = []
    for batch in IMAGES:
        gate = torch.ones(len(batch), 1, 1, 1, requires_grad=True)
        slopes.append(torch.autograd.grad(loss(model(batch, gate), batch), gate)[0].flatten() * len(batch))
    found = scores(model, GateTaylorImportance(loss), IMAGES)
    assert found == {"conv": pytest.approx(float(torch.cat(slopes).abs().mean()), rel=1e-4)}


def test_gates_without_labels_measure_how_far_the_outputs_move() -> None:
    """Random signs: the mean over many of the squared derivative is the squared change of the outputs per gate."""
    model, eps = net().double(), 1e-5
    batch = TOKENS[0][:1].double()
    with torch.no_grad():
        up, down = (model(batch, gates=[torch.tensor(1 + e), 1.0, 1.0])["logits"] for e in (eps, -eps))
    expected = float(((up - down) / (2 * eps)).square().sum())
    found = scores(model, GateFisherImportance(), [batch] * 300)
    assert found["blocks.0.up"] == pytest.approx(expected, rel=0.25)


def test_the_residual_is_that_of_least_squares() -> None:
    model = net().double()
    batches = [torch.randn(8, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) for n in range(2)]
    found = scores(model, BranchResidualImportance(ridge=0.0), batches)
    for name, pairs in operands(model, batches).items():
        rest, added = (torch.cat([pair[side] for pair in pairs]) for side in (0, 1))
        rows = torch.cat([rest, torch.ones(len(rest), 1)], 1)
        left = added - rows @ torch.linalg.lstsq(rows, added).solution
        assert found[name] == pytest.approx(float(left.square().sum() / (rest + added).square().sum()), rel=1e-6)


def test_the_residual_says_nothing_about_feature_maps() -> None:
    graph = pk.Graph.of(Pictures().eval(), IMAGES[0])
    assert BranchResidualImportance().branch(BranchGroup(graph, graph.branches()[0])) is None


def switched_off(model: Net, *names: str) -> Net:
    small = copy.deepcopy(model)
    for name in names:
        down = small.get_submodule(name.removesuffix("up") + "down")
        nn.init.zeros_(down.weight)  # type: ignore[arg-type]
        nn.init.zeros_(down.bias)  # type: ignore[arg-type]
    return small


@pytest.mark.parametrize("off", [(), ("blocks.1.up",)])
def test_the_change_of_outputs_is_that_with_zeroed_weights(off: tuple[str, ...]) -> None:
    model = net()
    with torch.no_grad():
        whole = torch.cat([model(batch)["logits"] for batch in TOKENS]).flatten(0, 1)
        found = scores(model, OutputChangeImportance(), TOKENS, off=off)
        errors = scores(model, OutputChangeImportance("error"), TOKENS, off=off)
        assert found.keys() == errors.keys() == set(NAMES) - set(off)
        for name, score in found.items():
            small = switched_off(model, *off, name)
            outputs = torch.cat([small(batch)["logits"] for batch in TOKENS]).flatten(0, 1)
            p, q = whole.softmax(-1), outputs.softmax(-1)
            assert score == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-3)
            error = (outputs - whole).square().sum() / whole.square().sum()
            assert errors[name] == pytest.approx(float(error), rel=1e-4)


def test_the_model_is_not_touched() -> None:
    model = net().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for criterion in (RelativeEnergyImportance(), GateFisherImportance(loss), OutputChangeImportance()):
        scores(model, criterion, TOKENS)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_batches_of_another_program_are_refused() -> None:
    class Deep(Net):
        def forward(self, x: torch.Tensor, attention_mask: Any = None, gates: Any = ()) -> Any:
            for _ in range(x.shape[1]):
                x = self.twice(x)
            return self.head(x)

    model = Deep().eval()
    graph = pk.Graph.of(model, TOKENS[0])
    runs = BranchRuns(graph, pk.Batches.of([torch.randn(2, 3, 6)]))
    gatherers = {branch.name: MeanOverRows(lambda one: one.added.norm(dim=1)) for branch in graph.branches()}
    with pytest.raises(pk.ArgumentError, match=r"(?s)another program.*batch 0.*twice adds 3 times, and 5 times"):
        runs.gather(gatherers)


def test_derivatives_need_all_branches() -> None:
    with pytest.raises(pk.ArgumentError, match="Derivatives can't be gathered with branches switched off"):
        scores(net(), GateTaylorImportance(loss), TOKENS, off=("blocks.0.up",))


def test_weights_alone_give_a_guess() -> None:
    model = net()
    graph = pk.Graph.of(model, TOKENS[0])
    group = BranchGroup(graph, graph.branches()[0])
    block = model.blocks[0]
    means = [float(p.detach().square().mean()) for p in block.parameters()]
    assert MagnitudeImportance(p=2).branch(group) == pytest.approx(sum(means) / 4)
    assert group.size() == 1
    assert list(group.parameters()) == [f"blocks.0.{name}" for name, _ in block.named_parameters()]
    assert RandomImportance(seed=3).branch(group) == RandomImportance(seed=3).branch(group)


def test_an_unknown_measure_is_refused() -> None:
    with pytest.raises(pk.ArgumentError, match=r"(?s)no such measure.*got 'js'.*auto, kl, error"):
        OutputChangeImportance("js")
    assert OutputChangeImportance().branch(None).needs is BranchNeed.OUTPUTS  # type: ignore[arg-type]
