"""What receives the operations of a running forward."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn


class Listener:
    """Receives the operations of a running forward pass; the base class ignores them."""

    def start(self, tensors: Mapping[str, torch.Tensor], inputs: Any) -> None:
        """Called before the forward runs, with parameters and buffers by canonical name, and the stand-in inputs."""

    def compute(self, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Called to run an operation on real tensors; returns its result."""
        return op(*args, **kwargs)

    def operation(self, op: Any, module: str, arguments: Mapping[str, Any], outputs: Any) -> None:
        """Called after each operation with its arguments by name."""

    def ended(self, outputs: Any, modules: Mapping[str, nn.Module]) -> None:
        """Called when the forward returned, before what it did to its modules is undone."""

    def kept(self) -> Iterable[torch.Tensor]:
        """Returns the tensors of the run that are held here after it."""
        return ()

    def leaves(self, tensor: torch.Tensor, way: str) -> None:
        """Called when the program takes the values of a real tensor to where no operation is seen."""

    def reads(self, tensor: torch.Tensor) -> None:
        """Called when the program takes a tensor of one element for a number of Python's."""

    def failed(self, op: Any, module: str, error: Exception) -> None:
        """Called when an operation raises, before the exception goes on."""

    def alias(self, source: torch.Tensor, result: torch.Tensor) -> None:
        """Called when an operation only hands its input on."""
