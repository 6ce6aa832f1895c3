"""Changes to a model that are made together or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from types import TracebackType
from typing import Any

import torch

from prunekit_core.interrupts import held_back

Change = tuple[Callable[..., object], tuple[Any, ...], tuple[Any, ...]]
"""What puts something in, and its arguments: with what is new, and with what was there before."""

Resized = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]
"""A tensor, what is put in in between, its data with what is new, and its data before."""


class Transaction:
    """Changes to a user's objects that are made together or not at all, for use in a ``with`` statement.

    First everything new is made and handed in: tensors, gradients, states of optimizers. Then `commit` puts it in. What
    was there before is kept until the statement ends, and is put back if anything raises in it: memory that runs out,
    code of the user's, an exception from another thread. Signals are held back meanwhile (see `held_back`).

    Inside of the statement, gradients are off and inference mode is left: what is made is for a user's model, which
    may be trained later.
    """

    def __init__(self) -> None:
        self._held = held_back()
        self._modes = contextlib.ExitStack()
        self._begun = False
        self._others: dict[tuple[torch.dtype, torch.device], torch.Tensor] = {}
        self._clear()

    def _clear(self) -> None:
        self._changes: list[Change] = []
        self._resized: list[Resized] = []
        self._graded: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._made: list[tuple[list[Change], list[Resized], list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]] = []

    def __enter__(self) -> Transaction:
        self._held.__enter__()
        try:
            self._modes.enter_context(torch.inference_mode(False))
            self._modes.enter_context(torch.no_grad())
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                self.undo()
        finally:
            self._leave()

    def _leave(self) -> None:
        """Sets modes and signals free; handlers of signals that came may raise."""
        try:
            self._modes.close()
        finally:
            self._held.__exit__(None, None, None)

    def resize(self, tensor: torch.Tensor, data: torch.Tensor, gradient: torch.Tensor | None) -> None:
        """Gives a parameter or buffer other data, of any shape, and another gradient; the object stays.

        Autograd remembers the shape that a leaf had as long as anything holds an old graph, and programs do (``loss``
        of the last step is alive during the next forward). The node that adds up the gradients is made anew where data
        of another dtype is put in, so that is done in between; hooks are on the tensor and stay.

        Args:
            tensor: The parameter or buffer.
            data: Its new data: a tensor of its dtype on its device.
            gradient: Its new gradient, of the shape of the data; None where it has no gradient.
        """
        between = None
        if tensor.requires_grad:
            kind = (tensor.dtype, tensor.device)
            between = self._others.get(kind)
            if between is None:
                between = self._others[kind] = _empty_of_other_dtype(tensor)
        self._resized.append((tensor, between, data, tensor.data))
        if gradient is not None:
            assert tensor.grad is not None
            self._graded.append((tensor, gradient, tensor.grad))

    def refill(self, tensor: torch.Tensor, values: torch.Tensor, *, shared: bool = False) -> None:
        """Gives a parameter or buffer other values of its shape; its gradient stays.

        Args:
            tensor: The parameter or buffer.
            values: Its new values: a tensor of its shape and dtype on its device, which it takes over.
            shared: Whether others see its memory, so that the values have to be copied into it.
        """
        if shared:
            data = tensor.data
            self._changes.append((torch.Tensor.copy_, (data, values), (data, data.clone())))
        else:
            self._changes.append((_swap_data, (tensor, values), (tensor, tensor.data)))

    def entry(self, table: MutableMapping[Any, Any], key: Any, value: Any) -> None:
        """Sets an entry that a mapping has already: a module's tensor, child or attribute, an optimizer's state."""
        self._changes.append((_set_entry, (table, key, value), (table, key, table[key])))

    def refill_list(self, items: list[Any], new: Sequence[Any]) -> None:
        """Gives a list other items; the list stays."""
        self._changes.append((_set_items, (items, new), (items, list(items))))

    def refill_table(self, table: MutableMapping[Any, Any], new: Mapping[Any, Any]) -> None:
        """Gives a mapping other entries; the mapping stays."""
        self._changes.append((_set_entries, (table, new), (table, dict(table))))

    def commit(self) -> None:
        """Makes all changes handed in since the last commit."""
        self._begun = True
        for put, new, _ in self._changes:
            put(*new)
        _put_data(self._resized, self._graded, new=True)
        self._made.append((self._changes, self._resized, self._graded))
        self._changes, self._resized, self._graded = [], [], []

    def undo(self) -> None:
        """Takes back all changes that were made; after the statement as well, as long as the object is there."""
        with held_back():
            self._take_back()

    def _take_back(self) -> None:
        if self._begun:  # of those that are no commit's yet, some may be made
            for changes, resized, graded in reversed([*self._made, (self._changes, self._resized, self._graded)]):
                _put_data(resized, graded, new=False)
                for put, _, old in reversed(changes):
                    put(*old)
        self._clear()


def _put_data(
    resized: Sequence[Resized],
    graded: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    *,
    new: bool,
) -> None:
    for tensor, _, _ in graded:
        tensor.grad = None
    for tensor, between, after, before in resized:
        if between is not None:
            tensor.data = between
        tensor.data = after if new else before
    for tensor, after, before in graded:
        tensor.grad = after if new else before


def _swap_data(tensor: torch.Tensor, data: torch.Tensor) -> None:
    tensor.data = data


def _set_entry(table: MutableMapping[Any, Any], key: Any, value: Any) -> None:
    table[key] = value


def _set_items(items: list[Any], new: Sequence[Any]) -> None:
    items[:] = new


def _set_entries(table: MutableMapping[Any, Any], new: Mapping[Any, Any]) -> None:
    table.clear()
    table.update(new)


def _empty_of_other_dtype(tensor: torch.Tensor) -> torch.Tensor:
    other = torch.float16 if tensor.dtype is torch.float32 else torch.float32  # which every device has
    return torch.empty(0, dtype=other, device=tensor.device)
