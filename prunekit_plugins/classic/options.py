"""Keyword arguments that functions hand on to a pruner, for type checkers (PEP 692): a misspelt one is an error."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypedDict

from torch import nn

from prunekit_core.choose.criterion import Criterion
from prunekit_core.choose.schedule import Schedule
from prunekit_core.choose.settings import Ratios
from prunekit_core.modules.tree import Layer
from prunekit_core.plugins.registry import Registry
from prunekit_plugins.budgets.budget import Target
from prunekit_plugins.calibration.batches import Batches
from prunekit_plugins.classic.custom_layers import CustomizedPruner
from prunekit_plugins.classic.unwrapped import Unwrapped


class FormerNames(TypedDict, total=False):
    """Arguments of `BasePruner` under the names that they had in Torch-Pruning; they are taken with a warning."""

    ch_sparsity: float
    ch_sparsity_dict: Ratios
    channel_groups: Mapping[nn.Module, int]


class FurtherOptions(TypedDict, total=False):
    """Arguments of `BasePruner` that `prune` takes as well, besides those in its own signature."""

    isomorphic: bool
    uniform: bool
    in_channel_groups: Mapping[nn.Module, int] | None
    out_channel_groups: Mapping[nn.Module, int] | None
    num_heads: Mapping[nn.Module, int] | None
    prune_num_heads: bool
    prune_head_dims: bool
    head_pruning_ratio: float | None
    head_pruning_ratio_dict: Ratios | None
    expert_pruning_ratio: float | None
    customized_pruners: Mapping[Any, CustomizedPruner] | None
    unwrapped_parameters: Unwrapped | None
    root_module_types: Sequence[type[nn.Module]] | None
    output_transform: Callable[[Any], Any] | None
    free_outputs: Sequence[str]
    momentum_copies: Mapping[str, str] | None
    modes: Sequence[bool | None]
    weights: str | os.PathLike[str] | None


class StepOptions(FurtherOptions, total=False):
    """Arguments of `BasePruner` about units, but the model, its inputs, the criterion and the registry."""

    global_pruning: bool
    pruning_ratio: float | None
    pruning_ratio_dict: Ratios | None
    expert_importance: Criterion | str | None
    max_pruning_ratio: float
    iterative_steps: int
    iterative_pruning_ratio_scheduler: Schedule | str
    ignored_layers: Sequence[Layer] | None
    round_to: int | None
    align: str | None
    forward_fn: Callable[[nn.Module, Any], Any] | None


class BranchOptions(TypedDict, total=False):
    """Arguments of `BasePruner` about branches."""

    branch_ratio: float | None
    branches: Iterable[str] | None
    branch_importance: Criterion | str | None
    keep_first: int
    keep_last: int
    keep_names: bool
    target: Target | None
    by: str
    calibration: Iterable[Any] | Batches | None


class PrunerOptions(StepOptions, BranchOptions, total=False):
    """All arguments of `BasePruner` but the model, its inputs and the criterion."""

    registry: Registry | None
