"""What a program does with its consumers: in which order they run, what else reads their weights, what follows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch.utils.weak import WeakIdKeyDictionary

from prunekit_core.errors import PlanError
from prunekit_core.plans.plan import Plan
from prunekit_core.program.calls import operation_name, tensors_of
from prunekit_core.program.linear_forms import Site
from prunekit_core.program.outputs import output_tensors
from prunekit_plugins.calibration.batches import Batch
from prunekit_plugins.calibration.observation import Look, Run, Seen, Watched, WatchingListener
from prunekit_plugins.calibration.residual_adds import ResidualAdds


@attrs.frozen
class Consumer:
    """One consumer of a program.

    Attributes:
        site: The (part of a) parameter that it multiplies by.
        orders: Its numbers among the consumers of a forward; several where it runs several times.
        bias: The parameter, or the run of one, that it alone adds; None if there is none.
        mean: The buffer with the mean that is subtracted from all that it puts out; empty if there is none.
        others: What else its weight is used for.
        level: Consumers that follow each other and read the same tensor (queries, keys and values) are on one level.
        places: For each time that it runs, the sizes of what it puts out, channels left out.
        summed: Whether all that it puts out is added to something that was there before its level ran, and nothing else
            reads it.
    """

    site: Site
    orders: tuple[int, ...]
    bias: Run | None
    mean: str
    others: tuple[str, ...]
    level: int
    places: tuple[tuple[int, ...], ...]
    summed: bool

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the tensors that are given other values when it is fitted."""
        return (
            self.site.parameter,
            *((self.bias.parameter,) if self.bias else ()),
            *((self.mean,) if self.mean else ()),
        )


class _Uses(WatchingListener):
    """Notes who reads the outputs of consumers, and who else uses parameters."""

    def __init__(self, watched: Watched, batch: Batch, look: Look, *, every: bool) -> None:
        super().__init__(watched, batch, look, every=every)
        self.outputs: WeakIdKeyDictionary = WeakIdKeyDictionary()  # to their orders
        self.readers: dict[int, list[str]] = {}
        self.means: list[str] = []
        self.others: dict[str, dict[str, None]] = {}
        self.levels: list[int] = []
        self.sums = ResidualAdds(watched.rules)
        self._source: torch.Tensor | None = None
        self._names = watched.shadow.names

    def operation(self, op: Any, module: str, arguments: Mapping[str, Any], outputs: Any) -> None:
        given = tensors_of(list(arguments.values()))
        self._note_readers(op, arguments, given)
        self.sums.operation(op, arguments, outputs)
        seen = self.consumer(op, module, arguments, outputs)
        if seen is None and self.note_cast(arguments, outputs):
            return  # what uses the cast is seen
        own: list[Any] = []
        if seen is not None:
            self.look(seen)
            self.sums.consumer(seen.order, outputs, follow=True)
            self.outputs[outputs] = seen.order
            self._note_level(arguments[seen.reading.source])
            own = [arguments[seen.reading.weight], arguments.get(seen.reading.bias) if seen.bias else None]
        stores = {tensor.untyped_storage().data_ptr() for tensor in tensors_of(outputs)}
        for tensor in given:
            name = self._names.get(id(tensor), "")
            handed_on = tensor.untyped_storage().data_ptr() in stores  # a view is no use; what uses the view is seen
            if name in self.parameters and not any(tensor is one for one in own) and not handed_on:
                self.others.setdefault(name, {})[f"{operation_name(op)} in {module or 'the model'}"] = None

    def _note_readers(self, op: Any, arguments: Mapping[str, Any], given: Sequence[torch.Tensor]) -> None:
        rule = self.rules.find(op)
        centring = None if rule is None else rule.centres
        mean, centred = "", None
        if centring is not None and not arguments[centring.switch]:
            mean, centred = self._names.get(id(arguments[centring.mean]), ""), arguments[centring.source]
            self.means.append(mean)
        for tensor in given:
            if tensor in self.outputs:
                self.readers.setdefault(self.outputs[tensor], []).append(mean if tensor is centred else "")

    def _note_level(self, source: torch.Tensor) -> None:
        """Consumers that follow each other and read the same memory are on one level; the last source is kept alive,
        so that no other tensor has its memory."""
        last, self._source = self._source, source
        alike = last is not None and (source.data_ptr(), source.numel()) == (last.data_ptr(), last.numel())
        self.levels.append(self.levels[-1] + (not alike) if self.levels else 0)


def find_consumers(watched: Watched, batch: Batch, *, every: bool = False) -> list[Consumer]:
    """Runs a batch and lists the consumers in the order in which they first run.

    Args:
        watched: The model.
        batch: The batch.
        every: Whether all of them are listed, whichever are watched.
    """
    calls: dict[str, list[Seen]] = {}
    places: dict[str, list[tuple[int, ...]]] = {}

    def look(seen: Seen) -> None:
        sizes = list(seen.output.shape)
        del sizes[seen.channel_dim]
        places.setdefault(seen.site.name, []).append(tuple(sizes))
        nothing = torch.empty(0, device="cpu")
        calls.setdefault(seen.site.name, []).append(attrs.evolve(seen, arguments={}, output=nothing))

    listener = _Uses(watched, batch, look, every=every)
    results = output_tensors(watched.run_into(batch, listener))
    for tensor in results:
        if tensor in listener.outputs:
            listener.readers.setdefault(listener.outputs[tensor], []).append("")
    listener.sums.handed_out(results)
    biases = [seen[0].bias for seen in calls.values()]
    found = []
    for seen in calls.values():
        first = seen[0]
        means = listener.readers.get(first.order, [])
        mean = means[0] if len(seen) == len(means) == 1 and listener.means.count(means[0]) == 1 else ""
        alone = biases.count(first.bias) == 1 and all(call.bias == first.bias for call in seen)
        found.append(
            Consumer(
                first.site,
                tuple(call.order for call in seen),
                first.bias if alone and first.bias and first.bias.parameter not in listener.others else None,
                mean,
                (
                    *listener.others.get(first.site.parameter, ()),
                    *_overlaps(first.site, [c[0].site for c in calls.values()]),
                ),
                listener.levels[first.order],
                tuple(places[first.site.name]),
                all(_summed(call.order, listener.sums, listener.levels) for call in seen),
            )
        )
    return found


def _summed(order: int, sums: ResidualAdds, levels: Sequence[int]) -> bool:
    born = None if order in sums.read else sums.found.get(order)
    return born is not None and (born < 0 or levels[born] < levels[order])


def _overlaps(site: Site, sites: Sequence[Site]) -> list[str]:
    return [
        f"{other.name} overlaps with it"
        for other in sites
        if other != site
        and other.parameter == site.parameter
        and other.rows[0] < site.rows[1]
        and site.rows[0] < other.rows[1]
    ]


def match(before: Sequence[Consumer], after: Sequence[Consumer], plan: Plan) -> list[tuple[Consumer, Consumer]]:
    """Matches consumers of the original with those of the pruned model.

    Args:
        before: Those of the original.
        after: Those of the pruned model.
        plan: What leads to it. Consumers of branches that it removes have no counterpart.

    Raises:
        PlanError: They aren't the same, in the same order.
    """
    renaming, left = plan.renaming, {one.site.parameter for one in after}
    stay = [one for one in before if not plan.absent or renaming.after(one.site.parameter) in left]
    names = [renaming.after(one.site.parameter) for one in stay]
    alike = names == [one.site.parameter for one in after]
    if not alike or (not plan.absent and [one.orders for one in stay] != [one.orders for one in after]):
        raise PlanError(
            "The pruned model doesn't run the program of the original.",
            why=f"{len(stay)} consumers ran in one, {len(after)} in the other, or in another order",
            hint="pass the model that the plan was made for as the original",
        )
    return [pair for pair in zip(stay, after, strict=True) if len(pair[0].orders) == len(pair[1].orders)]
