"""Jobs with models from which branches are taken out."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import prunekit as pk
from prunekit import plugin
from prunekit_plugins import distributed
from tests.distributed import toys


class Deep(nn.Module):
    """Three blocks ``x + f(norm(x))`` behind a stem."""

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, width), nn.Linear(width, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.down(torch.relu(self.up(self.norm(x))))

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.blocks = nn.ModuleList(self.Block(width) for width in (12, 17, 10))
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).flatten(2).mean(2)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return Deep()


def shard(model: nn.Module) -> None:
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)


def off(model: nn.Module, *numbers: int) -> nn.Module:
    """A copy with some blocks switched off by hand."""
    copied = copy.deepcopy(model)
    for number in numbers:
        copied.blocks[number].down.register_forward_hook(lambda module, args, out: torch.zeros_like(out))
    return copied


def sharded_branches(world: int) -> Any:
    """A sharded model loses a block, widths, and another block; it is the whole one with these switched off."""
    plain = toys.weights(Deep)
    whole, images = copy.deepcopy(plain).eval(), toys.IMAGES
    graph = pk.Graph.of(plain, images[:2])
    model = on_meta()
    shard(model)
    toys.fill(model, toys.weights(Deep))
    steps: list[tuple[dict[str, tuple[int, ...]], list[str]]] = [
        ({}, ["blocks.0.up"]),
        ({"blocks.1.up": tuple(range(0, 17, 2))}, []),
        ({}, ["blocks.2.up"]),
    ]
    for kept, without in steps:
        earlier = graph.applied
        plan = distributed.agree(graph.plan_without(without, kept))
        step = graph.step_to(plan)
        build = functools.partial(lambda before: before.apply(on_meta()), earlier)
        small = distributed.apply_sharded(step, model, build=build, shard=shard)
        graph.apply(plan)
        expected, found = toys.full(plain), toys.full(small)
        assert list(expected) == list(found)
        assert all(torch.equal(values, found[name]) for name, values in expected.items())
        model = small
    assert list(plugin.named_tensors(model)) == [
        *("stem.weight", "stem.bias", "blocks.0.norm.weight", "blocks.0.norm.bias", "blocks.0.up.weight"),
        *("blocks.0.up.bias", "blocks.0.down.weight", "blocks.0.down.bias", "head.weight", "head.bias"),
    ]
    masked = off(whole, 0, 2)
    pk.Plan(cuts=graph.applied.cuts, parameters=graph.applied.parameters).mask(masked)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), masked(images), rtol=1e-5, atol=1e-5)
    return graph.applied.to_json()


def branches_of_replicas(world: int) -> Any:
    """Replicas lose the same branch with their optimizers' state, and train on under a new DDP."""
    rank, kind = dist.get_rank(), "cuda" if toys.DEVICE.type == "cuda" else None
    devices = [toys.DEVICE] if kind else None
    replica = toys.weights(Deep)
    dense = copy.deepcopy(replica)
    optimizer = torch.optim.AdamW(replica.parameters(), lr=1e-2)
    images, labels = toys.IMAGES[rank * 8 // world :][: 8 // world], toys.LABELS[rank * 8 // world :][: 8 // world]
    toys.backward(DistributedDataParallel(replica, devices), images, labels)
    optimizer.step()
    optimizer.zero_grad()
    plan = pk.Graph.of(replica, images[:1]).plan_without(["blocks.1.up"]) if rank == 0 else None
    plan = distributed.broadcast_plan(plan)
    if world > 1:
        other = pk.Plan() if rank else plan
        with pytest.raises(distributed.DistributedError, match="different plans"):
            distributed.agree(other)
        wrong = replica if rank else plan.apply(copy.deepcopy(replica))
        with pytest.raises((pk.PlanError, distributed.DistributedError)):
            distributed.apply_together(plan, wrong)
        assert isinstance(replica.blocks[1], Deep.Block)
    distributed.apply_together(plan, replica, optimizer=optimizer)
    assert (len(replica.blocks), len(optimizer.state)) == (2, len([*replica.parameters()]))
    toys.backward(DistributedDataParallel(replica, devices), images, labels)
    optimizer.step()
    # the same on one process, with the block switched off by hand
    alone = torch.optim.AdamW(dense.parameters(), lr=1e-2)
    toys.backward(dense)
    alone.step()
    alone.zero_grad()
    masked = off(dense, 1)
    again = torch.optim.AdamW(masked.parameters(), lr=1e-2)
    again.load_state_dict(alone.state_dict())
    toys.backward(masked)
    again.step()
    expected = dict(masked.named_parameters())
    for name, parameter in replica.named_parameters():
        whole = plan.renaming.before(name)
        torch.testing.assert_close(parameter, expected[whole], rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    return plan.absent


def sharded_steps(world: int) -> Any:
    """A pruner of a sharded model takes branches and units in steps, as one of the plain model does."""
    options: dict[str, Any] = {"branch_ratio": 0.67, "pruning_ratio": 0.4, "iterative_steps": 2, "global_pruning": True}
    alone = pk.BasePruner(toys.weights(Deep), toys.IMAGES[:2], **options)
    seeing = on_meta()
    images = torch.randn(2, 3, 8, 8, device="meta")
    blind = pk.BasePruner(seeing, images, branch_ratio=0.67, global_pruning=True, calibration=[toys.IMAGES])
    shard(seeing)
    toys.fill(seeing, toys.weights(Deep))
    with pytest.raises(pk.UnsupportedModelError, match="sharded over several processes"):
        blind.plan()
    model = on_meta()
    pruner = pk.BasePruner(model, images, **options)
    shard(model)
    toys.fill(model, toys.weights(Deep))
    counts = []
    for _ in range(2):
        alone.step()
        model = distributed.step_sharded(pruner, build=on_meta, shard=shard)
        counts.append(len(pruner.graph.applied.absent))
        expected, found = toys.full(alone.model), toys.full(model)
        assert expected.keys() == found.keys()
        assert all(torch.equal(values, found[name]) for name, values in expected.items())
    assert counts == [1, 2]
    assert pruner.graph.applied == alone.graph.applied
    assert pruner.graph.applied.cuts
    return pruner.graph.applied.to_json()


def steps_of_replicas(world: int) -> Any:
    """Replicas lose branches in steps, each chosen alike on all processes, with their optimizers' state."""
    rank = dist.get_rank()
    model = toys.weights(Deep)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    pruner = pk.BasePruner(
        model, toys.IMAGES[:2], branch_ratio=0.67, iterative_steps=2, global_pruning=True, calibration=[toys.IMAGES]
    )
    devices = [toys.DEVICE] if toys.DEVICE.type == "cuda" else None
    mine = slice(rank * 8 // world, (rank + 1) * 8 // world)
    for step in range(2):
        toys.backward(DistributedDataParallel(model, devices), toys.IMAGES[mine], toys.LABELS[mine])
        optimizer.step()
        optimizer.zero_grad()
        plan = distributed.step_together(pruner, optimizer=optimizer)
        assert len(plan.absent) == step + 1
        assert len(optimizer.state) == len([*model.parameters()])
    return pruner.graph.applied.absent
