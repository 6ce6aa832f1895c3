"""Saving and loading pruned models: safetensors with the plan in the file's metadata, no pickle."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn

from prunekit_core import layout as layouts
from prunekit_core.application import Application
from prunekit_core.errors import CheckpointError, PlanError
from prunekit_core.plan import Plan
from prunekit_core.recorder import check_recordable
from prunekit_core.registry import Registry
from prunekit_core.surgery import named_tensors, tensor_at

KEY = "prunekit"
FORMAT = "1"


def _stored(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors that a checkpoint holds: parameters and persistent buffers, once each, by canonical name."""
    persistent = set(model.state_dict(keep_vars=True).keys())
    return {name: tensor for name, tensor in named_tensors(model).items() if name in persistent}


def save(model: nn.Module, path: str | os.PathLike[str], *, plan: Plan | None = None) -> None:
    """Writes a model's weights and the plan that leads to its shapes.

    Args:
        model: The (pruned) model.
        path: File to write; it appears whole or not at all.
        plan: The plan from the unpruned model to this one; None for a model that wasn't pruned.

    Raises:
        CheckpointError: The model holds state that is no tensor, or its shapes are not those that the plan leads to.
    """
    target = check_recordable(model)
    other = [key for key, value in target.state_dict().items() if not isinstance(value, torch.Tensor)]
    if other:
        raise CheckpointError("The model holds state that is no tensor.", where=", ".join(other))
    plan = plan or Plan()
    tensors = _stored(target)
    for cut in plan.parameters:
        expected = tuple(layouts.new_size(dim, plan.kept) for dim in cut.dims)
        found = named_tensors(target).get(cut.parameter)
        if found is None or tuple(found.shape) != expected:
            raise CheckpointError(
                "The plan doesn't lead to this model.",
                where=cut.parameter,
                why=f"the plan gives shape {expected}, the model has {None if found is None else tuple(found.shape)}",
                hint="pass the plan of all steps together: pruner.graph.applied, or first.then(second)",
            )
    destination = Path(path)
    handle, temporary = tempfile.mkstemp(dir=destination.parent, prefix=f".{destination.name}.")
    os.close(handle)
    try:
        metadata = {KEY: FORMAT, "plan": plan.to_json()}
        data = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        safetensors.torch.save_file(data, temporary, metadata=metadata)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, destination)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_plan(path: str | os.PathLike[str]) -> Plan:
    """Reads the plan of a checkpoint.

    Raises:
        CheckpointError: The file is corrupt, or no prunekit checkpoint.
    """
    return _open(path)[0]


def _open(path: str | os.PathLike[str]) -> tuple[Plan, dict[str, torch.Tensor]]:
    where = os.fspath(path)
    if not Path(where).is_file():
        raise CheckpointError("There is no such file.", where=where)
    try:
        with safetensors.safe_open(where, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get(KEY) != FORMAT:
                raise CheckpointError(
                    "The file is not a prunekit checkpoint.",
                    where=where,
                    why=f"its metadata has no {KEY!r}: {FORMAT!r}",
                    hint="write it with prunekit_core.save",
                )
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
    except safetensors.SafetensorError as error:
        raise CheckpointError("The file is corrupt or no safetensors file.", where=where, why=str(error)) from error
    try:
        return Plan.from_json(metadata["plan"]), tensors
    except (KeyError, PlanError) as error:
        raise CheckpointError("The file holds no readable plan.", where=where, why=str(error)) from error


def load(model: nn.Module, path: str | os.PathLike[str], *, registry: Registry | None = None) -> nn.Module:
    """Prunes a fresh model as the file's plan says and fills in the weights.

    Args:
        model: An unpruned model of the same architecture; changed in place.
        path: What `save` wrote.
        registry: Where replacements are found; None for the default registry.

    Returns:
        The model.

    Raises:
        CheckpointError: The file is corrupt, foreign, or for another model; the model is untouched.
    """
    plan, tensors = _open(path)
    target = check_recordable(model)
    try:
        application = Application(plan, target, registry)
        application.check()
    except PlanError as error:
        raise CheckpointError("The checkpoint is for another model.", where=error.where, why=error.why) from error
    cuts = {cut.parameter: cut for cut in plan.parameters}
    expected = {}
    for name, tensor in _stored(target).items():
        cut = cuts.get(name)
        shape = tuple(layouts.new_size(dim, plan.kept) for dim in cut.dims) if cut else tuple(tensor.shape)
        expected[name] = shape
    _check_tensors(expected, tensors, os.fspath(path))
    application.perform()
    with torch.no_grad():
        for name, value in tensors.items():
            own = tensor_at(target, name)
            if own.is_meta:
                own.data = value
            else:
                own.data.copy_(value)
    return model


def _check_tensors(expected: dict[str, tuple[int, ...]], tensors: dict[str, torch.Tensor], where: str) -> None:
    missing, surplus = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    wrong = [n for n, shape in expected.items() if n in tensors and tuple(tensors[n].shape) != shape]
    if missing or surplus or wrong:
        problems = [
            *(f"{name} is missing" for name in missing[:3]),
            *(f"{name} is not in the model" for name in surplus[:3]),
            *(f"{name} has shape {tuple(tensors[name].shape)}, not {expected[name]}" for name in wrong[:3]),
        ]
        raise CheckpointError("The checkpoint is for another model.", where=where, why="; ".join(problems))
