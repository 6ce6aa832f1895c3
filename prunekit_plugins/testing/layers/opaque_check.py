"""Proving what a layer type declares about a module that isn't looked into."""

from __future__ import annotations

import copy
from collections.abc import Sequence
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
        AssertionError: They differ in structure, shapes, dtypes or devices.
    """
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
