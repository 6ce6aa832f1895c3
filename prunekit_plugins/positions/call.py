"""The call: fewer positions in a model that learnt an embedding of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from prunekit_core.arguments import shown
from prunekit_core.errors import ArgumentError
from prunekit_core.graph.graph import Graph
from prunekit_core.modules.exclusive import on_exclusive
from prunekit_core.modules.transaction import Transaction
from prunekit_core.plans.optimizers import Optimizers
from prunekit_core.plugins.registry import Registry
from prunekit_core.record.recorder import check_recordable
from prunekit_plugins.positions.declared import DeclaredPositions, declare
from prunekit_plugins.positions.fields import recounted
from prunekit_plugins.positions.rebuilt import built_otherwise
from prunekit_plugins.positions.result import PositionsResult
from prunekit_plugins.vocabulary import configuration
from prunekit_plugins.vocabulary.call import dummy_inputs
from prunekit_plugins.vocabulary.comparison import Comparison
from prunekit_plugins.vocabulary.cut import DeclaredCut
from prunekit_plugins.vocabulary.meaning import Meaning

LENGTH = "model_max_length"
"""The attribute of a tokenizer of transformers with the number of tokens that it cuts texts to."""


@on_exclusive
def prune_positions(
    model: nn.Module,
    length: int,
    example_inputs: Any = None,
    *,
    table: str | None = None,
    tokenizer: Any = None,
    forward_fn: Callable[[nn.Module, Any], Any] | None = None,
    registry: Registry | None = None,
    optimizer: Optimizers | None = None,
) -> PositionsResult:
    """Removes the last positions from a model that learnt an embedding of each, in place.

    Rows of the tables leave that are looked up by position, and with them entries of buffers along positions
    (``position_ids``, causal masks); the numbers in configurations that count them follow. On inputs of up to
    ``length`` positions the model computes what it computed. This is compared on inputs of that length, made by
    repeating the example inputs, before the call returns.

    Args:
        model: Any module whose forward runs.
        length: How many positions stay: the first ones.
        example_inputs: See `prune`; of at most ``length`` positions. None: ``model.dummy_inputs``, which models of
            transformers have.
        table: The embedding that positions look up, by the name of the parameter or its module; None for those that
            are found, where all have as many rows.
        tokenizer: A tokenizer of transformers: its ``model_max_length`` becomes ``length`` if it is larger.
        forward_fn: Called as ``forward_fn(model, example_inputs)`` instead of the model.
        registry: Where plugins are found; None for the default registry.
        optimizer: An optimizer that trains the model, or several; their state is cut along.

    Returns:
        The plan, and what it is about.

    Raises:
        ArgumentError: An argument is wrong: there aren't as many positions, the example inputs have more, or it isn't
            clear which table is meant.
        NothingToPruneError: Positions aren't looked up, or the program does something else with the tables.
        RehearsalError: The program can't express fewer positions; the message says where.
        VerificationError: The pruned model computes something else.
        PrunekitError: Anything else that stands in the way. The model is untouched after any error.
    """
    if isinstance(length, bool) or not hasattr(length, "__index__") or length.__index__() < 1:
        raise ArgumentError("length is the number of positions to keep.", why=f"got {shown(length)}", hint="length=512")
    length = length.__index__()
    longest = _longest_text(tokenizer)
    found = check_recordable(model)
    inputs = dummy_inputs(found, "prune_positions(model, length, inputs)") if example_inputs is None else example_inputs
    graph = Graph.of(found, inputs, forward_fn=forward_fn, registry=registry)
    declared = declare(graph, length, table, lambda example: Graph.of(found, example, registry=registry))
    modules, sizes = declared.graph.current.tree.modules, declared.sizes(length)
    changes = configuration.changes_in(
        modules, declared.graph.registry, lambda name, value: recounted(name, value, sizes)
    )
    changes = [] if declared.others else changes
    cut = DeclaredCut.of(declared.graph, {declared.group: tuple(range(length))}, changes, lambda example: example)
    example = declared.longest or declared.graph.analysis.recordings[0].example
    comparison = Comparison.of(declared.graph, cut.plan.kept, example, example, Meaning.POSITIONS)
    with cut.made(optimizer) as transaction:
        if comparison is not None:
            comparison.confirm(found)
        if longest > length:
            _shorten(tokenizer, length, transaction)
        names, notes = tuple(one.name for one in declared.tables), tuple(_notes(declared, comparison, found))
        return PositionsResult(model, cut.plan, length, declared.size, names, notes)


def _longest_text(tokenizer: Any) -> int:
    """Returns how many tokens a tokenizer cuts texts to; 0 without one."""
    if tokenizer is None:
        return 0
    found = getattr(tokenizer, "__dict__", {}).get(LENGTH)
    if type(found) is not int:
        hint = f"pass the one that you save with the model, or set the {LENGTH} of yours"
        raise ArgumentError(f"tokenizer is one with a {LENGTH}.", why=f"got {shown(tokenizer)}", hint=hint)
    return found


def _shorten(tokenizer: Any, length: int, transaction: Transaction) -> None:
    transaction.entry(vars(tokenizer), LENGTH, length)
    transaction.commit()


def _notes(declared: DeclaredPositions, comparison: Comparison | None, model: nn.Module) -> Iterator[str]:
    for name in declared.others:
        yield f"configurations aren't changed: {name} has as many rows for positions"
    if comparison is None:
        yield "not compared: the model has no values"
    elif declared.longest is None:
        yield "compared on the example inputs only: the model doesn't run on them repeated to the greatest length"
    otherwise = built_otherwise(model)
    if otherwise:
        yield f"from_pretrained would build {', '.join(otherwise[:3])} otherwise: load the model with prunekit.load"
