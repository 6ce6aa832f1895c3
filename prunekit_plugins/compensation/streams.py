"""Watching what consumers that take over branches are added to, and what the sums were in the original."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import attrs
import torch
from torch.utils.weak import WeakIdKeyDictionary

from prunekit_core.program.calls import operation_name, tensors_of, writes
from prunekit_core.program.linear_forms import Addition
from prunekit_core.program.rules import ModuleOp, addition_of
from prunekit_plugins.calibration.batches import Batch
from prunekit_plugins.calibration.branch_sums import SumPoint, is_sum
from prunekit_plugins.calibration.observation import Look, Seen, Total, Watched, WatchingListener
from prunekit_plugins.calibration.residual_adds import same_numbers
from prunekit_plugins.compensation.takeovers import DROPOUTS, Takeover


@attrs.frozen(eq=False)
class Reached:
    """A consumer's output ``y`` arrived at the sum where it is compared, which is ``slope * y + rest``.

    Attributes:
        order: The consumer's number.
        slope: Tensor ``[channels]``: the factor of a norm that it went through; None without one.
        rest: Tensor of the shape of ``y``.
    """

    order: int
    slope: torch.Tensor | None
    rest: torch.Tensor


@attrs.define(eq=False)
class _Followed:
    """A consumer's output on its way."""

    order: int
    takeover: Takeover
    shape: torch.Size
    rest: torch.Tensor
    slope: torch.Tensor | None = None
    sums: int = 0

    @property
    def arrived(self) -> bool:
        return self.sums == self.takeover.sums and (self.slope is not None or not self.takeover.normed)


Arrive = Callable[[Reached], None]
Result = Callable[[SumPoint, torch.Tensor], None]


class StreamListener(WatchingListener):
    """The listener that follows outputs of consumers through sums, and shows what some sums come to.

    Args:
        watched: The model that runs.
        batch: The batch that runs.
        look: See `WatchingListener`.
        summed: See there.
        total: See there.
        follow: Number of a consumer to what it takes over: it is followed.
        arrive: Called when one of these has arrived.
        points: Sums that are shown.
        result: Called with each of them and its result, which may be overwritten afterwards.
    """

    def __init__(
        self,
        watched: Watched,
        batch: Batch,
        look: Look,
        summed: Collection[int] = (),
        total: Total | None = None,
        *,
        follow: Mapping[int, Takeover] | None = None,
        arrive: Arrive | None = None,
        points: Collection[SumPoint] = (),
        result: Result | None = None,
    ) -> None:
        super().__init__(watched, batch, self._look_at, summed, total)
        self._shown, self._follow, self._arrive = look, follow or {}, arrive
        self._points, self._result = set(points), result
        self._counts: dict[tuple[str, Any], int] = {}
        self._ways: WeakIdKeyDictionary = WeakIdKeyDictionary()  # tensors to what is followed

    def _look_at(self, seen: Seen) -> None:
        takeover = self._follow.get(seen.order)
        if takeover is None:
            self._shown(seen)
            return
        way = _Followed(seen.order, takeover, seen.output.shape, torch.zeros_like(seen.output))
        self._ways[seen.output] = way
        self._shown(seen)
        self._check(way)

    def operation(self, op: Any, module: str, arguments: Mapping[str, Any], outputs: Any) -> None:
        """Notes sums, and follows what is followed."""
        addition = addition_of(self.rules, op)
        if self._points and addition is not None and is_sum(arguments[addition.first], arguments[addition.second]):
            number = self._counts[module, op] = self._counts.get((module, op), -1) + 1
            point = SumPoint(module, op, number)
            if point in self._points and self._result is not None:
                self._result(point, outputs)
        for tensor in tensors_of(list(arguments.values())) if self._ways else ():
            way = self._ways.get(tensor)
            if way is not None:
                self._advance(way, tensor, op, addition, arguments, outputs)
        super().operation(op, module, arguments, outputs)

    def _advance(
        self,
        way: _Followed,
        tensor: torch.Tensor,
        op: Any,
        addition: Addition | None,
        arguments: Mapping[str, Any],
        outputs: Any,
    ) -> None:
        """Follows a tensor through one operation."""
        if addition is not None:
            self._add(way, tensor, addition, arguments, outputs)
            return
        rule = self.rules.find(op)
        centring = None if rule is None else rule.centres
        if way.takeover.normed and centring is not None and arguments[centring.source] is tensor:
            way.slope, base = _affine(op, arguments, centring.source)
            shape = [-1 if dim == 1 else 1 for dim in range(tensor.dim())]
            way.rest = base.reshape(shape).expand(tensor.shape).to(tensor.dtype).reshape(way.shape)
            self._go_on(way, outputs)
            return
        if operation_name(op).partition(".")[0] in DROPOUTS:
            self._go_on(way, outputs)
        elif not isinstance(op, ModuleOp) and not writes(op):
            for result in tensors_of(outputs):
                if same_numbers(result, tensor):
                    self._ways[result] = way

    def _add(
        self,
        way: _Followed,
        tensor: torch.Tensor,
        addition: Addition,
        arguments: Mapping[str, Any],
        outputs: torch.Tensor,
    ) -> None:
        pair = (arguments[addition.first], arguments[addition.second])
        other = next((one for one in pair if one is not tensor), None)
        if other is None or not is_sum(*pair) or arguments.get(addition.factor, 1) != 1:
            return
        if outputs is other:  # added in place: it isn't there any more
            other = outputs - tensor
        gone = way.takeover.skips and not bool(other.any())  # zeros in the place of a branch
        if not gone:
            way.rest = way.rest + other.reshape(way.shape)
            way.sums += 1
        self._go_on(way, outputs)

    def _go_on(self, way: _Followed, result: torch.Tensor) -> None:
        self._ways[result] = way
        self._check(way)

    def _check(self, way: _Followed) -> None:
        if way.arrived:
            self._ways = WeakIdKeyDictionary({t: other for t, other in self._ways.items() if other is not way})
            if self._arrive is not None:
                self._arrive(Reached(way.order, way.slope, way.rest))


def _affine(op: Any, arguments: Mapping[str, Any], source: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes what a norm with running statistics multiplies each channel by and adds to it, in float64."""
    given = arguments[source]
    doubled = {
        name: value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in arguments.items()
        if name != source
    }
    zeros = torch.zeros((1, given.shape[1], *(1 for _ in given.shape[2:])), dtype=torch.float64, device=given.device)
    base = op(**doubled, **{source: zeros}).flatten()
    return op(**doubled, **{source: zeros + 1}).flatten() - base, base
