"""A model that others may look at and must not change: what they write is stopped, what they exchange is put back."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import nn

from prunekit_core.errors import PrunekitError
from prunekit_core.graph.graph import Graph
from prunekit_core.modules.surgery import put_values
from prunekit_core.modules.tree import modules_in, tensors_in
from prunekit_core.plugins.blame import Blame, module_of, place_of
from prunekit_core.program.calls import bind_arguments, operation_name, tensors_of, written_arguments
from prunekit_core.torch_private.dispatch import Mode, uncompiled
from prunekit_core.torch_private.memory import memory_of
from prunekit_core.torch_private.objects import hooks_of

HEADLINE = "A criterion changes the model."


class Guard:
    """Keeps a criterion from changing the model that it scores.

    Operations that write into the memory of a parameter or buffer, by whatever view of it, are stopped before they run:
    they raise where they stand. Flags, modes, hooks and exchanged tensors are compared when the criterion is done, and
    put back. Gradients may change: a criterion may run a backward pass. What is written past PyTorch (through a NumPy
    view, by a kernel that doesn't say what it writes) isn't seen.

    Criteria that are built in aren't watched: seeing every operation costs some ten microseconds each.

    Args:
        graph: The graph of the model.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph, self._watching = graph, False

    @contextlib.contextmanager
    def watching(self, blame: Blame) -> Iterator[None]:
        """Watches the criterion for a time; within such a time it does nothing more.

        Args:
            blame: Whose the criterion is.

        Raises:
            PluginError: It changes the model, which is as it was.
        """
        if self._watching or blame.built_in:
            yield
            return
        self._watching = True
        try:
            with _watched(self._graph.model, blame):
                yield
        finally:
            self._watching = False


@contextlib.contextmanager
def _watched(model: nn.Module, blame: Blame) -> Iterator[None]:
    before = _State.of(model)
    try:
        with no_writes(before.tensors, blame, HEADLINE, "work on a copy: view.values().clone()"):
            yield
    finally:
        changed = before.restore()
    if changed:
        raise blame.error(HEADLINE, changed[0], hint="put back what you change for a while")


@contextlib.contextmanager
def no_writes(tensors: Mapping[str, torch.Tensor], blame: Blame, headline: str, hint: str) -> Iterator[None]:
    """Stops operations that write into the memory of some tensors, before they run.

    Args:
        tensors: The tensors by name.
        blame: Whose the operations are.
        headline: The headline of the error.
        hint: What to do instead.

    Raises:
        PluginError: There was such an operation; inside, it is raised by the operation itself.
    """
    names = {memory_of(tensor): name for name, tensor in tensors.items()}
    writes = _Writes(names, blame, headline, hint)
    with writes:
        yield
    if writes.stopped is not None:  # it was caught, and what was to be written is not there
        raise writes.stopped


class _Writes(Mode):
    """Stops operations that write into some memory.

    Args:
        names: Memory to the name of the tensor in it.
        blame: Whose the operations are.
        headline: The headline of the error.
        hint: What to do instead.

    Attributes:
        stopped: The first error; None while there is none.
    """

    supports_higher_order_operators = True

    def __init__(self, names: Mapping[int, str], blame: Blame, headline: str, hint: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names, self._blame, self._headline, self._hint = names, blame, headline, hint
        self.stopped: PrunekitError | None = None

    @uncompiled
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        written = written_arguments(func)
        if written:
            arguments = bind_arguments(func, args, kwargs)
            for tensor in tensors_of([arguments[name] for name in written]):
                name = self._names.get(memory_of(tensor))
                if name is not None:
                    self._stop(func, name)
        return func(*args, **kwargs)

    def _stop(self, func: Any, name: str) -> None:
        frames = reversed(list(traceback.walk_stack(None)))
        place = place_of(frames, module_of(self._blame.thing))
        why = f"{operation_name(func)} writes to {name} ({place})"
        error = self._blame.error(self._headline, why, hint=self._hint)
        self.stopped = self.stopped or error
        raise error


@attrs.frozen(eq=False)
class _State:
    """What is compared: the tables and hooks of all modules, their modes, and the flags and memory of their tensors."""

    modules: Mapping[str, nn.Module]
    tensors: Mapping[str, torch.Tensor]
    tables: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...]
    hooks: tuple[tuple[str, dict[int, Any], dict[int, Any]], ...]
    modes: Mapping[str, bool]
    values: Mapping[str, tuple[torch.Tensor, int, bool]]

    @classmethod
    def of(cls, model: nn.Module) -> _State:
        modules = modules_in(model)
        tensors = tensors_in(modules)
        return cls(
            modules,
            tensors,
            tuple(
                (path, table, dict(table))
                for path, module in modules.items()
                for table in (module._parameters, module._buffers, module._modules)
            ),
            tuple((path, table, dict(table)) for path, module in modules.items() for table in hooks_of(module)),
            {path: module.training for path, module in modules.items()},
            {name: (tensor.data, memory_of(tensor), tensor.requires_grad) for name, tensor in tensors.items()},
        )

    def restore(self) -> list[str]:
        """Puts everything back that was exchanged; returns what that was."""
        changed = []
        for path, table, before in self.tables:
            if table.keys() != before.keys() or any(table[name] is not value for name, value in before.items()):
                names = [name for name in {**before, **table} if table.get(name) is not before.get(name)]
                changed.append(f"it exchanges {f'{path}.{names[0]}'.lstrip('.') if names else path or 'the model'}")
                table.clear()
                table.update(before)
        for path, hooks, known in self.hooks:
            if hooks != known:
                changed.append(f"it leaves a hook on {path or 'the model'}, or takes one away")
                hooks.clear()
                hooks.update(known)
        for path, training in self.modes.items():
            if self.modules[path].training is not training:
                changed.append(f"it sets {f'{path}.training'.lstrip('.')} to {not training}")
                vars(self.modules[path])["training"] = training
        for name, (data, memory, flag) in self.values.items():
            tensor = self.tensors[name]
            if memory_of(tensor) != memory or tensor.shape != data.shape:
                changed.append(f"it gives {name} other values")
                put_values(tensor, data)
            if tensor.requires_grad is not flag:
                changed.append(f"it sets requires_grad of {name} to {not flag}")
                tensor.requires_grad_(flag)
        return changed
