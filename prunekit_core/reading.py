"""Values of a model's tensors from files, one at a time, so that a model on the meta device can be scored."""

from __future__ import annotations

import os

import torch
from torch import nn

from prunekit_core.errors import ArgumentError, CheckpointError
from prunekit_core.plan import Plan
from prunekit_core.shards import Weights
from prunekit_core.surgery import aliases_in, named_tensors, scale_rows, select_positions


class StoredValues:
    """The values of a model's parameters and buffers in a checkpoint of the unpruned model.

    Args:
        path: A safetensors file, a folder with ``model.safetensors`` or ``model.safetensors.index.json``, or the index.
        model: The model, before anything was cut from it.

    Raises:
        ArgumentError: The model is not on the meta device.
        CheckpointError: The checkpoint can't be read, or is for another model.
    """

    def __init__(self, path: str | os.PathLike[str], model: nn.Module) -> None:
        real = [name for name, parameter in model.named_parameters() if not parameter.is_meta]
        if real:
            raise ArgumentError(
                "Weights on disk are for a model on the meta device.",
                where=real[0],
                why="the model has values of its own",
                hint="build it under torch.device('meta'), or fill it with the weights and leave weights= out",
            )
        self._weights = Weights(path)
        tensors, canonical = named_tensors(model), aliases_in(model)
        self._stored = {canonical[name]: name for name in self._weights.tensors if name in canonical}
        persistent = set(model.state_dict(keep_vars=True))
        problems = [f"{name} is missing" for name in tensors if name in persistent and name not in self._stored]
        for name, stored in self._stored.items():
            shape = self._weights.tensors[stored].shape
            if shape != tuple(tensors[name].shape):
                problems.append(f"{stored} has shape {shape}, not {tuple(tensors[name].shape)}")
        if problems:
            why = "; ".join(problems[:4])
            raise CheckpointError("The checkpoint is for another model.", where=os.fspath(path), why=why)

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def read(self, name: str, plan: Plan) -> torch.Tensor:
        """Reads a tensor and cuts it as a plan does.

        Args:
            name: Canonical dotted name in the model.
            plan: What was cut from the model so far.

        Returns:
            A tensor of its own memory, of the file's dtype, on the CPU.
        """
        values = self._weights.read(self._stored[name])
        for rescale in plan.rescales:
            if rescale.parameter == name:
                scale_rows(values, rescale.rows, rescale.factor)
        cuts = [cut for cut in plan.parameters if cut.parameter == name]
        return select_positions(values, plan.positions(cuts[0])) if cuts else values
