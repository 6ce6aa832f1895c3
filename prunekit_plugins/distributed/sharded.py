"""Cutting models whose parameters lie in pieces on several processes: FSDP2, tensor parallelism, or both.

A ``DTensor`` can't change its size in place, and ``fully_shard`` plans its communication for the sizes that it finds.
So the smaller model is built anew: an empty one is pruned on the meta device, sharded as the user shards, and filled
parameter by parameter. The model that was there is read only, until all processes are done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from prunekit.plugin import BasePruner, Plan, PlanError, Registry, is_sharded, named_tensors, select_positions
from prunekit_plugins.distributed.agreement import agree, all_or_none, require_group

Positions = Mapping[int, torch.Tensor]
Scale = tuple[tuple[tuple[int, int], ...], float]
"""Runs of rows, and what they are multiplied with."""


def apply_sharded(
    plan: Plan,
    model: nn.Module,
    *,
    build: Callable[[], nn.Module],
    shard: Callable[[nn.Module], Any],
    registry: Registry | None = None,
    group: dist.ProcessGroup | None = None,
) -> nn.Module:
    """Makes the pruned, sharded model from a sharded one. One parameter at a time is gathered, never the whole model.

    Args:
        plan: The plan from ``model`` to the smaller one; the same on all processes.
        model: The sharded model; it is read, not changed.
        build: Makes a model with the shapes of ``model``, unsharded, on the meta device; its weights are not used.
            After earlier cuts it has to make them, too: ``lambda: earlier.apply(Model())``.
        shard: Shards a model in place, as ``model`` was: calls ``fully_shard`` on its parts and on itself, say.
        registry: Where replacements are found; None for the default registry.
        group: All processes that hold parts of the model; None for all there are.

    Returns:
        The smaller model, sharded; the caller drops the old one. Each process needs memory for its part of both, and
        for one whole parameter.

    Raises:
        PlanError: The plan doesn't fit, or ``build`` or ``shard`` makes another model than ``model``.
        DistributedError: Something failed on another process, or the plans differ.
        ArgumentError: There is no process group.
    """
    require_group()
    agree(plan, group)
    with all_or_none("apply_sharded", group):
        small = build()
        source = named_tensors(model)
        _check(plan, source, named_tensors(small))
        plan.apply(small, registry=registry)
        small.train(model.training)
        shard(small)
        device = next(_local(tensor).device for tensor in source.values())
        small.to_empty(device=device)
        target = named_tensors(small)
        positions = plan.all_positions(plan.parameters)
        places = plan.places(source)
        expected = {place: _shape(source[name], positions.get(name, {})) for name, place in places.items()}
        found = {name: tuple(tensor.shape) for name, tensor in target.items()}
        if expected != found:
            name = next(n for n in (*expected, *found) if expected.get(n) != found.get(n))
            raise _misfit(
                name, f"shape {found.get(name)}, not {expected.get(name)}", "shard it as the model was sharded"
            )
    with all_or_none("apply_sharded", group), torch.no_grad():
        factors = {rescale.parameter: rescale for rescale in plan.rescales}
        for name, place in places.items():
            rows, tensor = factors.get(name), source[name]
            scale = None if rows is None else (rows.rows, rows.factor)
            _fill(target[place], _cut(tensor, positions.get(name, {}), scale))
            if isinstance(tensor, nn.Parameter):
                target[place].requires_grad_(tensor.requires_grad)
    return small


def step_sharded(
    pruner: BasePruner,
    *,
    build: Callable[[], nn.Module],
    shard: Callable[[nn.Module], Any],
    group: dist.ProcessGroup | None = None,
) -> nn.Module:
    """Prunes one step of a pruner whose model was sharded in place after the pruner was made.

    Scores are computed from whole parameters, gathered one at a time, so that every number of processes chooses alike.

    Args:
        pruner: Made on every process from an unsharded (meta) model, which was sharded and filled afterwards.
        build: Makes the unpruned model on the meta device; see `apply_sharded`.
        shard: Shards a model in place.
        group: All processes that hold parts of the model; None for all there are.

    Returns:
        The smaller model, with which the pruner goes on. Make a new optimizer for it.

    Raises:
        DistributedError: The processes chose differently, or one of them failed; the old model is whole.
        PlanError: See `apply_sharded`.
        ArgumentError: There is no process group.
    """
    require_group()
    before = pruner.graph.applied
    with all_or_none("step_sharded", group):
        plan = pruner.plan()
        step = pruner.graph.step_to(plan)

    def build_current() -> nn.Module:
        return build() if before.empty else before.apply(build(), registry=pruner.registry)

    small = apply_sharded(
        step, pruner.graph.model, build=build_current, shard=shard, registry=pruner.registry, group=group
    )
    pruner.adopt(small, plan)
    return small


def _misfit(where: str, why: str, hint: str) -> PlanError:
    return PlanError("The sharded model can't be rebuilt.", where=where, why=why, hint=hint)


def _check(plan: Plan, source: Mapping[str, torch.Tensor], built: Mapping[str, torch.Tensor]) -> None:
    for name in dict.fromkeys((*source, *built)):
        shapes = [tuple(found[name].shape) if name in found else None for found in (source, built)]
        if shapes[0] != shapes[1]:
            why = f"the model has shape {shapes[0]}, build() made {shapes[1]}"
            raise _misfit(name, why, "build() must make the model as it is now, after earlier cuts")
    for cut in plan.parameters:
        if cut.parameter not in source or tuple(source[cut.parameter].shape) != cut.shape:
            raise _misfit(cut.parameter, "the plan was made for another shape", "pass the plan from this model")
    for name, tensor in built.items():
        if is_sharded(tensor):
            raise _misfit(name, "build() returned a sharded model", "return it unsharded, on the meta device")


def _local(tensor: Any) -> torch.Tensor:
    local: torch.Tensor = tensor.to_local() if is_sharded(tensor) else tensor
    return local


def _shape(tensor: torch.Tensor, positions: Positions) -> tuple[int, ...]:
    return tuple(len(positions[dim]) if dim in positions else size for dim, size in enumerate(tensor.shape))


def _cut(tensor: Any, positions: Positions, scale: Scale | None) -> torch.Tensor:
    """The kept part of a tensor, in full: what isn't sharded is cut before it is gathered."""
    if not is_sharded(tensor):
        return select_positions(_scaled(tensor.detach(), scale), positions)
    later = {dim for dim in range(tensor.dim()) if any(p.is_shard(dim) for p in tensor.placements)}
    if scale is not None:
        later.add(0)  # rows are scaled as numbered before the cut
    local_dims = {dim: kept for dim, kept in positions.items() if dim not in later}
    part = select_positions(tensor.to_local().detach(), local_dims)
    shape = list(_shape(tensor, local_dims))
    strides = torch.empty(shape, device="meta").stride()
    module = type(tensor)
    gathered = module.from_local(
        part, tensor.device_mesh, tensor.placements, run_check=False, shape=torch.Size(shape), stride=strides
    ).full_tensor()
    return select_positions(_scaled(gathered, scale), {dim: positions[dim] for dim in positions.keys() & later})


def _scaled(tensor: torch.Tensor, scale: Scale | None) -> torch.Tensor:
    if scale is None:
        return tensor
    scaled = tensor.clone()
    for start, stop in scale[0]:
        scaled[start:stop] *= scale[1]
    return scaled


def _fill(target: Any, whole: torch.Tensor) -> None:
    """Writes a tensor's values into another one, of which each process takes its own part."""
    if not is_sharded(target):
        target.data.copy_(whole)
        return
    from torch.distributed.tensor import distribute_tensor

    own = distribute_tensor(whole, target.device_mesh, target.placements, src_data_rank=None)
    target.to_local().copy_(own.to_local())
