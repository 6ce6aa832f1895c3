"""What `BasePruner` was asked for: one value, made once from its arguments or from those that `prune` hands on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import attrs
from torch import nn

from prunekit_core.arguments import fields_from
from prunekit_core.choose.settings import Settings
from prunekit_core.graph.recording_settings import RecordingSettings
from prunekit_core.plugins.registry import Registry, default_registry
from prunekit_core.record.recorder import check_recordable
from prunekit_plugins.classic.custom_layers import CustomizedPruner
from prunekit_plugins.classic.declarations import channel_blocks, check_heads
from prunekit_plugins.classic.graph import DependencyGraph
from prunekit_plugins.classic.unwrapped import Unwrapped


@attrs.frozen(eq=False)
class PrunerSettings:
    """The arguments of `BasePruner` but the model, its example inputs and the registry; see there.

    Attributes:
        pruning: What every pruner is asked for.
        recording: How the model is recorded.
    """

    pruning: Settings
    recording: RecordingSettings
    in_channel_groups: Mapping[nn.Module, int] | None = None
    out_channel_groups: Mapping[nn.Module, int] | None = None
    num_heads: Mapping[nn.Module, int] | None = None
    customized_pruners: Mapping[Any, CustomizedPruner] | None = None
    unwrapped_parameters: Unwrapped | None = None
    weights: str | os.PathLike[str] | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> PrunerSettings:
        """Makes the settings from keywords, by name; what isn't meant for a pruner is left out."""
        pruning = Settings(**fields_from(Settings, given))
        recording = RecordingSettings(**fields_from(RecordingSettings, given))
        return cls(pruning, recording, **fields_from(cls, given))

    def analysed(
        self, model: nn.Module, example_inputs: Any, empty: DependencyGraph, registry: Registry | None
    ) -> dict[str, Any]:
        """Analyses a model in an empty graph and returns the arguments of `Pruner`; raises what `BasePruner` does."""
        checked = self.pruning.checked(check_recordable(model), registry or default_registry())
        graph = empty.build_dependency(
            model,
            example_inputs,
            unwrapped_parameters=self.unwrapped_parameters,
            customized_pruners=self.customized_pruners,
            **attrs.asdict(self.recording, recurse=False),
        )
        if self.weights is not None:
            graph.read_values_from(self.weights)
        blocks = channel_blocks(graph, self.out_channel_groups or {}, self.in_channel_groups or {})
        notes = check_heads(graph, self.num_heads or {})
        return {"graph": graph, "settings": checked, "blocks": blocks, "notes": notes}
