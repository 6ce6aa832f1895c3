"""What a pruner was asked for: one value, made once from the arguments of whoever asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs
from torch import nn

from prunekit_core.arguments import check_forms
from prunekit_core.choose.alignment import multiple_of
from prunekit_core.choose.candidates import Limits, check_ratio
from prunekit_core.choose.criterion import Criterion, criterion_of
from prunekit_core.choose.demands import Demands
from prunekit_core.choose.schedule import Schedule, bound_schedule, check_steps, linear_scheduler
from prunekit_core.errors import ArgumentError
from prunekit_core.modules.tree import Layer, ModelTree
from prunekit_core.plugins.registry import Registry

Ratios = Mapping[Layer | tuple[Layer, ...], float]
"""Ratios of single layers; a tuple of layers is a scope of its own."""


def _ratios(value: Ratios | None) -> Ratios:
    return value or {}


def _listed(value: Any) -> Any:
    """Makes a listing a tuple; what is none stays what it is, to be refused by its form."""
    single = isinstance(value, str | type | nn.Module) or not isinstance(value, Iterable)
    return value if single else tuple(value)


def _layers(value: Iterable[Layer] | None) -> tuple[Layer, ...]:
    found: tuple[Layer, ...] = _listed(value or ())
    return found


def _types(value: Iterable[type[nn.Module]] | None) -> tuple[type[nn.Module], ...] | None:
    found: tuple[type[nn.Module], ...] | None = None if value is None else _listed(value)
    return found


@attrs.frozen(eq=False)
class Settings:
    """The arguments of a pruner, checked as far as they can be without a model.

    Attributes:
        importance: A criterion: a callable on a `Group`, or its registered name.
        global_pruning: False: every group loses the same fraction of its units. True: all units are ranked together.
        pruning_ratio: Fraction of units to remove, in [0, 1).
        pruning_ratio_dict: Ratios for single layers (modules, names or types; containers mean what they contain). A
            tuple of layers is a scope of its own, ranked together.
        max_pruning_ratio: Largest fraction that any group loses, over all steps.
        iterative_steps: In how many steps the ratio is reached.
        iterative_pruning_ratio_scheduler: ``(ratio, steps) -> steps + 1`` cumulative ratios, or a registered name.
        ignored_layers: Layers (modules, names or types) whose outputs are left alone.
        round_to: Sizes are kept at multiples of this; numbers of heads are not.
        align: ``"auto"`` finds out the multiple that suits the device and dtype of the model.
        isomorphic: With ``global_pruning``: units are ranked only with those of groups of the same structure.
        uniform: Groups of the same structure at sibling layers keep the same number of units.
        prune_num_heads: Whether whole heads are removed.
        prune_head_dims: Whether the dims within heads are removed, in all heads alike.
        head_pruning_ratio: Fraction of heads to remove, in [0, 1); None for the ratio that other units have.
        head_pruning_ratio_dict: Like ``pruning_ratio_dict``, for heads.
        expert_pruning_ratio: Fraction of the experts of each layer to remove, in [0, 1). None leaves them whole; with
            an ``expert_importance`` it is the ratio that other units have.
        expert_importance: A criterion for experts, or its registered name; None for the one for all units.
        root_module_types: Only groups with a producer of one of these types lose units; None for all.
        demands: Which of these follow from a serving profile, and the layers that keep their sizes for it.

    Raises:
        ArgumentError: An argument is wrong.
    """

    importance: Criterion | str = "magnitude"
    global_pruning: bool = False
    pruning_ratio: float = 0.5
    pruning_ratio_dict: Ratios = attrs.field(default=None, converter=_ratios)
    max_pruning_ratio: float = 1.0
    iterative_steps: int = 1
    iterative_pruning_ratio_scheduler: Schedule | str = linear_scheduler
    ignored_layers: tuple[Layer, ...] = attrs.field(default=None, converter=_layers)
    round_to: int | None = None
    align: str | None = None
    isomorphic: bool = False
    uniform: bool = False
    prune_num_heads: bool = False
    prune_head_dims: bool = True
    head_pruning_ratio: float | None = None
    head_pruning_ratio_dict: Ratios = attrs.field(default=None, converter=_ratios)
    expert_pruning_ratio: float | None = None
    expert_importance: Criterion | str | None = None
    root_module_types: tuple[type[nn.Module], ...] | None = attrs.field(default=None, converter=_types)
    demands: Demands = attrs.field(factory=lambda: Demands(""))

    def __attrs_post_init__(self) -> None:
        check_forms(attrs.asdict(self, recurse=False))
        check_ratio(self.pruning_ratio, "pruning_ratio")
        check_ratio(self.max_pruning_ratio, "max_pruning_ratio", closed=True)
        check_steps(self.iterative_steps)
        if self.isomorphic and not self.global_pruning:
            raise ArgumentError(
                "isomorphic needs global_pruning=True.",
                why="groups of the same structure are ranked together; local pruning ranks each group by itself",
            )
        for name in ("pruning_ratio_dict", "head_pruning_ratio_dict"):
            for ratio in getattr(self, name).values():
                check_ratio(ratio, f"a ratio in {name}")
        for name in ("head_pruning_ratio", "expert_pruning_ratio"):
            if getattr(self, name) is not None:
                check_ratio(getattr(self, name), name)

    def checked(self, model: nn.Module, registry: Registry) -> CheckedSettings:
        """Looks up everything that the settings name.

        Raises:
            ArgumentError: A criterion, a schedule or a layer isn't there, or nothing is known about alignment.
        """
        criterion = criterion_of(self.importance, registry)
        experts = None if self.expert_importance is None else criterion_of(self.expert_importance, registry)
        multiple, notes = multiple_of(self.round_to, self.align, model)
        schedule = bound_schedule(self.iterative_pruning_ratio_scheduler, self.iterative_steps, registry)
        schedule(self.pruning_ratio)
        tree = ModelTree(model)
        tree.paths_of((*self.ignored_layers, *self.demands.layers))
        for key in (*self.pruning_ratio_dict, *self.head_pruning_ratio_dict):
            tree.paths_of(layers_of(key))
        settings = attrs.evolve(self, importance=criterion, expert_importance=experts)
        return CheckedSettings(settings, criterion, schedule, Limits(self.max_pruning_ratio, multiple), notes, experts)

    def freed(self) -> Settings:
        """Returns what would be asked for without the serving profile."""
        without: dict[str, Any] = {**self.demands.instead, "demands": Demands("")}
        return attrs.evolve(self, **without)

    @property
    def takes_experts(self) -> bool:
        """Whether experts may leave."""
        return self.expert_pruning_ratio is not None or self.expert_importance is not None


@attrs.frozen(eq=False)
class CheckedSettings:
    """Settings after everything that they name was found, for one model.

    Attributes:
        settings: The settings, with the criterion itself in place of a name.
        importance: The criterion.
        schedule: Final ratio to the cumulative ratios of all steps.
        limits: Bounds on what every group keeps.
        notes: Lines for the report: the multiple, where it was found out.
        expert_importance: The criterion for experts; None for the one for all units.
    """

    settings: Settings
    importance: Criterion
    schedule: Callable[[float], list[float]]
    limits: Limits
    notes: Sequence[str]
    expert_importance: Criterion | None = None


def layers_of(key: Any) -> tuple[Layer, ...]:
    """Lists the layers that a key of a mapping of ratios means."""
    return key if isinstance(key, tuple) else (key,)
