"""Memory that a model and its shadow on real tensors share.

Nothing that runs on a shadow may write to it: a codebook that a forward moves along, a weight that it normalises.
What a forward writes to gets memory of its own, which only few programs do and copying all would cost much.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from prunekit_core.errors import RecordingError
from prunekit_core.modules.surgery import put_values
from prunekit_core.program.calls import operation_name, tensors_of, written_arguments
from prunekit_core.program.trace import Trace, tensor_refs
from prunekit_core.torch_private.memory import has_storage, memory_of


class SharedMemory:
    """The memory of a model, some of which stand-ins share; what a run writes to elsewhere is put back before the next.

    Args:
        stand_ins: The shadow's parameters and buffers by canonical name.
        originals: The model's.
        valued: Whether runs write values: on real tensors.
    """

    def __init__(
        self, stand_ins: Mapping[str, torch.Tensor], originals: Mapping[str, torch.Tensor], *, valued: bool
    ) -> None:
        self._stand_ins, self._valued = stand_ins, valued
        self._made: set[int] = set()
        self._before: list[tuple[torch.UntypedStorage, torch.UntypedStorage]] = []
        self._originals = [(weakref.ref(tensor), name) for name, tensor in originals.items()]
        self._names: dict[int, list[str]] = {}
        self._wanted: set[str] = set()
        self.start()

    def start(self) -> None:
        """Prepares a run: puts back what the last one wrote to, and looks where the model's memory is now.

        A cut gives the model other memory, and what it had goes.
        """
        for storage, before in self._before:
            if storage.nbytes() == before.nbytes():
                storage.copy_(before)
        self._before.clear()
        self._made.clear()
        self._names.clear()
        for reference, name in self._originals:
            tensor = reference()
            if tensor is not None:
                self._names.setdefault(memory_of(tensor), []).append(name)

    def made(self, result: Any) -> None:
        """Notes the memory of what an operation returned, which no other run has."""
        if self._valued:
            self._made.update(map(memory_of, tensors_of(result)))

    def shared(self) -> list[str]:
        """Describes which tensors of the model lie at the same place, without being one parameter."""
        at: dict[tuple[Any, ...], list[str]] = {}
        for reference, name in self._originals:
            tensor = reference()
            if tensor is not None and not tensor.is_meta and tensor.numel():
                offset = tensor.storage_offset() if has_storage(tensor) else 0
                at.setdefault((memory_of(tensor), offset, tensor.shape), []).append(name)
        return [
            f"{' and '.join(names)} are several tensors in one memory, no shared parameter: each is pruned for itself, "
            "and those that are cut get memory of their own"
            for names in at.values()
            if len(names) > 1
        ]

    def check(self, op: Any, arguments: Mapping[str, Any], module: str) -> None:
        """Looks at an operation that is about to write.

        Raises:
            RecordingError: It would write to memory of the model; `take_over` may make that possible.
        """
        for argument in written_arguments(op):
            for tensor in tensors_of(arguments.get(argument)):
                memory = memory_of(tensor)
                names = self._names.get(memory)
                if self._valued and memory not in self._made and memory >= 0 and not tensor.is_meta:
                    self._made.add(memory)
                    self._before.append((tensor.untyped_storage(), tensor.untyped_storage().clone()))
                if names:
                    self._wanted.update(names)
                    raise RecordingError(
                        "The forward pass writes to a parameter.",
                        where=f"{operation_name(op)} in {module or 'the model'}",
                        why=f"it is the memory of {names[0]} in the model itself, which must not change",
                        hint="write to a buffer, or to a copy of it",
                    )

    def own(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns a copy of a tensor in the model's memory, to leave PyTorch with; any other tensor itself."""
        return tensor.clone() if memory_of(tensor) in self._names else tensor

    def take_over(self, names: Iterable[str] = ()) -> bool:
        """Gives parameters memory of their own: those that something wanted to write to, and others.

        Returns:
            Whether one got it that something wanted to write to; else it was written to by another way.
        """
        wanted, self._wanted = self._wanted, set()
        taken: set[str] = set()
        for name in {*wanted, *names}:
            tensor = self._stand_ins.get(name)
            if tensor is not None and memory_of(tensor) in self._names:
                taken.add(name)
                with torch.no_grad():
                    put_values(tensor, tensor.detach().clone())
        return not taken.isdisjoint(wanted)


def written_parameters(trace: Trace) -> set[str]:
    """Names the parameters and buffers in whose memory an operation of a recorded program writes."""
    names = {ref.index: name for name, ref in trace.parameters.items()}
    written = {
        trace.memory(ref.index)
        for operation in trace.operations
        for argument in written_arguments(operation.op)
        for ref in tensor_refs(operation.arguments.get(argument))
    }
    return {names[index] for index in written if index in names}
