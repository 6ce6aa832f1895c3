"""Replacements held against the modules that they stand in for, on the values of the example inputs.

The analysis records what a replacement does, so that a wrong one leads to a cut of another program. Each is therefore
run beside the user's own module, on what that reads in a forward pass, before anything is cut.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import nn

from prunekit_core.check.exactness import TOLERANCES, difference
from prunekit_core.check.masked_run import run_copy
from prunekit_core.errors import PrunekitError
from prunekit_core.groups.analysis import Analysis
from prunekit_core.modules.tree import named_tensors
from prunekit_core.plugins.blame import Blame
from prunekit_core.plugins.layers import Replacement
from prunekit_core.plugins.registry import Registry
from prunekit_core.plugins.stand_ins import HEADLINE, blame_of, stand_in
from prunekit_core.program.calls import tensors_of
from prunekit_core.record.listener import Listener
from prunekit_core.torch_private.trees import pytree

ROUNDING = 100
"""How much larger the errors of another order of sums may be than those that `check_exact` allows a whole model."""


def check_replacements(model: nn.Module, analysis: Analysis, registry: Registry) -> list[str]:
    """Compares the replacements that the analysis put in with the modules of the model, on the first example.

    Those that are built in have tests of their own, and cost no forward pass here.

    Args:
        model: The model; it isn't touched.
        analysis: The model as analysed.
        registry: Where replacements are found.

    Returns:
        Lines for the report about what couldn't be compared.

    Raises:
        PluginError: A replacement raises, or returns other numbers than the module.
    """
    comparisons = [
        found
        for path, name in analysis.swaps
        if not (found := _Comparison.of(path, registry.named("prunekit_replacements", name), registry)).blame.built_in
    ]
    if not comparisons:
        return []
    recording = analysis.recordings[0]
    given = pytree.tree_leaves((recording.example.args, recording.example.kwargs))
    why = "the model or its inputs have no values (meta device)"
    if not any(isinstance(leaf, torch.Tensor) and leaf.is_meta for leaf in [*given, *named_tensors(model).values()]):
        why = _run(model, analysis, registry, comparisons)
    return [note for comparison in comparisons if (note := comparison.note(why))]


def _run(model: nn.Module, analysis: Analysis, registry: Registry, comparisons: list[_Comparison]) -> str:
    """Runs a copy of the model with its own modules, each compared when it is called; returns why it didn't run."""
    recording = analysis.recordings[0]

    def prepare(module_copy: nn.Module) -> None:
        for comparison in comparisons:
            comparison.attach(module_copy.get_submodule(comparison.path), registry)

    try:
        run_copy(model, analysis, registry, recording.example, Listener(), recording.training, prepare=prepare)
    except PrunekitError:
        raise
    except Exception as error:  # whatever the model raises on values, although it was recorded without
        return f"the model raised {type(error).__name__}: {error}"
    return "the forward pass reads the module without calling it"


@attrs.define(eq=False)
class _Comparison:
    """One module beside its replacement.

    Attributes:
        path: Dotted path of the module.
        replacement: The replacement.
        blame: Whose it is.
        seen: Whether they were compared.
        random: Whether the module itself returns other numbers each time.
    """

    path: str
    replacement: Replacement
    blame: Blame
    seen: bool = False
    random: bool = False

    @classmethod
    def of(cls, path: str, replacement: Replacement, registry: Registry) -> _Comparison:
        return cls(path, replacement, blame_of(replacement, registry))

    def note(self, why: str) -> str:
        """Says why nothing was compared; empty if something was."""
        if self.seen:
            return ""
        why = "the module returns other numbers each time" if self.random else why
        return f"the {self.blame.where} was not compared with {self.path}: {why}"

    def attach(self, module: nn.Module, registry: Registry) -> None:
        """Makes a module of a copy run its replacement as well when it is called first."""
        converted = stand_in(registry, self.replacement, module, self.path)
        if converted is None:
            return
        converted.train(module.training)
        forward = module.forward

        def compared(*args: Any, **kwargs: Any) -> Any:
            if self.seen or self.random:
                return forward(*args, **kwargs)
            again = _copied((args, kwargs)), _copied((args, kwargs))
            outputs = forward(*args, **kwargs)
            self._compare(outputs, converted, forward, *again)
            return outputs

        vars(module)["forward"] = compared

    def _compare(
        self, outputs: Any, converted: nn.Module, forward: Callable[..., Any], first: Any, second: Any
    ) -> None:
        expected = tensors_of(_copied(outputs))
        with self.blame.blamed(HEADLINE, self.path):
            found = tensors_of(converted(*first[0], **first[1]))
        wrong = _difference(expected, found)
        if wrong and _difference(expected, tensors_of(forward(*second[0], **second[1]))):
            self.random = True
        elif wrong:
            raise self.blame.error(
                "A replacement computes something else than the module that it replaces.",
                wrong,
                at=self.path,
                hint="it must return the same numbers around the same parameters",
            )
        else:
            self.seen = True


def _copied(values: Any) -> Any:
    return pytree.tree_map_only(torch.Tensor, torch.Tensor.clone, values)


def _difference(expected: list[torch.Tensor], found: list[torch.Tensor]) -> str:
    """Says how two lists of outputs differ; empty if they agree."""
    if len(expected) != len(found):
        return f"it returns {len(found)} tensors, the module {len(expected)}"
    for position, (a, b) in enumerate(zip(expected, found, strict=True)):
        if a.shape != b.shape:
            return f"output {position} has shape {tuple(b.shape)}, that of the module {tuple(a.shape)}"
        error, allowed = difference(a, b), min(ROUNDING * TOLERANCES.get(a.dtype, 0.0), 0.1)
        if not error <= allowed:
            return f"output {position} differs: relative error {error:.2e} on the example inputs, allowed {allowed:.0e}"
    return ""
