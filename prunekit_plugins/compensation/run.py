"""Compensation: repairing a pruned model on calibration data, before any training."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import nn

from prunekit_core.choose.untouched import no_writes
from prunekit_core.errors import ArgumentError, PlanError, many
from prunekit_core.graph.graph import Graph
from prunekit_core.groups.analysis import Analysis
from prunekit_core.modules.transaction import Transaction
from prunekit_core.modules.tree import named_tensors
from prunekit_core.plans.apply import Application
from prunekit_core.plans.plan import Plan
from prunekit_core.plugins.blame import Blame
from prunekit_core.plugins.registry import Registry, default_registry
from prunekit_core.record.recorder import check_recordable
from prunekit_core.record.shadow import Shadow
from prunekit_plugins.calibration.batches import Batches
from prunekit_plugins.calibration.observation import Watched
from prunekit_plugins.checkpoints.stored_values import Scratch
from prunekit_plugins.compensation.repair import Compensator, LayerRepair, Repair
from prunekit_plugins.compensation.takeovers import Takeover, find_takeovers

Takeovers = tuple[Sequence[Takeover], Mapping[str, str]]
"""What takes over removed branches, and the branches that nothing takes over, with the reason."""
DEFAULT = ("least_squares", "batchnorm")
ROUNDING = 1e-6
"""Differences of output errors that say nothing."""


@attrs.frozen
class Compensation:
    """What compensation did.

    Attributes:
        layers: Consumers that were given other weights, with their error before and after.
        left: What was left alone, with the reason.
        output_error: Mean squared error of the model's outputs on the calibration data, relative to their size, right
            after the cut and after compensation.
        notes: Where an estimate is poor: samples that were not finite, or too few for a layer's covariance.
        undone: Compensators of whose work nothing was kept, with the reason: values that are not finite, or outputs
            that are worse on the calibration data than right after the cut.
        unsolved: Consumers for which a compensator gave values that are not finite, which were left as they are, with
            its name.
    """

    layers: tuple[LayerRepair, ...]
    left: Mapping[str, str]
    output_error: tuple[float, float]
    notes: tuple[str, ...] = ()
    undone: Mapping[str, str] = attrs.field(factory=dict)
    unsolved: Mapping[str, str] = attrs.field(factory=dict)

    def __str__(self) -> str:
        before, after = self.output_error
        lines = [f"compensated: {many(len(self.layers), 'layer')}, output error {before:.3g} -> {after:.3g}"]
        lines.extend(f"  {layer}" for layer in self.layers)
        if self.left:
            lines.append(f"not compensated: {len(self.left)}")
            lines.extend(f"  {name}: {why}" for name, why in self.left.items())
        lines.extend(f"undone: {name}: {why}" for name, why in self.undone.items())
        lines.extend(f"poor data: {note}" for note in self.notes)
        return "\n".join(lines)


def compensate(
    model: nn.Module,
    plan: Plan,
    calibration: Iterable[Any] | Batches,
    *,
    original: nn.Module,
    methods: Sequence[str | Compensator] = DEFAULT,
    stages: int | None = None,
    registry: Registry | None = None,
) -> Compensation:
    """Gives a pruned model weights with which its layers put out what they did before the cut, as far as they can.

    Args:
        model: The pruned model; weights and norm statistics are changed in place, shapes stay.
        plan: The plan that led to it.
        calibration: Batches; see `calibrate`.
        original: The model before the cut. It isn't changed.
        methods: Compensators, or their registered names, in order.
        stages: In how many stages layers are compensated, each fitted to what the ones before it left. A stage goes on
            in both models where the last one ended, as far as there is room for what that takes; else it runs all
            batches from the start. None: one for each layer, but at most 12.
        registry: Where compensators are found; None for the default registry.

    Returns:
        What was done, and what was left alone and why.

    Raises:
        ArgumentError: An argument is wrong, or a batch doesn't fit. The model is untouched.
        PlanError: The plan doesn't lead from the original to the model.
    """
    registry = registry or default_registry()
    target, source = check_recordable(model), check_recordable(original)
    shapes = {cut.parameter: cut.shape for cut in plan.parameters}
    known = named_tensors(source)
    for name, shape in shapes.items():
        if name not in known or tuple(known[name].shape) != shape:
            raise PlanError("The plan was made for another model.", where=name, hint="pass the model before the cut")
    given = Batches.of(calibration)
    analysed = functools.cache(lambda: _analysed(source, given, registry))
    repair = run_compensation(
        Watched(source, registry),
        copy_of_model(target),
        plan,
        given,
        methods,
        stages,
        registry,
        takeovers=takeovers_of(analysed(), plan) if plan.absent else ((), {}),
        analyse=lambda: analysed().analysis,
    )
    write(repair, target)
    return repair.result


def _analysed(original: nn.Module, batches: Batches, registry: Registry) -> Graph:
    """Records the original with the first batch."""
    example = next(iter(batches.read(Watched(original, registry).device))).example

    def run(model: nn.Module, inputs: Any) -> Any:
        return example.runner(model, *inputs)

    return Graph.of(original, (example.args, example.kwargs), forward_fn=run, registry=registry)


def takeovers_of(graph: Graph, plan: Plan) -> Takeovers:
    """Finds what takes over the branches that a plan removes.

    Args:
        graph: The analysed model that the plan was made for.
        plan: The plan.
    """
    if not plan.absent:
        return (), {}
    return find_takeovers(graph.branch_analysis, graph.branches(), plan.absent, graph.registry.op_rules)


def copy_of_model(model: nn.Module) -> nn.Module:
    """Makes a copy whose parameters share the model's storage."""
    return Shadow(model, fake=False).module


@attrs.frozen(eq=False)
class Repaired:
    """A compensated copy.

    Attributes:
        values: New values of parameters and buffers by name.
        result: What was done.
        on_disk: Whether the model is on the meta device; the names are those of its checkpoint then.
    """

    values: Mapping[str, torch.Tensor]
    result: Compensation
    on_disk: bool


def run_compensation(
    original: Watched,
    model_copy: nn.Module,
    plan: Plan,
    batches: Batches,
    methods: Sequence[str | Compensator],
    stages: int | None,
    registry: Registry,
    scratch: Scratch | None = None,
    takeovers: Takeovers = ((), {}),
    *,
    analyse: Callable[[], Analysis],
) -> Repaired:
    """Compensates a copy of the pruned model; see `compensate`."""
    if stages is not None and (not isinstance(stages, int) or stages < 1):
        raise ArgumentError("stages must be a positive integer.", why=f"got {stages!r}")
    chosen = find_compensators(methods, registry)
    taking, left = takeovers
    repair = Repair(
        original,
        model_copy,
        plan,
        batches,
        registry,
        stages=stages,
        scratch=scratch,
        takeovers=taking,
        left=left,
        analyse=analyse,
    )
    before = after = repair.output_error()
    # what these hold is the models' own memory; models on the meta device have none
    memory = {**original.shadow.tensors(), **named_tensors(model_copy)} if scratch is None else {}
    known = True  # whether that is the error as it is now
    for name, compensator in chosen:
        blame = registry.owners.blame("prunekit_compensators", compensator)
        repair.use(name, blame)
        with _stopped(blame, memory), blame.blamed("A compensator failed."):
            compensator(repair)
        trouble = repair.trouble
        if repair.unproven and not trouble:
            now = repair.output_error()
            trouble = _worse(before, now)
            after, known = (after, known) if trouble else (now, True)
        elif repair.changed and not trouble:
            known = False
        if trouble:
            repair.undo(f"{trouble}; {blame.where}")
    errors = (before, after if known else repair.output_error())
    told = (dict(repair.undone), dict(repair.unsolved))
    result = Compensation(tuple(repair.repairs), dict(repair.left), errors, tuple(repair.notes), *told)
    return Repaired(repair.written if scratch is None else scratch.changes(), result, scratch is not None)


def _stopped(blame: Blame, memory: Mapping[str, torch.Tensor]) -> contextlib.AbstractContextManager[None]:
    """Stops a compensator that writes to the models themselves; those that are built in don't."""
    if blame.built_in:
        return contextlib.nullcontext()
    hint = "give the values to repair.write(name, values)"
    return no_writes(memory, blame, "A compensator changes the model itself.", hint)


def _worse(before: float, now: float) -> str:
    """Says that the outputs are worse than right after the cut; empty if they aren't, or if there were none to compare.

    Args:
        before: Their error right after the cut, relative to their size.
        now: The same now.
    """
    if math.isnan(before) or now <= before * (1 + ROUNDING) + ROUNDING:
        return ""
    return f"it makes the outputs on the calibration data worse than the cut alone (error {before:.3g} -> {now:.3g})"


def find_compensators(
    methods: Sequence[str | Compensator], registry: Registry
) -> list[tuple[str, Callable[[Repair], None]]]:
    """Makes compensators of names.

    Raises:
        ArgumentError: No compensator has that name, or it can't be called.
        PluginError: What is registered under the name raises, or makes nothing that can be called.
    """
    found: list[tuple[str, Compensator]] = []
    for method in (methods,) if isinstance(methods, str) else methods:
        if isinstance(method, str):
            made = registry.make("prunekit_compensators", method)
            if not callable(made):
                registered = registry.named("prunekit_compensators", method)
                blame = registry.owners.blame("prunekit_compensators", registered)
                raise blame.error("A registered compensator makes none.", f"it returned {made!r}")
            found.append((method, made))
        elif callable(method):
            found.append((type(method).__name__, method))
        else:
            raise ArgumentError("A compensator must be callable, or the name of a registered one.", why=f"{method!r}")
    return found


def write(repaired: Repaired, model: nn.Module) -> None:
    """Gives a model what was found for a copy of it: all of it, or nothing after an error."""
    with Transaction() as transaction:
        Application(Plan(), model, None).prepare(transaction, repaired.values)
        transaction.commit()
