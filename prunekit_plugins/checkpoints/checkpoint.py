"""Saving and loading pruned models: safetensors with the plan in the file's metadata, no pickle."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import torch
from torch import nn

from prunekit_core.algebra import layout as layouts
from prunekit_core.arguments import shown
from prunekit_core.errors import ArgumentError, CheckpointError, PlanError
from prunekit_core.modules.exclusive import on_exclusive
from prunekit_core.modules.transaction import Transaction
from prunekit_core.modules.tree import ModelTree, named_tensors
from prunekit_core.plans.apply import Application
from prunekit_core.plans.plan import Plan
from prunekit_core.plugins.registry import Registry
from prunekit_core.record.recorder import check_recordable
from prunekit_plugins.checkpoints.arranged import Arranged
from prunekit_plugins.checkpoints.computed import computed_buffers
from prunekit_plugins.checkpoints.destination import check_format
from prunekit_plugins.checkpoints.provenance import Protocol
from prunekit_plugins.checkpoints.shards import KEY, SAVE, Weights, write_weights
from prunekit_plugins.checkpoints.stored_values import as_cut
from prunekit_plugins.checkpoints.tensorfile import Stored

FORMAT = "1"
PLAN = "prunekit_plan.json"
PROTOCOL = "prunekit_protocol.json"
"""Files beside weights that are those of a stock class, and hold neither."""


def _stored(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors that a checkpoint holds: parameters and persistent buffers, once each, by canonical name."""
    persistent = set(model.state_dict(keep_vars=True).keys())
    return {name: tensor for name, tensor in named_tensors(model).items() if name in persistent}


def metadata_of(plan: Plan, protocol: Protocol | None) -> dict[str, str]:
    """The texts that make a safetensors file a prunekit checkpoint."""
    found = {KEY: FORMAT, "plan": plan.to_json()}
    return found if protocol is None else {**found, "protocol": protocol.to_json()}


@on_exclusive
def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    plan: Plan | None = None,
    protocol: Protocol | None = None,
    max_shard_size: int | str | None = None,
) -> None:
    """Writes a model's weights and the plan that leads to its shapes.

    Tensors that share an object (tied weights) are written once. Tensors are written one after the other, without a
    second copy of the model. What is written appears whole or not at all, also after Ctrl-C.

    Args:
        model: The (pruned) model, on any device.
        path: File to write; with ``max_shard_size`` a folder, which is made if it isn't there.
        plan: The plan from the unpruned model to this one; None for a model that wasn't pruned.
        protocol: How the model came about (``result.protocol``), stored beside the plan.
        max_shard_size: Bytes that one file holds at most: a number, or a text such as ``"5GB"``. The folder then holds
            ``model.safetensors``, or shards with ``model.safetensors.index.json`` as Hugging Face lays them out. None
            writes one file.

    Raises:
        CheckpointError: The model holds state that is no tensor or has no values, its shapes are not those that the
            plan leads to, or the folder isn't there or holds weights that prunekit didn't write.
        StorageError: The system refuses to write there, or there is no room.
        ArgumentError: ``max_shard_size`` is not a size, or the path is one of a GGUF, an ONNX file or a program.
    """
    if not isinstance(path, str | os.PathLike):
        raise ArgumentError("A path is a text or a path object.", why=f"got {path!r}")
    check_format(Path(path))
    if plan is not None and not isinstance(plan, Plan):
        raise ArgumentError("plan is a Plan.", why=f"got {shown(plan)}", hint="result.plan, or Plan.from_json(text)")
    target = check_recordable(model)
    other = [key for key, value in target.state_dict().items() if not isinstance(value, torch.Tensor)]
    if other:
        raise CheckpointError("The model holds state that is no tensor.", where=", ".join(other))
    plan = plan or Plan()
    tensors = _stored(target)
    for name, tensor in tensors.items():
        if tensor.is_meta or tensor.layout is not torch.strided or tensor.is_quantized:
            why = "it is on the meta device" if tensor.is_meta else f"its layout is {tensor.layout}, or it is quantized"
            raise CheckpointError("A tensor of the model can't be written.", where=name, why=why)
    _check_result(plan, named_tensors(target))
    stored = {name: Stored(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}

    def rows(name: str) -> Iterator[torch.Tensor]:
        for start, stop in stored[name].pieces():
            yield tensors[name][start:stop] if stored[name].shape else tensors[name]

    write_weights(path, stored, metadata_of(plan, protocol), rows, max_shard_size)


def _check_result(plan: Plan, found: Mapping[str, torch.Tensor]) -> None:
    """Raises `CheckpointError` unless a plan leads to a model with these tensors."""
    renaming = plan.renaming
    places = {name: renaming.before(name) for name in found} if plan.stubs else {}
    lost = [name for name, place in places.items() if renaming.after(place) != name]
    problems = [(name, "the plan takes it out") for name in lost]
    for cut in plan.parameters:
        name = renaming.after(cut.parameter) or cut.parameter
        expected = tuple(layouts.new_size(dim, plan.kept) for dim in cut.dims)
        shape = tuple(found[name].shape) if name in found else None
        if shape != expected:
            problems.append((name, f"the plan gives shape {expected}, the model has {shape}"))
    if problems:
        raise CheckpointError(
            "The plan doesn't lead to this model.",
            where=problems[0][0],
            why=problems[0][1],
            hint="pass the plan of all steps together: pruner.graph.applied, or first.then(second)",
        )


def read_plan(path: str | os.PathLike[str]) -> Plan:
    """Reads the plan of a checkpoint (a file, or a folder with shards), or of a file that ``plan.save`` wrote.

    A folder that `save_folder` wrote will do, of a pipeline as well.

    Raises:
        CheckpointError: The file is corrupt, or no prunekit checkpoint, or the folder holds several plans.
        PlanError: It is a JSON file that holds no plan.
    """
    place = _plan_beside(Path(path)) or Path(path)
    if place.suffix == ".json" and not place.name.endswith(".index.json"):
        return Plan.load(place)
    return plan_of(Weights(place))


def read_protocol(path: str | os.PathLike[str]) -> Protocol | None:
    """Reads how the model of a checkpoint (see `read_plan`) came about; None where that wasn't stored.

    Raises:
        CheckpointError: The file is corrupt, or no prunekit checkpoint.
    """
    plan = _plan_beside(Path(path))
    if plan is not None:
        beside = plan.with_name(PROTOCOL)
        return Protocol.from_json(beside.read_text("utf-8")) if beside.is_file() else None
    weights = Weights(path)
    plan_of(weights)
    text = weights.metadata.get("protocol")
    return None if text is None else Protocol.from_json(text)


def _plan_beside(place: Path) -> Path | None:
    """Returns the file with the plan that lies in a folder beside weights which hold none, or in one of its folders.

    Raises:
        CheckpointError: There are several.
    """
    if not place.is_dir() or _holds_plan(place):
        return None
    found = [file for file in (place / PLAN, *sorted(place.glob(f"*/{PLAN}"))) if file.is_file()]
    if len(found) > 1:
        raise CheckpointError(
            "The folder holds several plans.",
            where=str(place),
            why=", ".join(str(file.relative_to(place)) for file in found),
            hint="name one of these files",
        )
    return found[0] if found else None


def _holds_plan(folder: Path) -> bool:
    try:
        return Weights(folder).ours
    except CheckpointError:  # where no plan lies beside them, whoever reads them says what is wrong
        return False


def plan_of(weights: Weights) -> Plan:
    """Reads the plan in the metadata of a checkpoint.

    Raises:
        CheckpointError: It isn't one of prunekit's, or its plan can't be read.
    """
    metadata, where = weights.metadata, os.fspath(weights.path)
    if metadata.get(KEY) != FORMAT:
        raise CheckpointError(
            "The file is not a prunekit checkpoint.",
            where=where,
            why=f"its metadata has no {KEY!r}: {FORMAT!r}",
            hint="write it with prunekit.save",
        )
    if SAVE in metadata and not weights.sharded:
        raise CheckpointError(
            "The file is one shard of a checkpoint.", where=where, hint="name the folder, or the index in it"
        )
    try:
        return Plan.from_json(metadata["plan"])
    except (KeyError, PlanError) as error:
        raise CheckpointError("The file holds no readable plan.", where=where, why=str(error)) from error


@on_exclusive
def load(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    registry: Registry | None = None,
    assign: bool = False,
    any_program: bool = False,
) -> nn.Module:
    """Prunes a fresh model as the file's plan says and fills in the weights.

    Values are converted to the dtypes of the model's own tensors, unless they are assigned. A model on the meta device
    gets its tensors on the CPU, and the file is the only other place where they are; buffers that no file holds are
    computed, where the model's class can do it.

    Args:
        model: An unpruned model of the same architecture; changed in place.
        path: What `save` wrote: a file, a folder, or the index in it.
        registry: Where replacements are found; None for the default registry.
        assign: Put the tensors of the file in the place of the model's own, with their dtypes, as
            ``load_state_dict(assign=True)`` does; parameters are new objects then.
        any_program: See `Plan.apply`.

    Returns:
        The model.

    Raises:
        CheckpointError: The file is corrupt, foreign, or for another model; the model is untouched.
    """
    weights = Weights(path)
    plan = plan_of(weights)
    target = check_recordable(model)
    with torch.inference_mode(False):  # what is made here becomes the model's
        application = Application(plan, target, registry, any_program=any_program)
        try:
            application.check()
        except PlanError as error:
            headline = "The checkpoint is for another model."
            raise CheckpointError(headline, where=error.where, why=error.why, hint=error.hint) from error
        places = map(plan.renaming.place, ModelTree(target).aliases)
        arranged = Arranged(weights, [name for name in places if name is not None])
        names = _match(target, plan, arranged, assign)
        buffers = _buffers(target, plan, names)
        # everything is read before anything changes, and the model takes over what was read
        values = {own: arranged.read(name) for own, name in names.items()} | buffers
        with Transaction() as transaction:
            application.prepare(transaction, values, assign=assign)
            transaction.commit()
    return model


def _match(target: nn.Module, plan: Plan, weights: Arranged, assign: bool) -> dict[str, str]:
    """Finds the stored tensor of every tensor of a model, which may go by any name of a shared one.

    Returns:
        Name in the model to name in the checkpoint.
    """
    where, cuts = os.fspath(weights.path), {cut.parameter: cut for cut in plan.parameters}
    canonical, renaming, gone = ModelTree(target).aliases, plan.renaming, set(plan.gone)
    vacated = tuple(f"{path}." for path in renaming.vacated())
    own = {name: tensor for name, tensor in _stored(target).items() if name not in gone}
    problems: list[str] = []
    found: dict[str, str] = {}
    for name, stored in weights.tensors.items():
        home = canonical.get(renaming.before(name))
        if home is None or home not in own or name.startswith(vacated):
            problems.append(f"{name} is not in the model")
            continue
        cut, tensor = cuts.get(home), own[home]
        shape = tuple(layouts.new_size(dim, plan.kept) for dim in cut.dims) if cut else tuple(tensor.shape)
        if stored.shape != shape:
            problems.append(f"{name} has shape {stored.shape}, not {shape}")
        elif not assign and not torch.can_cast(stored.dtype, tensor.dtype):
            problems.append(f"{name} is of {stored.dtype}, not of {tensor.dtype}")
        elif assign and tensor.requires_grad and not (stored.dtype.is_floating_point or stored.dtype.is_complex):
            problems.append(f"{name} is of {stored.dtype}, and a parameter that is trained can't be")
        elif home in found and not torch.equal(weights.read(found[home]), weights.read(name)):
            problems.append(f"{found[home]} and {name} are one tensor in the model, and differ")
        found[home] = name
    problems += [f"{name} is missing" for name in own if name not in found]
    if problems:
        raise CheckpointError("The checkpoint is for another model.", where=where, why="; ".join(sorted(problems)[:6]))
    return found


def _buffers(target: nn.Module, plan: Plan, names: Collection[str]) -> dict[str, torch.Tensor]:
    """Computes buffers on the meta device that aren't in the checkpoint, as the plan leaves them.

    Args:
        target: The unpruned model.
        plan: The plan.
        names: The tensors that are in the checkpoint.

    Raises:
        CheckpointError: The model's class can't compute one.
    """
    gone, tensors = set(plan.gone), named_tensors(target)
    empty = [name for name, tensor in tensors.items() if tensor.is_meta and name not in gone and name not in names]
    found = computed_buffers(target) if empty else {}
    missing = [name for name in empty if name not in found]
    if missing:
        raise CheckpointError(
            "A buffer on the meta device is not in the checkpoint.",
            where=", ".join(missing[:3]),
            why="non-persistent buffers are made by the model's own code and are never saved",
            hint="build the model so that its buffers are real, for example under accelerate's init_empty_weights()",
        )
    return {name: as_cut(found[name], name, plan) for name in empty}
