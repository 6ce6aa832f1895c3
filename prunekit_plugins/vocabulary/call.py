"""The calls: fewer tokens in a language model, fewer classes in a classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import nn

from prunekit_core.algebra import layout as layouts
from prunekit_core.algebra.layout import Concat, Fixed, Layout, Units
from prunekit_core.algebra.reasons import Reason
from prunekit_core.errors import ArgumentError
from prunekit_core.graph.graph import Graph
from prunekit_core.modules.exclusive import on_exclusive
from prunekit_core.plans.optimizers import Optimizers
from prunekit_core.plans.plan import Plan
from prunekit_core.plugins.registry import Registry
from prunekit_core.program.examples import Example
from prunekit_core.record.recorder import check_recordable
from prunekit_plugins.vocabulary import configuration
from prunekit_plugins.vocabulary.comparison import Comparison, exchanged, ids_among
from prunekit_plugins.vocabulary.corpus import read_tokenizer, split_otherwise, wanted_classes, wanted_ids
from prunekit_plugins.vocabulary.cut import DeclaredCut
from prunekit_plugins.vocabulary.declared import Declared, declare, declare_classes
from prunekit_plugins.vocabulary.fields import renumbered, renumbered_class
from prunekit_plugins.vocabulary.ids import IdMap
from prunekit_plugins.vocabulary.meaning import Meaning
from prunekit_plugins.vocabulary.tokenizer import closed, rewritten


@attrs.frozen(eq=False)
class VocabularyResult(Mapping[int, int]):
    """Old id to new id of what stays, and how the model came to have fewer.

    Attributes:
        model: The pruned model (the one that was passed in).
        ids: Old id to new id; ``ids.of(tensor)`` maps a tensor of ids. The result itself maps single ids.
        plan: The decision, as data.
        tables: Parameters whose rows are looked up by ids.
        outputs: Names of the outputs that have a value for each id.
        added: Ids that stay though nobody asked for them, with what needs them.
        tokenizer: What ``tokenizer.json`` has to hold now; None where no tokenizer was passed.
        notes: What else is to be known.
        meaning: Whether they are ids or classes.
    """

    model: nn.Module = attrs.field(repr=False)
    ids: IdMap = attrs.field(repr=False)
    plan: Plan = attrs.field(repr=False)
    tables: tuple[str, ...]
    outputs: tuple[str, ...]
    size: int
    added: Mapping[int, str] = attrs.field(factory=dict, repr=False)
    tokenizer: Mapping[str, Any] | None = attrs.field(default=None, repr=False)
    notes: tuple[str, ...] = ()
    meaning: Meaning = Meaning.IDS

    def __getitem__(self, old: int) -> int:
        return self.ids[old]

    def __iter__(self) -> Iterator[int]:
        return iter(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __str__(self) -> str:
        preview = self.plan.preview()
        share = preview.params_after / preview.params_before if preview.params_before else 1.0
        name = self.meaning.value
        lines = [f"{name:<7} {self.size:>14,} -> {len(self):>14,}  ({len(self) / self.size:.1%} kept)"]
        sizes = f"{preview.params_before:>14,} -> {preview.params_after:>14,}"
        lines.append(f"params  {sizes}  ({share:.1%} kept)")
        lines += [f"rows looked up: {', '.join(self.tables)}"] if self.tables else []
        lines += [f"outputs: {', '.join(name or 'the output' for name in self.outputs)}"] if self.outputs else []
        lines += [f"kept besides: {len(self.added)} {name}"] if self.added else []
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


@on_exclusive
def prune_vocabulary(
    model: nn.Module,
    keep: Iterable[int | str] | str | torch.Tensor,
    example_inputs: Any = None,
    *,
    tokenizer: Any = None,
    table: str | None = None,
    outputs: Sequence[str] | None = None,
    forward_fn: Callable[[nn.Module, Any], Any] | None = None,
    registry: Registry | None = None,
    optimizer: Optimizers | None = None,
) -> VocabularyResult:
    """Removes tokens from a language model in place: rows of its embeddings and its head leave together.

    The ids that stay keep their order and are numbered anew. For text of tokens that stay, the model with new ids
    computes what it computed with the old ones: every output that has a value for each id has those of the ids that
    stay. This is compared on the example inputs before the call returns.

    What the program does with ids is followed: lookups, comparisons with constants (``ids == pad``), a ``shift`` to the
    right. Ids in the model's configuration (``eos_token_id``) and the ids that the program names stay, under their new
    numbers, and so does what the tokenizer needs, see `prunekit_plugins.vocabulary.closed`.

    Args:
        model: Any module whose forward runs.
        keep: Ids to keep, or texts whose tokens are kept, or both.
        example_inputs: See `prune`. None: ``model.dummy_inputs``, which models of transformers have.
        tokenizer: A ``tokenizers.Tokenizer``, a fast tokenizer of transformers, the path of a ``tokenizer.json``, or
            what it holds. It splits texts; the result has the one with fewer tokens. This one isn't changed.
        table: The embedding that ids look up, by the name of the parameter or its module; None for the model's own
            (``get_input_embeddings``), or else the only one that an input looks up.
        outputs: Names of the outputs with a value for each id; None for those that are found: as many values as there
            are ids, from the same weights or from a head that nothing else reads.
        forward_fn: Called as ``forward_fn(model, example_inputs)`` instead of the model.
        registry: Where plugins are found; None for the default registry.
        optimizer: An optimizer that trains the model, or several; their state is cut along.

    Returns:
        The map of ids, with the plan and the tokenizer.

    Raises:
        ArgumentError: An argument is wrong, or it isn't clear which embedding is meant.
        NothingToPruneError: The program does something with ids that can't follow; the message says what, and where.
        RehearsalError: The program can't express the smaller vocabulary; the message says where.
        VerificationError: The pruned model computes something else.
        PrunekitError: Anything else that stands in the way. The model is untouched after any error.
    """
    data = None if tokenizer is None else read_tokenizer(tokenizer)
    wanted, texts = wanted_ids(keep, data)
    found = check_recordable(model)
    inputs = dummy_inputs(found, "prune_vocabulary(model, keep, inputs)") if example_inputs is None else example_inputs
    inputs, left_out = unlabelled(inputs, forward_fn)
    graph = Graph.of(found, inputs, forward_fn=forward_fn, registry=registry)
    declared = declare(graph, table, outputs)
    _check_range(wanted, declared)
    modules, registry = declared.graph.current.tree.modules, declared.graph.registry
    named = {} if declared.others else configuration.named_in(modules, registry)
    settled = _settled(wanted, named, declared, data)
    made = None if data is None else rewritten(data, settled[0])
    notes = [*left_out, *(f"configurations aren't changed: {name} is of the same size" for name in declared.others)]
    if data is not None and made is not None and texts:
        count = split_otherwise(texts, data, made, settled[0])
        if count:
            notes.append(f"{count} of {len(texts)} texts are split otherwise: unknown words have become known")
    return _cut(declared, settled, _Call(model, optimizer, renumbered, made, tuple(notes)))


@on_exclusive
def prune_classes(
    model: nn.Module,
    keep: Iterable[int] | torch.Tensor,
    example_inputs: Any,
    *,
    outputs: Sequence[str] | None = None,
    forward_fn: Callable[[nn.Module, Any], Any] | None = None,
    registry: Registry | None = None,
    optimizer: Optimizers | None = None,
) -> VocabularyResult:
    """Removes classes from a classifier in place: rows of its head.

    Args:
        model: Any module whose forward runs.
        keep: Numbers of the classes to keep; they keep their order and get new numbers.
        example_inputs: See `prune`.
        outputs: Names of the outputs with a value for each class; None for those of which a dim is made by layers that
            nothing else reads, if they agree in their number.
        forward_fn: Called as ``forward_fn(model, example_inputs)`` instead of the model.
        registry: Where plugins are found; None for the default registry.
        optimizer: An optimizer that trains the model, or several; their state is cut along.

    Returns:
        The map of classes, with the plan.

    Raises:
        ArgumentError: An argument is wrong, or it isn't clear which output is meant.
        PrunekitError: Anything else that stands in the way. The model is untouched after any error.
    """
    wanted = wanted_classes(keep)
    found = check_recordable(model)
    inputs, left_out = unlabelled(example_inputs, forward_fn)
    graph = Graph.of(found, inputs, forward_fn=forward_fn, registry=registry)
    declared = declare_classes(graph, outputs)
    _check_range(wanted, declared)
    settled = _settled(wanted, {}, declared, None)
    return _cut(declared, settled, _Call(model, optimizer, renumbered_class, notes=left_out))


def dummy_inputs(model: nn.Module, call: str) -> dict[str, Any]:
    """Returns the example inputs that models of transformers have of their own.

    Args:
        model: The model.
        call: The call that example inputs may be passed to, for the hint.

    Raises:
        ArgumentError: It has none.
    """
    inputs = getattr(model, "dummy_inputs", None)
    if not isinstance(inputs, Mapping):
        raise ArgumentError("Example inputs are needed.", where=type(model).__name__, hint=call)
    return dict(inputs)


LABELS = ("labels", "label", "label_ids")
"""Names of inputs that a loss is computed from."""


def unlabelled(inputs: Any, forward_fn: Any) -> tuple[Any, tuple[str, ...]]:
    """Leaves labels out of example inputs, with a note: a loss is computed from all logits, and labels would be numbers
    that don't follow.

    Args:
        inputs: The example inputs.
        forward_fn: What runs the model on them; it may read labels as it likes.
    """
    if forward_fn is not None or not isinstance(inputs, Mapping):
        return inputs, ()
    found = [name for name in LABELS if name in inputs]
    left = {name: value for name, value in inputs.items() if name not in found}
    return left if found else inputs, tuple(f"{name} of the example inputs were left out" for name in found)


def _check_range(wanted: set[int], declared: Declared) -> None:
    size = declared.layout.size
    beyond = sorted(number for number in wanted if number >= size)
    if beyond:
        what = declared.meaning.value
        raise ArgumentError(f"keep names {what} that the model doesn't have.", why=f"{beyond[:5]}, and it has {size}")


def _check_examples(graph: Graph, declared: Declared, ids: IdMap) -> None:
    """Raises `ArgumentError` if ids of the example inputs leave where what the program does depends on values."""
    if graph.analysis.shadow.fake_mode is None:
        for recording in graph.analysis.recordings:
            leaving = ids_among(recording.example, declared.inputs) - set(ids)
            if leaving:
                why = (
                    f"{sorted(leaving)[:5]} leave, and the program asks for values: it may go another way without them"
                )
                raise ArgumentError("Example inputs hold ids that leave.", why=why, hint="pass inputs of ids that stay")


def _parts(layout: Layout) -> Iterator[tuple[int, Layout]]:
    """Yields the parts of the ids, each with the first id in it."""
    start = 0
    for part in layout.parts if isinstance(layout, Concat) else (layout,):
        yield start, part
        start += part.size


def _settled(
    wanted: set[int], named: Mapping[int, str], declared: Declared, tokenizer: Mapping[str, Any] | None
) -> tuple[IdMap, dict[int, str]]:
    """Returns the ids that stay, and those among them that nobody asked for, with what needs them."""
    size = declared.layout.size
    reasons = {number: where for number, where in named.items() if number < size}
    for start, part in _parts(declared.layout):
        if isinstance(part, Fixed):
            reasons.update(dict.fromkeys(range(start, start + part.size), "the program"))
        elif not isinstance(part, Units):
            raise declared.meaning.refused(Reason("it reads them in rows of a grid"))
    chosen = wanted | reasons.keys()
    while True:
        for start, part in _parts(declared.layout):
            if isinstance(part, Units) and not any(start <= number < start + part.size for number in chosen):
                reasons[start] = "one id between those that the program names has to stay"
        chosen |= reasons.keys()
        if tokenizer is None:
            break
        more = {number for number in closed(tokenizer, chosen) if number not in chosen}
        if not more:
            break
        _check_range(more, declared)
        reasons.update(dict.fromkeys(sorted(more), "the tokenizer"))
    if len(chosen) == size:
        why = f"{len(wanted)} of {size} are kept" + (", and the others are needed" if len(wanted) < size else "")
        raise ArgumentError(f"Every {declared.meaning.one} would stay.", why=why)
    return IdMap(chosen), {number: why for number, why in sorted(reasons.items()) if number not in wanted}


def _kept(layout: Layout, ids: IdMap) -> dict[str, tuple[int, ...]]:
    """Returns the kept units of every group that loses some."""
    kept = {}
    for start, part in _parts(layout):
        if isinstance(part, Units):
            units = tuple(number - start for number in ids if start <= number < start + part.size)
            if len(units) < part.size:
                kept[part.group] = units
    return kept


@attrs.frozen(eq=False)
class _Call:
    """What a call was made with, as far as the cut depends on it.

    Attributes:
        model: The model, as it was passed in.
        optimizer: What trains it.
        field: Tells what fields of configurations become: from name, value, the map of ids and their number before.
        tokenizer: The tokenizer with fewer tokens.
        notes: What else is to be known.
    """

    model: nn.Module
    optimizer: Optimizers | None
    field: Callable[[str, Any, IdMap, int], Any]
    tokenizer: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()


def _cut(declared: Declared, settled: tuple[IdMap, dict[int, str]], call: _Call) -> VocabularyResult:
    """Proves the cut, makes it, and compares; the model is as it was if anything raises."""
    graph, (ids, added), size = declared.graph, settled, declared.layout.size
    modules = graph.current.tree.modules
    changes = configuration.changes_in(modules, graph.registry, lambda name, value: call.field(name, value, ids, size))
    changes = [] if declared.others else changes
    _check_examples(graph, declared, ids)

    def exchange(example: Example, *, new: bool = True) -> Example:
        return exchanged(example, declared.inputs, ids, new=new)

    cut = DeclaredCut.of(graph, _kept(declared.layout, ids), changes, exchange)
    mixes = [f"{use} depends on all of them: other values for those that stay" for use in _mixes(declared)]
    example, comparison = graph.analysis.recordings[0].example, None
    if not mixes:
        old, new = exchange(example, new=False), exchange(example)
        comparison = Comparison.of(graph, cut.plan.kept, old, new, declared.meaning)
    outputs, notes = tuple(declared.outputs), (*call.notes, *mixes)
    with cut.made(call.optimizer):
        if comparison is not None:
            comparison.confirm(graph.model)
        found = (call.model, ids, cut.plan, declared.tables, outputs, size, added, call.tokenizer, notes)
        return VocabularyResult(*found, declared.meaning)


def _mixes(declared: Declared) -> dict[str, None]:
    """Names the operations whose result depends on the number of ids."""
    groups = (declared.graph.analysis.groups[name] for name in layouts.groups_of(declared.layout))
    return {use: None for group in groups for use in group.mixes}
