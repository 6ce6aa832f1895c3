"""What every process does; each job checks values itself and returns what the test compares between world sizes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import prunekit as pk
from prunekit import plugin
from prunekit_plugins import distributed, importance, pruners, regularizers
from tests.distributed import branches, distillation, experts, toys


def sharded(pruner_class: type[pk.BasePruner] = pk.BasePruner, **options: Any) -> tuple[Any, nn.Module]:
    """A pruner made on the meta device, whose model was sharded and filled afterwards."""
    model = toys.on_meta()
    pruner = pruner_class(model, torch.empty(2, 3, 8, 8, device="meta"), **options)
    toys.shard(model)
    toys.fill(model, toys.weights())
    return pruner, model


def plans(world: int) -> Any:
    """The choice is the same however many processes there are, and that of a plain model."""
    found = {}
    for name in ("magnitude", "taylor", "fpgm", "hessian"):
        plain = toys.weights()
        alone = pk.BasePruner(plain, toys.IMAGES[:2], importance=name, global_pruning=True)
        pruner, model = sharded(importance=name, global_pruning=True)
        for candidate, owner in ((plain, alone), (model, pruner)):
            toys.backward(candidate)
            if name == "hessian":
                owner.importance.accumulate_grad(candidate)
        plan = distributed.agree(pruner.plan())
        expected = alone.plan()
        if world == 1 or name in ("magnitude", "fpgm"):
            assert plan == expected, name
        found[name] = plan.kept
    return found


def whole_group_scores(world: int) -> None:
    """Scores of sharded weights are those of whole ones: on a CPU, where strides don't change sums, to the last bit."""
    alone = pk.BasePruner(toys.weights(), toys.IMAGES[:2])
    pruner, _ = sharded()
    expected, found = alone.scores(alone.scopes()), pruner.scores(pruner.scopes())
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        if toys.DEVICE.type == "cpu":
            assert torch.equal(values, found[name]), name
        torch.testing.assert_close(found[name], values, rtol=1e-6, atol=0, msg=lambda m, n=name: f"{n}: {m}")


def regularized(world: int) -> None:
    """What is added to sharded gradients is what is added to whole ones."""
    makers: dict[str, Callable[[Any], Any]] = {
        "group_norm": lambda groups: regularizers.GroupNormRegularizer(groups, reg=0.1),
        "group_lasso": lambda groups: regularizers.GroupLassoRegularizer(groups, reg=0.1),
        "growing": lambda groups: regularizers.GrowingRegularizer(groups, reg=0.1, delta_reg=0.2),
        "bn_scale": lambda groups: regularizers.BNScaleRegularizer(groups, reg=0.1),
    }
    for name, make in makers.items():
        alone = pk.BasePruner(toys.weights(), toys.IMAGES[:2])
        pruner, model = sharded()
        found = []
        for owner, target in ((alone, alone.model), (pruner, model)):
            regularizer = make(owner.graph.get_all_groups)
            toys.backward(target)
            if name == "growing":
                regularizer.grow()
            regularizer.regularize(bias=True)
            gradients = {n: plugin.whole_tensor(p.grad) for n, p in target.named_parameters() if p.grad is not None}
            found.append((gradients, regularizer))
        (expected, one), (got, many) = found
        assert expected.keys() == got.keys()
        for path, gradient in expected.items():
            torch.testing.assert_close(got[path], gradient, rtol=2e-4, atol=2e-6, msg=lambda m, p=path: f"{p}: {m}")
        if name == "group_lasso":
            for regularizer in (one, many):
                regularizer.proximal_step(lr=20.0)
            expected, got = toys.full(alone.model), toys.full(model)
            assert any(not bool(values.any()) for values in got["block.linear1.weight"]), "some units must be zero"
            for path, values in expected.items():
                torch.testing.assert_close(got[path], values, rtol=2e-4, atol=2e-6)


def unsharded_weights_are_told(world: int) -> None:
    """A regularizer doesn't take gathered weights for its own part."""
    pruner, model = sharded()
    regularizer = regularizers.GroupNormRegularizer(pruner.graph.get_all_groups)
    toys.backward(model)
    model.unshard()
    with pytest.raises(pk.ArgumentError, match=r"A parameter is no longer sharded as it was\."):
        regularizer.regularize()
    model.reshard()


def cut(world: int) -> Any:
    """A sharded model that was cut is the plain one that was cut, for two steps; it trains on."""
    alone = pk.BasePruner(toys.weights(), toys.IMAGES[:2], iterative_steps=2)
    pruner, model = sharded(iterative_steps=2)
    for _ in range(2):
        before = toys.full(model)
        alone.step()
        small = distributed.step_sharded(pruner, build=toys.on_meta, shard=toys.shard)
        for name, values in toys.full(model).items():
            assert torch.equal(values, before[name]), "the model that was there is read only"
        expected, found = toys.full(alone.model), toys.full(small)
        assert expected.keys() == found.keys()
        for name, values in expected.items():
            assert torch.equal(values, found[name]), name
        assert plugin.is_sharded(small.down.weight)
        assert small.training
        model = small
    assert pruner.graph.applied == alone.graph.applied
    assert pruner.graph.applied.rescales, "attention's temperature was made up for"
    model.eval()
    alone.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(toys.IMAGES), alone.model(toys.IMAGES), rtol=1e-5, atol=1e-5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = toys.backward(model)
    optimizer.step()
    optimizer.zero_grad()
    assert toys.backward(model) < first
    return pruner.graph.applied.kept


def sparse_training(world: int) -> None:
    """Under FSDP2 a sparse-training pruner trains as alone, when all see the same samples."""
    alone = pruners.GroupNormPruner(toys.weights(), toys.IMAGES[:2], reg=0.05)
    pruner, model = sharded(pruners.GroupNormPruner, reg=0.05)
    losses = []
    for owner, target in ((alone, alone.model), (pruner, model)):
        optimizer = torch.optim.SGD(target.parameters(), lr=0.05)
        for _ in range(3):
            optimizer.zero_grad()
            loss = toys.backward(target)
            owner.regularize(target)
            optimizer.step()
        losses.append(loss)
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-5)
    for name, values in toys.full(alone.model).items():
        torch.testing.assert_close(toys.full(model)[name], values, rtol=1e-3, atol=1e-4)


def tensor_parallel(world: int) -> None:
    """Columns and rows that lie on several processes: regularized, scored, and cut."""
    inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(2)).to(toys.DEVICE)
    alone = pk.BasePruner(toys.weights(toys.Perceptron), inputs)
    with torch.device("meta"):
        model = toys.Perceptron()
    pruner = pk.BasePruner(model, torch.empty(4, 6, device="meta"))
    toys.parallel(model)
    toys.fill(model, toys.weights(toys.Perceptron))
    for owner, target in ((alone, alone.model), (pruner, model)):
        regularizer = regularizers.GroupLassoRegularizer(owner.graph.get_all_groups, reg=0.1)
        toys.backward(target, inputs, toys.LABELS[:4])
        regularizer.regularize(bias=True)
    for name, parameter in alone.model.named_parameters():
        found = plugin.whole_tensor(model.get_parameter(name).grad)
        torch.testing.assert_close(found, parameter.grad, rtol=1e-4, atol=1e-6)

    def build() -> nn.Module:
        with torch.device("meta"):
            return toys.Perceptron()

    alone.step()
    small = distributed.step_sharded(pruner, build=build, shard=toys.parallel)
    for name, values in toys.full(alone.model).items():
        assert torch.equal(toys.full(small)[name], values), name


def failures(world: int) -> None:
    """A process that fails leaves no process with a cut model; the others are told which one and why."""
    last = world - 1
    pruner, model = sharded()
    before = toys.full(model)

    def broken(target: nn.Module) -> None:
        if dist.get_rank() == last:
            raise OSError("the disk is full")
        toys.shard(target)

    kind = OSError if dist.get_rank() == last else distributed.DistributedError
    told = "the disk is full" if kind is OSError else f"rank {last}: OSError: the disk is full"
    with pytest.raises(kind, match=told):
        distributed.step_sharded(pruner, build=toys.on_meta, shard=broken)
    assert pruner.current_step == 0
    assert not pruner.graph.applied.cuts
    assert all(torch.equal(values, before[name]) for name, values in toys.full(model).items())
    distributed.step_sharded(pruner, build=toys.on_meta, shard=toys.shard)

    replica = toys.weights()
    plan = pk.BasePruner(toys.weights(), toys.IMAGES[:2]).plan()
    if dist.get_rank() == last:
        replica.head = nn.Linear(20, 4, device=toys.DEVICE)
        replica.stem = nn.Conv2d(3, 13, 3, device=toys.DEVICE)
    shapes = {name: tensor.shape for name, tensor in plugin.named_tensors(replica).items()}
    expected = pk.PlanError if dist.get_rank() == last else distributed.DistributedError
    with pytest.raises(expected):
        distributed.apply_together(plan, replica)
    assert shapes == {name: tensor.shape for name, tensor in plugin.named_tensors(replica).items()}


def agreement(world: int) -> None:
    """Plans travel whole, and differences are noticed."""
    plan = pk.BasePruner(toys.weights(), toys.IMAGES[:2]).plan()
    assert distributed.broadcast_plan(plan if dist.get_rank() == 0 else None) == plan
    own = pk.BasePruner(toys.weights(), toys.IMAGES[:2], pruning_ratio=0.25 if dist.get_rank() == 0 else 0.5).plan()
    if world == 1:
        assert distributed.agree(own) == own
    else:
        with pytest.raises(distributed.DistributedError, match=r"The processes made different plans\."):
            distributed.agree(own)
    with pytest.raises((pk.ArgumentError, distributed.DistributedError)):
        distributed.broadcast_plan(None)


def replicas(world: int) -> None:
    """DDP: other samples on each process, the same coefficients, statistics of all, and one decision."""
    rank = dist.get_rank()
    mine = slice(rank * 8 // world, (rank + 1) * 8 // world)
    model = toys.weights()
    model.norm.eval()
    wrapped = DistributedDataParallel(model)
    pruner = pruners.GroupNormPruner(model, toys.IMAGES[:2], reg=0.05)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        toys.backward(wrapped, toys.IMAGES[mine], toys.LABELS[mine])
        pruner.regularize(wrapped)
        optimizer.step()
    for values in model.parameters():
        lowest, highest = values.detach().clone(), values.detach().clone()
        dist.all_reduce(lowest, dist.ReduceOp.MIN)
        dist.all_reduce(highest, dist.ReduceOp.MAX)
        assert torch.equal(lowest, highest), "replicas must stay the same"
    optimizer.zero_grad()
    hessian = importance.GroupHessianImportance()
    whole = importance.GroupHessianImportance()
    for criterion, numbers in ((hessian, range(8)[mine]), (whole, range(8))):
        for number in numbers:
            with wrapped.no_sync():
                model.zero_grad()
                toys.backward(wrapped, toys.IMAGES[number : number + 1], toys.LABELS[number : number + 1])
            criterion.accumulate_grad(model)
    activation, all_activation = importance.ActivationImportance(), importance.ActivationImportance()
    for criterion, images in ((activation, toys.IMAGES[mine]), (all_activation, toys.IMAGES)):
        with criterion.compute_importance(model), torch.no_grad():
            model(images)
    obdc, all_obdc = importance.OBDCImportance(), importance.OBDCImportance()
    for criterion, part in ((obdc, mine), (all_obdc, slice(8))):
        criterion.prepare_model(model)
        for number in range(8)[part]:
            with wrapped.no_sync():
                toys.backward(model, toys.IMAGES[number : number + 1], toys.LABELS[number : number + 1])
            criterion.step()
        criterion.rm_hooks(model)
    pairs = ((hessian, whole), (activation, all_activation), (obdc, all_obdc))
    for own, every in pairs:
        distributed.reduce_statistics(own, model)
        for group in pruner.graph.get_all_groups():
            found, expected = own(group), every(group)
            assert (found is None) == (expected is None)
            if found is not None:
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    model.zero_grad()
    state = copy.deepcopy(model)
    plan = distributed.step_together(pruner, optimizer=optimizer)
    assert pruner.current_step == 1
    again = plan.apply(state)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    wrapped = DistributedDataParallel(model)
    toys.backward(wrapped, toys.IMAGES[mine], toys.LABELS[mine])
    optimizer.step()
    assert optimizer.state[model.stem.weight]["exp_avg"].shape == model.stem.weight.shape


def calibrated(world: int) -> None:
    """Statistics of parts, joined, are those of the whole."""
    rank = dist.get_rank()
    model = toys.weights()

    def loss(outputs: Any, batch: Any) -> torch.Tensor:
        return outputs.square().mean()

    def gather(images: torch.Tensor) -> pk.Statistics:
        parts = ("covariances", "curvatures", "gradients", "fisher")
        return pk.calibrate(model, images.split(2), parts=parts, loss_fn=loss)

    expected = gather(toys.IMAGES)
    shares = [gather(toys.IMAGES[r * 8 // world : (r + 1) * 8 // world]) for r in range(world)]
    found = distributed.reduce_calibration(shares[rank])
    assert found.examples == expected.examples == 8
    assert found.sites.keys() == expected.sites.keys()
    for name, site in expected.sites.items():
        own = found.sites[name].moments
        assert own.count == site.moments.count
        for part in ("mean", "variance", "covariance"):
            torch.testing.assert_close(getattr(own, part), getattr(site.moments, part), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(found.sites[name].energy, site.energy, rtol=1e-5, atol=1e-9)
        mean = sum(share.sites[name].curvature * share.examples for share in shares) / 8
        torch.testing.assert_close(found.sites[name].curvature, mean)
    for part in ("gradients", "fisher"):
        for name, values in getattr(expected, part).items():
            torch.testing.assert_close(getattr(found, part)[name], values, rtol=1e-4, atol=1e-7)


JOBS = {
    job.__name__: job
    for job in (
        plans,
        whole_group_scores,
        regularized,
        unsharded_weights_are_told,
        cut,
        sparse_training,
        tensor_parallel,
        failures,
        agreement,
        replicas,
        calibrated,
        experts.joined,
        branches.sharded_branches,
        branches.branches_of_replicas,
        branches.sharded_steps,
        branches.steps_of_replicas,
        distillation.distilled,
    )
}


def run(rank: int, world: int, folder: str, backend: str = "gloo") -> None:
    """Runs all jobs on one process, and writes what they return or how they fail."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    if backend == "nccl":
        torch.cuda.set_device(rank)
        toys.move(torch.device("cuda", rank))
    dist.init_process_group(backend, init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    found: dict[str, Any] = {}
    try:
        for name, job in JOBS.items():
            found[name] = job(world)
    finally:
        torch.save(found, Path(folder) / f"found.{rank}")
        dist.destroy_process_group()
