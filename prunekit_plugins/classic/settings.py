"""What `BasePruner` was asked for: one value, made once from its arguments or from those that `prune` hands on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs
from torch import nn

from prunekit_core.arguments import fields_from
from prunekit_core.choose.settings import CheckedSettings, Settings
from prunekit_core.errors import ArgumentError
from prunekit_core.graph.graph import Graph
from prunekit_core.graph.recording_settings import RecordingSettings
from prunekit_core.plugins.registry import Registry, default_registry
from prunekit_core.record.recorder import check_recordable
from prunekit_plugins.calibration.batches import Batches
from prunekit_plugins.classic.custom_layers import CustomizedPruner
from prunekit_plugins.classic.declarations import channel_blocks, check_heads
from prunekit_plugins.classic.graph import DependencyGraph
from prunekit_plugins.classic.unwrapped import Unwrapped
from prunekit_plugins.depth.settings import BOTH, WIDTH, DepthSettings
from prunekit_plugins.depth.steps import DepthSteps

_READ = ("ignored_layers", "branches")
"""Keywords that may be given as anything that can be iterated over, and that several ask for."""


@attrs.frozen(eq=False)
class PrunerSettings:
    """The arguments of `BasePruner` but the model, its example inputs and the registry; see there.

    Attributes:
        pruning: What every pruner is asked for.
        recording: How the model is recorded.
        calibration: Batches of data that score branches.
        depth: What is asked for of branches.
    """

    pruning: Settings
    recording: RecordingSettings
    in_channel_groups: Mapping[nn.Module, int] | None = None
    out_channel_groups: Mapping[nn.Module, int] | None = None
    num_heads: Mapping[nn.Module, int] | None = None
    customized_pruners: Mapping[Any, CustomizedPruner] | None = None
    unwrapped_parameters: Unwrapped | None = None
    weights: str | os.PathLike[str] | None = None
    calibration: Iterable[Any] | Batches | None = None
    depth: DepthSettings = attrs.field(factory=DepthSettings)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> PrunerSettings:
        """Makes the settings from keywords, by name; what isn't meant for a pruner is left out."""
        pruning = Settings(**fields_from(Settings, given))
        recording = RecordingSettings(**fields_from(RecordingSettings, given))
        return cls(pruning, recording, **fields_from(cls, given))

    @classmethod
    def stepwise(cls, given: Mapping[str, Any]) -> PrunerSettings:
        """Makes those of a pruner that takes branches out in steps as well; see `BasePruner`.

        Raises:
            ArgumentError: An argument is wrong.
        """
        read = {name: list(given[name]) for name in _READ if isinstance(given.get(name), Iterator)}
        given = {**given, **read}
        depth = DepthSettings.of(given)
        if depth.by == BOTH or (depth.target is not None and depth.by == WIDTH):
            raise ArgumentError(
                "A pruner meets a target by depth alone.",
                why=f"got target={depth.target!r} and by={depth.by!r}",
                hint="plan_to_target(pruner, target) plans a step by width; prune(target=..., by=...) does all at once",
            )
        if given.get("calibration") is not None and not depth.requested:
            raise ArgumentError(
                "Calibration data of a pruner score branches, and none is to go.",
                hint="branch_ratio=0.25; criteria for units take statistics=calibrate(model, batches)",
            )
        if given.get("calibration") is not None:
            given["calibration"], _ = Batches.of(given["calibration"]).checked(strict=True)
        if given.get("pruning_ratio") is None:
            given["pruning_ratio"] = 0.0 if depth.spares_units else Settings().pruning_ratio
        return cls.of({**given, "depth": depth})

    def _steps(self, graph: Graph, checked: CheckedSettings) -> DepthSteps | None:
        """Makes what decides about branches; None where none is to go."""
        if not self.depth.requested:
            return None
        batches = None if self.calibration is None else Batches.of(self.calibration)
        if batches is not None and batches.forward_fn is None:
            batches = attrs.evolve(batches, forward_fn=self.recording.forward_fn)
        return DepthSteps(graph, self.depth, batches, checked.schedule, checked.settings.iterative_steps)

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
        steps = self._steps(graph, checked)
        return {"graph": graph, "settings": checked, "blocks": blocks, "notes": notes, "branches": steps}
