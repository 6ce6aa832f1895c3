"""What `prune` was asked for: one value, made once from its keywords."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs
from torch import nn

from prunekit_core.arguments import fields_from
from prunekit_core.check.verification import AUTO
from prunekit_core.choose.candidates import check_ratio
from prunekit_core.choose.criterion import Criterion
from prunekit_core.choose.demands import Demands
from prunekit_core.errors import ArgumentError
from prunekit_core.plans.optimizers import Optimizers
from prunekit_core.plugins.registry import Registry
from prunekit_core.projects.config import Config
from prunekit_plugins.budgets.allocation import Solver
from prunekit_plugins.budgets.budget import Target, check_target
from prunekit_plugins.budgets.curves import Sensitivity
from prunekit_plugins.budgets.inference.latency_table import LatencyTable
from prunekit_plugins.budgets.inference.workload import Workload
from prunekit_plugins.calibration.batches import Batches
from prunekit_plugins.classic.settings import PrunerSettings
from prunekit_plugins.compensation.repair import Compensator
from prunekit_plugins.depth.settings import BOTH, DEPTH, DepthSettings
from prunekit_plugins.prune.serving import read_served

CALIBRATED_EXPERTS = "rerouting"
"""The criterion for experts with calibration data."""

UNRECORDED = (
    "demands",
    "model",
    "options",
    "registry",
    "calibration",
    "compensation",
    "reestimate_batchnorm",
    "stages",
    "verify",
)
"""Keywords that the protocol of a result doesn't list among the arguments."""

RATIOS = ("pruning_ratio_dict", "head_pruning_ratio", "head_pruning_ratio_dict", "expert_pruning_ratio")
"""Keywords with ratios of units that hold whatever the other ones say."""

READ = ("ignored_layers", "branches")
"""Keywords that may be given as anything that can be iterated over."""

COMPENSATION = ("merge_experts", "least_squares")
"""The compensators by default, where there are calibration data."""

DEPTH_KEYWORDS = ("branch_ratio", "branches", "branch_importance", "by", "keep_first", "keep_last", "keep_names")
"""Keywords about branches, which it lists where branches go."""


def _read_workload(given: Any) -> Workload | None:
    return None if given is None else Workload.of(given)


def _read_table(given: Any) -> LatencyTable | None:
    return given if given is None or isinstance(given, LatencyTable) else LatencyTable.load(given)


@attrs.frozen(eq=False)
class PruneSettings:
    """The arguments of `prune`, checked as far as they can be without a model; see there.

    Attributes:
        demands: What follows from a serving profile.
        given: All keywords of the call, those that only its pruner takes among them.
        depth: What is asked for of branches.
    """

    ratio: float | None = None
    target: Target | None = None
    importance: Criterion | str | None = None
    expert_importance: Criterion | str | None = None
    expert_pruning_ratio: float | None = None
    calibration: Iterable[Any] | Batches | None = None
    compensation: Sequence[str | Compensator] | str | None = None
    reestimate_batchnorm: bool = True
    stages: int | None = None
    global_pruning: bool = False
    allocation: str | Solver | None = None
    sensitivity: Sensitivity | None = None
    forward_fn: Callable[[nn.Module, Any], Any] | None = None
    optimizer: Optimizers | None = None
    verify: str = AUTO
    workload: Workload | None = attrs.field(default=None, converter=_read_workload)
    latency_table: LatencyTable | None = attrs.field(default=None, converter=_read_table)
    demands: Demands = attrs.field(factory=lambda: Demands(""))
    given: Mapping[str, Any] = attrs.field(factory=dict)
    depth: DepthSettings = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        if self.ratio is not None and self.target is not None:
            raise ArgumentError("Give a ratio or a target, not both.")
        if self.ratio is not None:
            check_ratio(self.ratio, "ratio")
        if self.latency_table is not None and "latency" not in (self.target or {}):
            raise ArgumentError("A table of latencies is for a target on latency.", hint='target={"latency": "20ms"}')
        object.__setattr__(self, "depth", DepthSettings.of(self.given))
        shared = self.allocation is not None or self.sensitivity is not None
        if shared and self.depth.requested and self.depth.by != BOTH:
            raise ArgumentError("An allocation is about units, and branches are to go.", hint="leave it out")
        if self.importance is not None and not self.widths and self.depth.requested:
            raise ArgumentError(
                "importance ranks units, and none are to go.",
                hint="branch_importance ranks branches; ratio=0.5 removes units as well",
            )

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> PruneSettings:
        """Makes the settings from keywords, by name; raises `ArgumentError` where one is wrong."""
        # what can be read once is read here: several ask
        read = {name: list(given[name]) for name in READ if isinstance(given.get(name), Iterator)}
        given = {**given, **read}
        if given.get("by") == BOTH and given.get("serve") is None:
            given = {"prune_num_heads": True, **given}  # one knapsack over all that may go, unless the call says no
        return cls(**fields_from(cls, given), given=given)

    @property
    def criterion(self) -> Criterion | str:
        """The criterion, or its registered name."""
        return self.importance or ("magnitude" if self.calibration is None else "calibrated")

    @property
    def expert_criterion(self) -> Criterion | str | None:
        """The criterion for experts, or its registered name; None where experts stay, or are scored like all units."""
        if self.expert_importance is not None or self.calibration is None:
            return self.expert_importance
        stated = self.expert_pruning_ratio
        by_units = self.target is not None and self.depth.by != DEPTH
        return CALIBRATED_EXPERTS if stated or (stated is None and by_units) else None

    @property
    def methods(self) -> Sequence[str | Compensator]:
        """The compensators or their names, in order."""
        return [self.compensation] if isinstance(self.compensation, str) else list(self.compensation or ())

    def without_data(self, config: Config) -> tuple[str, ...]:
        """Finds what asks for calibration data in a call without them.

        Args:
            config: The settings of the project.

        Returns:
            Lines for the report on settings of the project, which may hold for other calls.

        Raises:
            ArgumentError: The call itself asks for something that takes such data.
        """
        wanted: dict[str, object] = {} if self.compensation == COMPENSATION else {"compensation": self.methods}
        wanted["stages"] = self.stages
        unused = [name for name, value in wanted.items() if value]
        asked = next((name for name in unused if config.option(name) != self.given.get(name)), None)
        if asked is not None:
            raise ArgumentError(
                f"{asked} needs calibration data.",
                why="the weights that stay are fitted to what the model computes on them",
                hint=f"give calibration=batches, or leave {asked} out",
            )
        return (f"without calibration data nothing is compensated: {', '.join(unused)} did nothing",) if unused else ()

    @property
    def width_ratio(self) -> float:
        """The fraction of the units of every group to remove: none by default where branches alone are spoken of."""
        default = 0.0 if self.depth.spares_units else 0.5
        return default if self.ratio is None else self.ratio

    @property
    def widths(self) -> bool:
        """Whether units may go."""
        return bool(self.width_ratio) or any(self.given.get(name) for name in RATIOS)

    def check_names(self, registry: Registry) -> None:
        """Raises `ArgumentError` for names of compensators, profiles and costs that there aren't."""
        for name in self.methods:
            if isinstance(name, str):
                registry.named("prunekit_compensators", name)
        if self.given.get("serve") is not None:
            read_served(self.given["serve"], registry)
        if self.target is not None:
            check_target(self.target, registry)

    def pruner(self, example_inputs: Any, *, ranks: bool) -> PrunerSettings:
        """Returns what the pruner is asked for.

        Args:
            example_inputs: What the model is called with; the calls of a workload are made of it.
            ranks: Whether all units are ranked together.

        Raises:
            ArgumentError: The workload can't be made of these inputs.
        """
        counted: dict[str, Any] = {}
        if self.workload is not None:
            ways = self.given.get("forward_fn"), self.given.get("output_transform")
            counted["more_inputs"] = self.workload.examples(example_inputs, *ways)
        own = {
            "importance": self.criterion,
            "expert_importance": self.expert_criterion,
            "global_pruning": ranks,
            "pruning_ratio": self.width_ratio,
        }
        return PrunerSettings.of({**self.given, **own, **counted})

    def recorded(self, allocation: str | Solver | None, *, experts: bool) -> dict[str, Any]:
        """Returns the arguments that the protocol lists.

        Args:
            allocation: The allocation that was taken.
            experts: Whether the model has experts that may leave.
        """
        made = {
            "ratio": None if self.target is not None else self.width_ratio,
            "importance": self.criterion,
            "expert_importance": self.expert_criterion,
            "ignored_layers": [*(self.given.get("ignored_layers") or ()), *self.demands.layers] or None,
            "allocation": allocation,
            "sensitivity": self.sensitivity and self.sensitivity.metric,
            "optimizer": self.optimizer and type(self.optimizer),
            "latency_table": self.latency_table and dict(self.latency_table.machine),
        }
        hidden = (*(() if self.depth.requested else DEPTH_KEYWORDS), *(() if experts else ("expert_importance",)))
        hidden = (*hidden, *(name for name in ("serve", "workload", "latency_table") if not self.given.get(name)))
        return {name: value for name, value in {**self.given, **made}.items() if name not in (*UNRECORDED, *hidden)}
