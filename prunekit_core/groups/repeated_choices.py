"""Choices out of what an earlier choice left: the second of two experts is the best one without the first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prunekit_core.algebra import axes
from prunekit_core.algebra.requirements import Choice, Least
from prunekit_core.groups.propagate import Propagation
from prunekit_core.program.op_call import Verb
from prunekit_core.program.trace import Operation, TensorRef


def chosen_in_turn(p: Propagation) -> Iterator[tuple[int, Least]]:
    """Yields how many units operations need that choose from what depends on earlier choices of the same units.

    Args:
        p: A propagated trace.
    """
    choices = p.effects.choices
    alike: dict[tuple[int, ...], list[int]] = {}
    for index, choice in choices.items():
        alike.setdefault(tuple(id(leaf) for leaf in axes.leaves(choice.axis)), []).append(index)
    writers: dict[int, list[Operation]] = {}
    for places in alike.values():
        for later in places[1:]:
            writers = writers or _writers(p.trace.operations)
            before = _before(_source(p, later), later, writers)
            earlier = [place for place in places if place < later and _positions(p, place, choices) in before]
            if earlier:
                count = sum(choices[place].count for place in (*earlier, later))
                yield later, Least((choices[later].axis,), count, f"{count} of them are chosen in turn")


def _source(p: Propagation, index: int) -> TensorRef:
    use = next(use for use in p.effects.whole[index] if use.verb is Verb.CHOOSE)
    return use.operands[0][0]


def _positions(p: Propagation, index: int, choices: Mapping[int, Choice]) -> int:
    return p.trace.operations[index].outputs[choices[index].output].index


def _writers(operations: Iterable[Operation]) -> dict[int, list[Operation]]:
    found: dict[int, list[Operation]] = {}
    for operation in operations:
        for ref in operation.outputs:
            found.setdefault(ref.index, []).append(operation)
    return found


def _before(source: TensorRef, index: int, writers: Mapping[int, list[Operation]]) -> set[int]:
    """Lists the tensors that one is computed from, itself included, by operations before another one."""
    seen, pending = {source.index}, [source.index]
    while pending:
        for operation in writers.get(pending.pop(), ()):
            fresh = {ref.index for ref in operation.references()} - seen if operation.index < index else set()
            seen |= fresh
            pending.extend(fresh)
    return seen
