"""Proving what a layer type declares about a module that isn't looked into."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from prunekit_core.groups.analysis import Analysis
from prunekit_core.plugins.blame import site_of
from prunekit_core.plugins.layers import LayerType
from prunekit_core.plugins.opaque import UNSAID, Opaque
from prunekit_core.torch_private.trees import pytree


def check_opaque(module: nn.Module, declared: Opaque, inputs: Sequence[torch.Tensor]) -> None:
    """Compares the outputs that are declared for a module with those that it returns, in eval and train mode.

    Raises:
        AssertionError: They differ in structure, shapes, dtypes or devices; or what is declared to be added, with what
            it is added to, isn't what the module returns.
    """
    if declared.added is not None:
        _check_added(module, declared.added, inputs)
    if declared.fake is None:
        return
    for training in (False, True):
        layer = copy.deepcopy(module).train(training)
        with torch.no_grad():
            real, fake = layer(*inputs), declared.fake(layer, *inputs)
        leaves, form = pytree.tree_flatten(real)
        declared_leaves, declared_form = pytree.tree_flatten(fake)
        assert form == declared_form, f"`fake` returns {_form(fake)}, the layer returns {_form(real)}"
        for found, expected in zip(declared_leaves, leaves, strict=True):
            if isinstance(expected, torch.Tensor):
                assert _form(found) == _form(expected), f"`fake` returns {_form(found)}, the layer {_form(expected)}"


def _check_added(module: nn.Module, added: Callable[..., Any], inputs: Sequence[torch.Tensor]) -> None:
    """Compares a module's output with its first argument and what is declared to be added to that."""
    for training in (False, True):
        layer = copy.deepcopy(module).train(training)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            state = torch.get_rng_state()
            real = layer(*inputs)
            torch.set_rng_state(state)
            branch = added(copy.deepcopy(module).train(training), *inputs)
        assert isinstance(real, torch.Tensor), f"a layer with `added` returns one tensor, not {_form(real)}"
        assert isinstance(branch, torch.Tensor), f"`added` returns {_form(branch)}, not a tensor"
        assert branch.shape == inputs[0].shape == real.shape, f"`added` returns {_form(branch)}, not like {_form(real)}"
        try:
            torch.testing.assert_close(inputs[0] + branch, real)
        except AssertionError as error:
            raise AssertionError(
                f"what `added` returns, added to the first argument, isn't the output: {error}"
            ) from None


def _form(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor {tuple(value.shape)} of {value.dtype} on {value.device}"
    return f"{type(value).__name__} of {', '.join(map(_form, pytree.tree_leaves(value)))}"


def check_spoken(analysis: Analysis, path: str, kind: LayerType) -> None:
    """Checks that the rule of an opaque layer could be followed, and speaks of every dim of the layer's parameters.

    Raises:
        AssertionError: It raises, contradicts the shapes, or is silent about a dim, which is pinned for that.
    """
    assert kind.opaque is not None
    where = f"{kind.name}, whose rule is in {site_of(kind.opaque.rule.ties)}"
    for gap in analysis.not_understood:
        assert gap.module != path, f"{where}: {gap.why}"
    for parameter, layout in analysis.parameters.items():
        for dim, reason in enumerate(layout.reasons):
            if parameter.startswith(f"{path}.") and reason is not None and reason.text == UNSAID:
                raise AssertionError(
                    f"{where}: it says nothing about {parameter.removeprefix(path + '.')}[{dim}]: tie it, give it a "
                    "role, or pin it with call.pin"
                )
