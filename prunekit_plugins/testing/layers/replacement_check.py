"""Proving a replacement: it computes what the module computes, around the same parameters, and can be pruned."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from prunekit_core.graph.graph import Graph
from prunekit_core.plugins.hookspecs import hookimpl
from prunekit_core.plugins.layers import Replacement
from prunekit_core.plugins.registry import Registry, default_registry
from prunekit_core.program.calls import tensors_of
from prunekit_plugins.testing.failure import failing, require, require_tensors
from prunekit_plugins.testing.layers.claims import READER, in_layer
from prunekit_plugins.testing.layers.layer_check import bench_of, check_group
from prunekit_plugins.testing.state import State

HOOK = "prunekit_replacements"
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}
"""Largest difference of outputs and gradients by dtype, relative to the largest value; 0.05 for others."""


def check_replacement(
    replacement: Replacement,
    module: nn.Module,
    inputs: torch.Tensor | Sequence[torch.Tensor],
    *,
    registry: Registry | None = None,
) -> tuple[str, ...]:
    """Proves a replacement on a module of its class.

    What ``convert`` returns must be another module around the parameter objects of the module, all of them and no
    others, with the same outputs and gradients in eval and in train mode, and the module must stay as it is. Then half
    of the units of every group inside are removed in turn, as `check_layer_type` does; the pruned module must survive
    saving and loading.

    Args:
        replacement: The replacement.
        module: A module of exactly the class that it replaces; it is not touched.
        inputs: What it is called with; several dims of them should be larger than one.
        registry: Where rules are found; None for the default registry. The replacement need not be registered there.

    Returns:
        Names of the groups that were tried.

    Raises:
        AssertionError: One of the above doesn't hold, or ``convert`` raises.
    """
    require(isinstance(replacement, Replacement), "check_replacement", "a Replacement", replacement)
    require(isinstance(module, nn.Module), "check_replacement", "a module", module)
    given = [inputs] if isinstance(inputs, torch.Tensor) else inputs
    require_tensors("check_replacement", given)
    name, own = replacement.name, type(module)
    assert own is replacement.source, (
        f"{name}: it replaces {replacement.source.__name__} and no subclass, and the module is a {own.__name__}"
    )
    bench = bench_of(module, given)
    for training in (False, True):
        _check_converted(replacement, copy.deepcopy(module).train(training), given)
    registry = _with(replacement, module, registry or default_registry())
    like = bench.get_parameter(f"{READER}0")
    scale = torch.full((1,), 1.5, dtype=like.dtype, device=like.device)
    graph = Graph.of(copy.deepcopy(bench), scale, registry=registry)
    groups = [g for g in graph.groups() if g.size > 1 and any(in_layer(m.module) for m in g.members)]
    assert groups, f"{name}: no unit of the replacement can be removed: {graph.report()}"
    for group in groups:
        check_group(bench, scale, group.name, registry)
    return tuple(group.name for group in groups)


def _check_converted(replacement: Replacement, module: nn.Module, inputs: Sequence[torch.Tensor]) -> None:
    """Converts a module in the mode that it is in, and compares the two."""
    name, before = replacement.name, State.of(module)
    with failing(f"{name}: convert", replacement.convert):
        found: Any = replacement.convert(module)
    assert found is not None, f"{name}: convert returns None for {module}, so that there is nothing to prove"
    assert isinstance(found, nn.Module), f"{name}: convert returns {type(found).__name__}, not a module"
    assert found is not module, f"{name}: convert returns the module itself"
    changed = before.changed(module)
    assert not changed, f"{name}: convert changes {changed}"
    found.train(module.training)  # as a swap does
    old, new = ({id(parameter): key for key, parameter in m.named_parameters()} for m in (module, found))
    strange = [key for number, key in new.items() if number not in old]
    lost = [key for number, key in old.items() if number not in new]
    assert not strange, f"{name}: parameters that are no objects of the module: {', '.join(strange)}"
    assert not lost, f"{name}: the replacement lacks the parameters {', '.join(lost)}"
    mode = "train" if module.training else "eval"
    expected, got = _run(module, inputs, name), _run(found, inputs, name)
    assert len(expected[0]) == len(got[0]), (
        f"{name}: in {mode} mode it returns {len(got[0])} tensors, the module {len(expected[0])}"
    )
    for what, one, other in (("outputs", expected[0], got[0]), ("gradients", expected[1], got[1])):
        for wanted, value in zip(one, other, strict=True):
            assert _close(wanted, value), f"{name}: in {mode} mode its {what} are not those of the module"


def _run(
    module: nn.Module, inputs: Sequence[torch.Tensor], name: str
) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
    """Returns the outputs of a module and the gradients of the parameters, by object, for their sum of squares."""
    parameters = sorted((p for p in module.parameters() if p.requires_grad), key=id)
    with torch.random.fork_rng(), failing(f"{name}: calling {type(module).__name__}", module):
        torch.manual_seed(0)
        outputs = tensors_of(module(*inputs))
        loss = torch.stack([output.square().sum() for output in outputs if output.is_floating_point()]).sum()
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True) if parameters else ()
    return [output.detach() for output in outputs], list(gradients)


def _close(first: torch.Tensor | None, second: torch.Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if not first.is_floating_point():
        return torch.equal(first, second)
    largest = float(first.abs().max()) if first.numel() else 0.0
    return torch.allclose(first, second, rtol=0, atol=TOLERANCE.get(first.dtype, 0.05) * largest)


def _with(replacement: Replacement, module: nn.Module, registry: Registry) -> Registry:
    """Returns a registry that uses a replacement for a module."""
    if registry.replacement(module) is replacement:
        return registry
    table = {replacement.name: replacement}
    plugin = SimpleNamespace(hook=hookimpl(lambda: table, specname=HOOK))
    extended = registry.extended({"check_replacement": plugin})
    other = extended.replacement(module)
    assert other is replacement, (
        f"{replacement.name}: {other.name if other else 'nothing'} is used for {type(module).__name__} instead"
    )
    return extended
