"""Residual adds: where the output of a consumer is added to a stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch.utils.weak import WeakIdKeyDictionary

from prunekit_core.program.calls import tensors_of, writes
from prunekit_core.program.linear_forms import Addition
from prunekit_core.program.rules import ModuleOp, RuleTable, addition_of


@attrs.frozen(eq=False)
class ResidualAdd:
    """The output of a consumer was added to something else.

    Attributes:
        order: The consumer's number.
        rest: Tensor of the shape of its output: the stream that it was added to.
        born: The number of the last consumer that ran before the stream was made; -1 for none, None where that isn't
            known.
    """

    order: int
    rest: torch.Tensor
    born: int | None


class ResidualAdds:
    """Follows outputs of consumers through views to the operation that adds them to something.

    Attributes:
        read: Consumers whose outputs were read by something that is no such sum, or by more than one operation.
        found: Order of a consumer to `ResidualAdd.born`.
    """

    def __init__(self, rules: RuleTable) -> None:
        self.read: set[int] = set()
        self.found: dict[int, int | None] = {}
        self._rules = rules
        self._orders: WeakIdKeyDictionary = WeakIdKeyDictionary()  # tensors to consumers
        self._shapes: dict[int, torch.Size] = {}
        self._born: WeakIdKeyDictionary = WeakIdKeyDictionary()  # tensors to the last consumer before them
        self._last = -1

    def consumer(self, order: int, output: torch.Tensor, *, follow: bool) -> None:
        """Notes that a consumer ran, after its operation was noted; follows what it puts out if that is asked for."""
        self._last = order
        self._born[output] = order
        if follow:
            self._orders[output] = order
            self._shapes[order] = output.shape

    def operation(self, op: Any, arguments: Mapping[str, Any], outputs: Any) -> list[ResidualAdd]:
        """Notes an operation; returns the sums that it makes."""
        results, given = tensors_of(outputs), tensors_of(list(arguments.values()))
        changes = isinstance(op, ModuleOp) or writes(op)
        made: list[ResidualAdd] = []
        for tensor in given:
            order = self._orders.get(tensor)
            if order is None:
                continue
            views = [] if changes else [result for result in results if same_numbers(result, tensor)]
            for view in views:
                self._orders[view] = order
            if not views:
                made += self._sum(order, tensor, op, arguments, outputs)
            if any(result is tensor for result in results) and changes:
                del self._orders[tensor]  # it is the sum now
        for result in results:
            births = [self._born.get(tensor) for tensor in given if not changes and _same_memory(result, tensor)]
            self._born[result] = births[0] if births and births[0] is not None else self._last
        return made

    def handed_out(self, outputs: list[torch.Tensor]) -> None:
        """Notes what the model puts out."""
        self.read.update(self._orders[tensor] for tensor in outputs if tensor in self._orders)

    def _sum(
        self, order: int, tensor: torch.Tensor, op: Any, arguments: Mapping[str, Any], outputs: Any
    ) -> list[ResidualAdd]:
        addition = addition_of(self._rules, op)
        rest = self._rest(tensor, addition, arguments, outputs)
        if rest is None or order in self.found:
            self.read.add(order)
            return []
        other = _other(tensor, addition, arguments)
        self.found[order] = born = self._born.get(other)
        return [ResidualAdd(order, rest.reshape(self._shapes[order]), born)]

    def _rest(
        self, tensor: torch.Tensor, addition: Addition | None, arguments: Mapping[str, Any], outputs: Any
    ) -> torch.Tensor | None:
        other = _other(tensor, addition, arguments)
        if other is None or other.shape != tensor.shape or other.dtype != tensor.dtype:
            return None
        return outputs - tensor if outputs is other else other  # added in place: it isn't there any more


def _other(tensor: torch.Tensor, addition: Addition | None, arguments: Mapping[str, Any]) -> torch.Tensor | None:
    """The other summand of a plain sum of two tensors; None where the operation is none."""
    if addition is None or arguments.get(addition.factor, 1) != 1:
        return None
    pair = (arguments[addition.first], arguments[addition.second])
    others = [value for value in pair if value is not tensor]
    return others[0] if len(others) == 1 and isinstance(others[0], torch.Tensor) else None


def _same_memory(result: torch.Tensor, tensor: torch.Tensor) -> bool:
    return result.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()


def same_numbers(result: torch.Tensor, tensor: torch.Tensor) -> bool:
    """Whether a result is the tensor itself or a view of all of it, its numbers in the same order."""
    return (
        result.dtype == tensor.dtype
        and result.numel() == tensor.numel()
        and result.data_ptr() == tensor.data_ptr()
        and result.is_contiguous()
        and tensor.is_contiguous()
    )
