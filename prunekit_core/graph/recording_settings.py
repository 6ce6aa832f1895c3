"""How a model is recorded: one value, made once from the arguments of whoever asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
from torch import nn

from prunekit_core.check.replacements import check_replacements
from prunekit_core.groups.analysis import Analysis, analyse
from prunekit_core.modules.exclusive import shared
from prunekit_core.plugins.registry import Registry
from prunekit_core.program.examples import example_of
from prunekit_core.program.outputs import check_patterns


@attrs.frozen(eq=False)
class RecordingSettings:
    """The arguments of `Graph.of` but the model, its example inputs and the registry; see there.

    Raises:
        ArgumentError: ``free_outputs`` are no patterns.
    """

    more_inputs: tuple[Any, ...] = attrs.field(default=(), converter=tuple)
    forward_fn: Callable[[nn.Module, Any], Any] | None = None
    output_transform: Callable[[Any], Any] | None = None
    modes: Sequence[bool | None] = (False, True)
    free_outputs: tuple[str, ...] = attrs.field(default=(), converter=check_patterns)
    momentum_copies: Mapping[str, str] | None = None

    def analysis(self, model: nn.Module, example_inputs: Any, registry: Registry) -> Analysis:
        """Records a model, as `check_recordable` returned it, and finds its groups; see `Graph.of`.

        Raises:
            PluginError: A layer type says something wrong, or a replacement computes something else than its module.
        """
        runs = (example_inputs, *self.more_inputs)
        examples = [example_of(inputs, self.forward_fn, self.output_transform) for inputs in runs]
        examples = [attrs.evolve(example, free_outputs=self.free_outputs) for example in examples]
        with shared(model):
            found = analyse(model, examples, registry, modes=self.modes, declared_copies=self.momentum_copies)
            doubts = check_replacements(model, found, registry)
        return attrs.evolve(found, notes=(*found.notes, *doubts)) if doubts else found
