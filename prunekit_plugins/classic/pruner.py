"""The pruner with all of its arguments: it analyses a model, and checks what is declared about it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from prunekit_core.arguments import check_keywords, forms_checked, keywords_of
from prunekit_core.choose.criterion import Criterion
from prunekit_core.choose.pruner import Pruner
from prunekit_core.choose.schedule import Schedule, linear_scheduler
from prunekit_core.choose.settings import Ratios
from prunekit_core.errors import KeywordError
from prunekit_core.modules.tree import Layer
from prunekit_core.plans.plan import Plan
from prunekit_core.plugins.registry import Registry
from prunekit_plugins.budgets.budget import Target
from prunekit_plugins.calibration.batches import Batches
from prunekit_plugins.classic.custom_layers import CustomizedPruner
from prunekit_plugins.classic.graph import DependencyGraph, history_of, load_history
from prunekit_plugins.classic.history import Removal
from prunekit_plugins.classic.settings import PrunerSettings
from prunekit_plugins.classic.unwrapped import Unwrapped
from prunekit_plugins.depth.settings import WIDTH

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from prunekit_plugins.classic.options import FormerNames

_RENAMED = {
    "ch_sparsity": ("pruning_ratio",),
    "ch_sparsity_dict": ("pruning_ratio_dict",),
    "channel_groups": ("in_channel_groups", "out_channel_groups"),
}


class BasePruner(Pruner):
    """Prunes a model step by step, in place.

    Args:
        model: The model.
        example_inputs: A tensor, a tuple or list of positional inputs, or a dict of keyword inputs.
        importance: A criterion: a callable on a `Group`, or its registered name.
        global_pruning: False: every group loses the same fraction of its units. True: all units are ranked together.
        pruning_ratio: Fraction of units to remove, in [0, 1). Not a fraction of parameters: removing ``r`` of all
            channels leaves about ``(1 - r)^2`` of the weights. None: half, or none where
            ``branch_ratio`` or ``branches`` is given, or a target is met by depth.
        pruning_ratio_dict: Ratios for single layers (modules, names or types; containers mean what they contain). A
            tuple of layers is a scope of its own, ranked together.
        max_pruning_ratio: Largest fraction that any group loses, over all steps.
        iterative_steps: In how many steps the ratios are reached.
        iterative_pruning_ratio_scheduler: ``(ratio, steps) -> steps + 1`` cumulative ratios, or a registered name.
        ignored_layers: Layers (modules, names or types) whose outputs are left alone.
        round_to: Sizes are kept at multiples of this; numbers of heads are not.
        align: ``"auto"`` finds out the multiple that suits the device and dtype of the model.
        isomorphic: With ``global_pruning``: units are ranked only with those of groups of the same structure (Fang et
            al., Isomorphic Pruning, ECCV 2024).
        uniform: Groups of the same structure at sibling layers keep the same number of units, so that one number in a
            configuration can say it; so do head dims, and heads, of attention modules of one class.
        in_channel_groups: Layer to a number of groups that its input channels form; the same channels leave all.
        out_channel_groups: The same for output channels.
        num_heads: Layer to its number of attention heads. Heads are found without it; a wrong number is an error.
        prune_num_heads: Whether whole heads are removed (see ``head_pruning_ratio``). In grouped-query attention these
            are key-value heads with their queries.
        prune_head_dims: Whether the dims within heads are removed, in all heads alike.
        head_pruning_ratio: Fraction of heads to remove, in [0, 1), whatever a target asks for; None for the ratio that
            other units have: ``pruning_ratio``, or what reaches the target.
        head_pruning_ratio_dict: Like ``pruning_ratio_dict``, for heads.
        expert_pruning_ratio: Fraction of the experts of each mixture to remove, in [0, 1), whatever a target asks for.
            As many as a token is sent to stay. None leaves them whole, or with an ``expert_importance`` takes the ratio
            that other units have.
        expert_importance: A criterion for experts, or its registered name; None for the one for all units.
        customized_pruners, unwrapped_parameters: See `DependencyGraph.build_dependency`.
        branch_ratio, branches, branch_importance, keep_first, keep_last, keep_names: See `prunekit.prune`. A ratio
            grows along the schedule; of ``branches`` so many go as it says, in the order in which they are named.
        target, by: With ``by="depth"`` branches meet the target; the schedule says which part of the saving each step
            makes. To meet a target by units there is `plan_to_target`.
        calibration: Batches of data that score branches, run through the model as it is at each step; see `calibrate`.
        free_outputs, momentum_copies: See `Graph.of`.
        root_module_types: Only groups with a producer of one of these types lose units; None for all.
        forward_fn: Called as ``forward_fn(model, example_inputs)`` instead of the model.
        output_transform: Called on the outputs; tensors in its result count as outputs.
        modes: Training flags to record in.
        weights: A checkpoint on disk with the weights of a model on the meta device, for criteria that read them: a
            safetensors file or a folder. One parameter at a time is in memory.
        registry: Where criteria, rules and layer types are found; None for the default registry.
        renamed: ``ch_sparsity``, ``ch_sparsity_dict`` and ``channel_groups``: former names, taken with a warning.

    Raises:
        ArgumentError: An argument is wrong; nothing was traced (but for ``num_heads`` and channel groups, which are
            compared with what was found).
        UnsupportedModelError, RecordingError: The model can't be analysed.
    """

    @forms_checked
    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        importance: Criterion | str = "magnitude",
        *,
        global_pruning: bool = False,
        pruning_ratio: float | None = None,
        pruning_ratio_dict: Ratios | None = None,
        max_pruning_ratio: float = 1.0,
        iterative_steps: int = 1,
        iterative_pruning_ratio_scheduler: Schedule | str = linear_scheduler,
        ignored_layers: Sequence[Layer] | None = None,
        round_to: int | None = None,
        align: str | None = None,
        isomorphic: bool = False,
        uniform: bool = False,
        in_channel_groups: Mapping[nn.Module, int] | None = None,
        out_channel_groups: Mapping[nn.Module, int] | None = None,
        num_heads: Mapping[nn.Module, int] | None = None,
        prune_num_heads: bool = False,
        prune_head_dims: bool = True,
        head_pruning_ratio: float | None = None,
        head_pruning_ratio_dict: Ratios | None = None,
        branch_ratio: float | None = None,
        branches: Iterable[str] | None = None,
        branch_importance: Criterion | str | None = None,
        keep_first: int = 0,
        keep_last: int = 0,
        keep_names: bool = False,
        target: Target | None = None,
        by: str = WIDTH,
        calibration: Iterable[Any] | Batches | None = None,
        expert_pruning_ratio: float | None = None,
        expert_importance: Criterion | str | None = None,
        customized_pruners: Mapping[Any, CustomizedPruner] | None = None,
        unwrapped_parameters: Unwrapped | None = None,
        root_module_types: Sequence[type[nn.Module]] | None = None,
        forward_fn: Callable[[nn.Module, Any], Any] | None = None,
        output_transform: Callable[[Any], Any] | None = None,
        free_outputs: Sequence[str] = (),
        momentum_copies: Mapping[str, str] | None = None,
        modes: Sequence[bool | None] = (False, True),
        weights: str | os.PathLike[str] | None = None,
        registry: Registry | None = None,
        **renamed: Unpack[FormerNames],
    ) -> None:
        settings = PrunerSettings.stepwise({**locals(), **_renamed(renamed)})
        super().__init__(**settings.analysed(model, example_inputs, self.make_graph(registry), registry))

    def make_graph(self, registry: Registry | None) -> DependencyGraph:
        """Makes the empty graph that the constructor builds; a subclass may return one of another class."""
        return DependencyGraph(registry)

    def pruning_history(self) -> list[Removal]:
        """Lists what was removed so far; see `DependencyGraph.pruning_history`."""
        return history_of(self.graph)

    def load_pruning_history(self, history: Sequence[Sequence[Any]]) -> Plan:
        """Removes what a history lists; see `DependencyGraph.load_pruning_history`."""
        return load_history(self.graph, history)


def _renamed(given: Mapping[str, Any]) -> dict[str, Any]:
    """Takes arguments under former names, with a warning."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name in _OF_PRUNE:
            raise KeywordError(
                f"BasePruner has no argument called {name!r}.",
                why="weights aren't compensated in steps: they are trained in between",
                hint=f"prune(..., calibration=batches, {name}=...) cuts once and compensates; "
                "compensate(model, plan, batches, original=...) does after a step",
            )
        check_keywords([name], (*_RENAMED, *_ARGUMENTS), "BasePruner")
        new = " and ".join(_RENAMED[name])
        warnings.warn(f"{name} was renamed: use {new}.", DeprecationWarning, stacklevel=3)
        found.update(dict.fromkeys(_RENAMED[name], value))
    return found


_OF_PRUNE = ("compensation", "stages", "reestimate_batchnorm")
"""Keywords of `prune` that compensate."""
_ARGUMENTS = keywords_of(BasePruner)
