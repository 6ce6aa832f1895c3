"""Structural pruning for PyTorch: any model in, a proven smaller one out. ``import prunekit as pk``.

Authors of plugins have `prunekit.plugin` and the kit `prunekit.testing`. Importing this loads neither torch nor a
plugin.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from prunekit_core.door import open_door

if TYPE_CHECKING:
    from prunekit_core import (
        ArgumentError as ArgumentError,
        BusyModelError as BusyModelError,
        CheckpointError as CheckpointError,
        Config as Config,
        ExactCheck as ExactCheck,
        Explanation as Explanation,
        Graph as Graph,
        Group as Group,
        KeywordError as KeywordError,
        Kind as Kind,
        NothingToPruneError as NothingToPruneError,
        Plan as Plan,
        PlanError as PlanError,
        PluginError as PluginError,
        Preview as Preview,
        PrunekitError as PrunekitError,
        RecordingError as RecordingError,
        Registry as Registry,
        RehearsalError as RehearsalError,
        Report as Report,
        Role as Role,
        StorageError as StorageError,
        UnitsError as UnitsError,
        UnsupportedModelError as UnsupportedModelError,
        VerificationError as VerificationError,
        absorb_constants as absorb_constants,
        check_exact as check_exact,
        default_registry as default_registry,
        linear_scheduler as linear_scheduler,
    )
    from prunekit_plugins.budgets import (
        Budget as Budget,
        Sensitivity as Sensitivity,
        plan_to_target as plan_to_target,
    )
    from prunekit_plugins.calibration import Batches as Batches, Statistics as Statistics, calibrate as calibrate
    from prunekit_plugins.checkpoints import (
        Protocol as Protocol,
        load as load,
        prune_checkpoint as prune_checkpoint,
        read_plan as read_plan,
        read_protocol as read_protocol,
        save as save,
    )
    from prunekit_plugins.classic import (
        BasePruner as BasePruner,
        DependencyGraph as DependencyGraph,
    )
    from prunekit_plugins.compensation import Compensation as Compensation, compensate as compensate
    from prunekit_plugins.distill import (
        Distillation as Distillation,
        DistillationLoss as DistillationLoss,
        distill as distill,
        store_logits as store_logits,
    )
    from prunekit_plugins.folders import load_folder as load_folder, save_folder as save_folder
    from prunekit_plugins.positions import prune_positions as prune_positions
    from prunekit_plugins.prune import PruneResult as PruneResult, prune as prune, sensitivity as sensitivity
    from prunekit_plugins.shrink import shrink as shrink
    from prunekit_plugins.vocabulary import prune_classes as prune_classes, prune_vocabulary as prune_vocabulary

_HOMES = {
    "prunekit_core": (
        "ArgumentError BusyModelError CheckpointError Config ExactCheck Explanation Graph Group KeywordError Kind "
        "NothingToPruneError Plan PlanError PluginError Preview PrunekitError RecordingError Registry "
        "RehearsalError Report Role StorageError UnitsError UnsupportedModelError VerificationError "
        "absorb_constants check_exact default_registry linear_scheduler"
    ),
    "prunekit_plugins.budgets": "Budget Sensitivity plan_to_target",
    "prunekit_plugins.calibration": "Batches Statistics calibrate",
    "prunekit_plugins.checkpoints": "Protocol load prune_checkpoint read_plan read_protocol save",
    "prunekit_plugins.classic": "BasePruner DependencyGraph",
    "prunekit_plugins.compensation": "Compensation compensate",
    "prunekit_plugins.distill": "Distillation DistillationLoss distill store_logits",
    "prunekit_plugins.folders": "load_folder save_folder",
    "prunekit_plugins.positions": "prune_positions",
    "prunekit_plugins.prune": "PruneResult prune sensitivity",
    "prunekit_plugins.shrink": "shrink",
    "prunekit_plugins.vocabulary": "prune_classes prune_vocabulary",
}
"""Where each name comes from: a package is imported when one of its names is asked for."""

__all__, __getattr__, __dir__ = open_door(__name__, _HOMES)
__version__ = version("prunekit")
