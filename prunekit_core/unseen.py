"""What recordings didn't see: parameters that nothing used, modes that couldn't be recorded, results left behind."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from prunekit_core import axes
from prunekit_core.axes import Axis, Reason
from prunekit_core.propagate import Propagation
from prunekit_core.trace import Trace

_LISTED = 6
"""Names in a line of the report."""


def keep_widths(
    untouched: Sequence[str], parameters: Mapping[str, tuple[Axis, ...]], propagations: Sequence[Propagation]
) -> None:
    """Pins whatever could feed a parameter that may be used in a mode that wasn't recorded: all widths that fit.

    Args:
        untouched: Names of the parameters that no recording touched.
        parameters: Axes of all parameters and buffers.
        propagations: What is known of the activations.
    """
    sizes: dict[int, str] = {}
    for name in untouched:
        for axis in parameters[name]:
            sizes.setdefault(axes.resolve(axis).size, name)
    for propagation in propagations:
        for dims in propagation.tensors.values():
            for axis in dims:
                size = axes.resolve(axis).size
                fitting = [name for wanted, name in sizes.items() if size > 1 and wanted % size == 0]
                if fitting:
                    axes.pin(axis, Reason(f"{fitting[0]} may be used with it in a mode that wasn't recorded"))


def stored(trace: Trace, live: Collection[int]) -> Iterator[str]:
    """Says what a forward leaves behind that can lose units: it isn't taken for an output, as the forward reads it.

    Args:
        trace: The forward.
        live: Indices of the tensors that can lose units.
    """
    for ref, where in trace.stored.items():
        if ref.index in live:
            yield f"what the forward leaves {where} may lose units; where that is wanted whole, return it"


def missed(untouched: Sequence[str], traces: Sequence[Trace]) -> list[str]:
    """Warns of parameters that no recording used though their module, or the one right around it, ran."""
    ran = {operation.module for trace in traces for operation in trace.operations} | {""}
    ran |= {path.rpartition(".")[0] for path in ran}
    owners = {name: name.rpartition(".")[0] for name in untouched}
    found = [name for name, owner in owners.items() if owner in ran or owner.rpartition(".")[0] in ran]
    if not found:
        return []
    listed = ", ".join(found[:_LISTED]) + (f" and {len(found) - _LISTED} more" if len(found) > _LISTED else "")
    advice = "a program that uses them with other inputs or settings may not fit the pruned model: pass those as well"
    return [f"WARNING: modules ran without these parameters of theirs: {listed}; {advice} (more_inputs)"]
