"""Models on a GPU: the answers of the CPU, on the model's device, without copies of weights to the host.

Skipped where there is no CUDA device.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

import prunekit as pk
from prunekit.plugin import BranchCriterion
from prunekit_plugins.depth.scoring import BranchScorer
from prunekit_plugins.measure import peak_memory
from prunekit_plugins.pruners import BNScalePruner, GroupNormPruner, GrowingRegPruner
from prunekit_plugins.testing.network import branch_net
from tests.distributed import jobs
from tests.gpu.crossings import Crossings
from tests.models import Attention, Chain, Encoder, Residual
from tests.plugins.preparing import PREPARE
from tests.plugins.test_kit import names

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

CUDA = torch.device("cuda")
SEEDED = torch.Generator().manual_seed(0)
PICTURES = torch.randn(32, 3, 8, 8, generator=SEEDED, dtype=torch.float64)
TOKENS = torch.randn(32, 6, 10, generator=SEEDED, dtype=torch.float64)
MODELS: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "residual": (Residual, PICTURES),
    "encoder": (Encoder, TOKENS),
}
every_model = pytest.mark.parametrize("name", MODELS)


def both(name: str) -> tuple[nn.Module, torch.Tensor, nn.Module, torch.Tensor]:
    """The same model in float64 on the CPU and on the GPU, with inputs for each."""
    build, inputs = MODELS[name]
    torch.manual_seed(0)
    model = build().double().eval()
    return model, inputs, copy.deepcopy(model).to(CUDA), inputs.to(CUDA)


def on_device(model: nn.Module) -> bool:
    return all(tensor.device.type == "cuda" for tensor in (*model.parameters(), *model.buffers()))


def units(graph: pk.DependencyGraph) -> int:
    """How many units all groups have together."""
    return sum(group.size for group in graph.analysis.groups.values())


@every_model
def test_a_cut_is_that_of_the_cpu(name: str) -> None:
    here, x, there, y = both(name)
    original = copy.deepcopy(there)
    expected, found = pk.prune(here, x[:2], 0.5), pk.prune(there, y[:2], 0.5)
    assert found.plan.kept == expected.plan.kept
    assert on_device(there)
    for path, tensor in here.state_dict().items():
        assert torch.equal(there.state_dict()[path].cpu(), tensor), path
    assert pk.check_exact(original, there, found.plan, y[:2])
    torch.testing.assert_close(there(y).cpu(), here(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "criterion",
    ["output_change", "block_influence", "relative_energy", "gate_taylor", "gate_fisher", "branch_residual"],
)
def test_scores_of_branches_are_those_of_the_cpu(criterion: str) -> None:
    torch.manual_seed(0)
    here, x = branch_net()
    there, y = copy.deepcopy(here).cuda(), x.cuda()
    found = []
    for model, inputs in ((here, x), (there, y)):
        graph = pk.Graph.of(model, inputs)
        made = pk.default_registry().named("prunekit_importance", criterion)()
        scorer = BranchScorer(graph, made, pk.Batches.of([inputs]))
        names_ = [branch.name for branch in graph.branches()]
        found.append(scorer.scores(names_))
        if scorer.greedy:
            found[-1].update({f"{name} off": s for name, s in scorer.scores(names_[1:], names_[:1]).items()})
    assert len(found[0]) >= 5
    assert found[1] == pytest.approx(found[0], rel=1e-6)
    result = pk.prune(there, y, branch_ratio=0.5, branch_importance=criterion, calibration=[y], verify="always")
    assert result.report.absent
    assert result.verification.check


@every_model
@pytest.mark.parametrize("criterion", names("prunekit_importance"))
def test_scores_are_those_of_the_cpu_and_stay_on_the_device(name: str, criterion: str) -> None:
    if criterion == "random":
        pytest.skip("another generator on each device")
    here, x, there, y = both(name)
    found = []
    crossings = Crossings()
    for model, inputs in ((here, x), (there, y)):
        importance = pk.default_registry().named("prunekit_importance", criterion)()
        pruner = pk.BasePruner(model, inputs[:2], importance)
        if criterion in PREPARE:
            PREPARE[criterion](importance, model, inputs)
        with crossings:
            found.append({group.name: importance(group) for group in pruner.graph.get_all_groups()})
        model.zero_grad()
    expected, scores = found
    scored = any(values is not None for values in expected.values())
    if not scored and isinstance(importance, BranchCriterion):
        pytest.skip("it scores branches: see the test of these")
    assert scored or (name, criterion) == ("encoder", "bn_scale"), "it has no batch norm"
    for group, values in expected.items():
        got = scores[group]
        assert (got is None) == (values is None), group
        if values is not None:
            assert got.device.type == "cuda", group
            torch.testing.assert_close(got.cpu(), values, rtol=1e-6, atol=1e-9, msg=lambda m, g=group: f"{g}: {m}")
    assert crossings.ran or not scored
    assert crossings.largest <= 64, f"only positions and counts may go to the host: {crossings.elements}"


@every_model
def test_calibrated_pruning_is_that_of_the_cpu(name: str) -> None:
    here, x, there, y = both(name)
    expected = pk.prune(here, x[:2], target={"macs": 0.5}, calibration=list(x.split(8)))
    found = pk.prune(there, y[:2], target={"macs": 0.5}, calibration=list(y.split(8)))
    assert found.plan.kept == expected.plan.kept
    assert on_device(there)
    assert str(found.compensation) == str(expected.compensation)
    torch.testing.assert_close(there(y).cpu(), here(x), rtol=1e-6, atol=1e-6)


def test_batches_on_the_host_are_brought_to_the_model() -> None:
    _, x, there, y = both("residual")
    statistics = pk.calibrate(there, list(x.split(8)), parts=("covariances",))
    again = pk.calibrate(there, list(y.split(8)), parts=("covariances",))
    for site, seen in statistics.sites.items():
        assert seen.moments.covariance is not None
        assert seen.moments.covariance.device.type == "cuda"
        assert torch.equal(seen.moments.covariance, again.sites[site].moments.covariance), site


@every_model
def test_a_calibration_pass_copies_no_features_to_the_host(name: str) -> None:
    _, _, there, y = both(name)
    pk.calibrate(there, [y[:4]])  # what is made once may be read once
    crossings = Crossings()
    with crossings:
        statistics = pk.calibrate(there, [y], parts=("covariances",))
    assert crossings.ran
    assert crossings.largest <= 1, f"only counts of samples may go to the host: {crossings.elements}"
    assert all(seen.moments.mean.device.type == "cuda" for seen in statistics.sites.values())


@every_model
def test_planning_copies_one_score_per_unit_and_applying_nothing(name: str) -> None:
    _, _, there, y = both(name)
    pruner = pk.BasePruner(there, y[:2], "magnitude", global_pruning=True)
    planning, applying = Crossings(), Crossings()
    with planning:
        plan = pruner.plan()
    assert planning.ran
    assert 0 < sum(planning.elements.values()) <= 2 * units(pruner.graph)
    with applying:
        pruner.graph.apply(plan)
    assert applying.ran
    assert not applying.elements
    assert on_device(there)


def test_applying_takes_room_for_the_largest_parameter() -> None:
    torch.manual_seed(0)
    model = Chain(*[1024] * 9).to(CUDA)
    x = torch.randn(2, 1024, device=CUDA)
    pruner = pk.BasePruner(model, x, "magnitude", pruning_ratio=0.5)
    plan = pruner.plan()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, weights = torch.cuda.memory_allocated(), sum(parameter.nbytes for parameter in model.parameters())
    pruner.graph.apply(plan)
    assert torch.cuda.max_memory_allocated() - before <= 2 * 1024 * 1024 * 4
    gone = weights - sum(parameter.nbytes for parameter in model.parameters())
    assert gone > 0.5 * weights
    assert before - torch.cuda.memory_allocated() == pytest.approx(gone, rel=0.05)


@pytest.mark.parametrize("make", [GroupNormPruner, GrowingRegPruner, BNScalePruner], ids=lambda make: make.__name__)
def test_regularized_gradients_are_those_of_the_cpu(make: Callable[..., Any]) -> None:
    here, x, there, y = both("residual")
    for model, inputs in ((here, x), (there, y)):
        pruner = make(model, inputs[:2], reg=0.05)
        for _ in range(2):
            model.zero_grad()
            model(inputs).square().mean().backward()
            pruner.regularize(model)
            pruner.update_regularizer()
    expected = dict(here.named_parameters())
    for path, parameter in there.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad.cpu(), expected[path].grad, rtol=1e-9, atol=1e-12)


def test_regularizing_copies_nothing_to_the_host() -> None:
    _, _, there, y = both("residual")
    pruner = GroupNormPruner(there, y[:2], reg=0.05)
    there(y).square().mean().backward()
    pruner.regularize(there)  # indices are made once
    crossings = Crossings()
    with crossings:
        pruner.regularize(there)
    assert crossings.ran
    assert not crossings.elements


@pytest.mark.parametrize("fused", [False, True])
def test_an_optimizer_trains_on(fused: bool) -> None:
    _, _, there, y = both("encoder")
    optimizer = torch.optim.AdamW(there.parameters(), lr=1e-2, fused=fused)
    for _ in range(2):
        there(y).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    pk.prune(there, y[:2], 0.5, optimizer=optimizer)
    states = [optimizer.state[parameter] for parameter in there.parameters()]
    for parameter, state in zip(there.parameters(), states, strict=True):
        assert state["exp_avg"].shape == parameter.shape
        assert state["exp_avg"].device.type == "cuda"
    first = there(y).square().mean()
    first.backward()
    optimizer.step()
    assert there(y).square().mean() < first


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@every_model
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    _, _, there, y = both(name)
    there, y = there.to(dtype), y.to(dtype)
    result = pk.prune(there, y[:2], 0.5, calibration=list(y.split(8)))
    assert all(parameter.dtype is dtype for parameter in there.parameters())
    assert result.preview.params_after < 0.7 * result.preview.params_before
    assert bool(torch.isfinite(there(y)).all())


def test_mixed_precision_is_recorded_as_it_runs() -> None:
    _, _, there, y = both("encoder")
    there, y = there.float(), y.float()
    original = copy.deepcopy(there)

    def run(model: nn.Module, inputs: torch.Tensor) -> Any:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            return model(inputs)

    result = pk.prune(there, y[:2], 0.5, forward_fn=run)
    assert result.preview.params_after < result.preview.params_before
    assert pk.check_exact(original, there, result.plan, y[:2])


class Spread(nn.Module):
    """The first half on the CPU, the second on the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Chain(10, 24, 16), Attention().to(CUDA)
        self.head = nn.Linear(16, 3).to(CUDA)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.second(self.first(x).to(CUDA)))
        return out


def test_a_model_on_two_devices() -> None:
    torch.manual_seed(0)
    model = Spread().double().eval()
    original, x = copy.deepcopy(model), TOKENS
    devices = {path: parameter.device for path, parameter in model.named_parameters()}
    result = pk.prune(model, x[:2], 0.5)
    assert {path: parameter.device for path, parameter in model.named_parameters()} == devices
    assert {"first.layers.0.weight", "second.qkv.weight"} <= set(result.layers)
    assert pk.check_exact(original, model, result.plan, x[:2])
    statistics = pk.calibrate(model, [x])
    assert statistics.sites["first.layers.0.weight"].moments.mean.device.type == "cpu"
    assert statistics.sites["head.weight"].moments.mean.device.type == "cuda"


def test_inputs_on_another_device_are_told() -> None:
    _, x, there, _ = both("residual")
    before = {path: tensor.clone() for path, tensor in there.state_dict().items()}
    with pytest.raises(pk.PrunekitError, match="cpu"):
        pk.prune(there, x[:2], 0.5)
    for path, tensor in there.state_dict().items():
        assert torch.equal(tensor, before[path]), path


def test_checkpoints_move_between_devices(tmp_path: Path) -> None:
    here, _, there, y = both("encoder")
    result = pk.prune(there, y[:2], 0.5)
    pk.save(there, tmp_path / "small.safetensors", plan=result.plan)
    loaded = pk.load(here, tmp_path / "small.safetensors")
    assert all(parameter.device.type == "cpu" for parameter in loaded.parameters())
    for path, tensor in there.state_dict().items():
        assert torch.equal(loaded.state_dict()[path], tensor.cpu()), path


def test_peak_memory_is_of_the_model_alone() -> None:
    other = torch.empty(64 * 2**20, device=CUDA)
    model = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(4))).to(CUDA)
    x = torch.randn(512, 1024, device=CUDA)
    model(x)  # cuBLAS takes room to work in once
    weights = sum(parameter.nbytes for parameter in model.parameters())
    # the inputs, what a layer reads and what it returns; the first layer reads the inputs
    assert peak_memory(model, x) == pytest.approx(weights + 3 * x.nbytes, rel=0.01)
    assert other.is_cuda


def test_processes_that_talk_over_nccl(tmp_path: Path) -> None:
    """All jobs of the tests over gloo, one process per GPU."""
    world = torch.cuda.device_count()
    mp.start_processes(jobs.run, args=(world, str(tmp_path), "nccl"), nprocs=world, start_method="spawn")
    for rank in range(world):
        assert list(torch.load(tmp_path / f"found.{rank}")) == list(jobs.JOBS)


def test_positions_are_copied_to_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain of eight layers has seven groups, whose positions fifteen dims of parameters share."""
    model, x = Chain(*[16] * 9).to(CUDA), torch.randn(2, 16, device=CUDA)
    pruner = pk.BasePruner(model, x, "magnitude", pruning_ratio=0.5)
    plan, sent, to = pruner.plan(), [], torch.Tensor.to

    def counted(tensor: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        sent.append(tensor)
        return to(tensor, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "to", counted)
    pruner.graph.apply(plan)
    assert len([tensor for tensor in sent if tensor.dtype is torch.long]) == 7
