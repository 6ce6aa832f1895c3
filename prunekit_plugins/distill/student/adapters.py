"""Low-rank adapters that are trained in the place of a student's weights, made by the library peft."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from torch import nn

from prunekit_core.errors import ArgumentError
from prunekit_core.modules.tree import ModelTree

LORA = "lora"
RANK, SCALE = 16, 2
"""Of adapters that are called for by name: their rank, and what their product is multiplied by."""


def wants_lora(train: Any) -> bool:
    """Tells whether adapters are to be trained: the name, or a configuration of peft's."""
    known = sys.modules.get("peft")
    return (isinstance(train, str) and train == LORA) or (known is not None and isinstance(train, known.PeftConfig))


class Adapted:
    """A student with low-rank adapters in its linear layers (LoRA, Hu et al. 2021), made by the library peft.

    Args:
        student: The student; its linear layers are wrapped until `merge` or `leave`.
        train: ``"lora"`` (rank 16 at every linear layer whose weight is its own), or a configuration of peft's.

    Raises:
        ArgumentError: peft isn't installed, or doesn't take the student.
    """

    def __init__(self, student: nn.Module, train: Any) -> None:
        try:
            peft = importlib.import_module("peft")
        except ImportError as error:
            raise ArgumentError('train="lora" needs peft.', why=str(error), hint="pip install peft") from error
        if isinstance(train, str):
            train = peft.LoraConfig(r=RANK, lora_alpha=RANK * SCALE, target_modules=_linear_layers(student))
        try:
            self._model = peft.tuners.lora.LoraModel(student, train, "distillation")
        except ValueError as error:
            raise ArgumentError("peft can't adapt the student.", why=str(error)) from error

    def merge(self) -> None:
        """Adds the adapters to the weights and takes them out of the student."""
        self._model.merge_and_unload()

    def leave(self) -> None:
        """Takes the adapters out of the student; its weights are as they were."""
        self._model.unload()


def _linear_layers(student: nn.Module) -> list[str]:
    """Paths of the linear layers whose weights no other module uses."""
    tree = ModelTree(student)
    tied = tree.other_names()
    found = [
        path
        for path, module in tree.modules.items()
        if type(module) is nn.Linear and path and tree.names[id(module.weight)] not in tied
    ]
    if not found:
        raise ArgumentError("The student has no linear layer to adapt.", hint='train="all"')
    return found
