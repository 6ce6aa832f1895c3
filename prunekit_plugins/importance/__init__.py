"""Importance criteria: how much each unit of a group matters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prunekit.plugin import hookimpl
from prunekit_plugins.importance.activation import ActivationImportance
from prunekit_plugins.importance.block_influence import BlockInfluenceImportance, RelativeEnergyImportance
from prunekit_plugins.importance.branch_residual import BranchResidualImportance
from prunekit_plugins.importance.calibrated import CalibratedImportance
from prunekit_plugins.importance.chance import RandomImportance
from prunekit_plugins.importance.checks import declared
from prunekit_plugins.importance.contributions import (
    ActivationEnergyImportance,
    ActivationVarianceImportance,
    WandaImportance,
)
from prunekit_plugins.importance.effect import EffectImportance
from prunekit_plugins.importance.experts import (
    ExpertFrequencyImportance,
    ExpertReconstructionImportance,
    REAPImportance,
    ReroutingImportance,
)
from prunekit_plugins.importance.fpgm import FPGMImportance
from prunekit_plugins.importance.gates import GateFisherImportance, GateTaylorImportance
from prunekit_plugins.importance.hessian import GroupHessianImportance
from prunekit_plugins.importance.magnitude import BNScaleImportance, GroupMagnitudeImportance, LAMPImportance
from prunekit_plugins.importance.members import Members
from prunekit_plugins.importance.obdc import OBDCImportance
from prunekit_plugins.importance.output_change import OutputChangeImportance
from prunekit_plugins.importance.reconstruction import ReconstructionImportance
from prunekit_plugins.importance.taylor import GroupTaylorImportance

HessianImportance = GroupHessianImportance
MagnitudeImportance = GroupMagnitudeImportance
TaylorImportance = GroupTaylorImportance

__all__ = [
    "ActivationEnergyImportance",
    "ActivationImportance",
    "ActivationVarianceImportance",
    "BNScaleImportance",
    "BlockInfluenceImportance",
    "BranchResidualImportance",
    "CalibratedImportance",
    "EffectImportance",
    "ExpertFrequencyImportance",
    "ExpertReconstructionImportance",
    "FPGMImportance",
    "GateFisherImportance",
    "GateTaylorImportance",
    "GroupHessianImportance",
    "GroupMagnitudeImportance",
    "GroupTaylorImportance",
    "HessianImportance",
    "LAMPImportance",
    "MagnitudeImportance",
    "Members",
    "OBDCImportance",
    "OutputChangeImportance",
    "REAPImportance",
    "RandomImportance",
    "ReconstructionImportance",
    "RelativeEnergyImportance",
    "ReroutingImportance",
    "TaylorImportance",
    "WandaImportance",
]


@hookimpl
def prunekit_importance() -> Mapping[str, Callable[..., Any]]:
    """All built-in criteria."""
    return {
        "activation": ActivationImportance,
        "activation_energy": ActivationEnergyImportance,
        "activation_variance": ActivationVarianceImportance,
        "block_influence": BlockInfluenceImportance,
        "bn_scale": BNScaleImportance,
        "branch_residual": BranchResidualImportance,
        "calibrated": CalibratedImportance,
        "expert_frequency": ExpertFrequencyImportance,
        "expert_reconstruction": ExpertReconstructionImportance,
        "fpgm": FPGMImportance,
        "gate_fisher": GateFisherImportance,
        "gate_taylor": GateTaylorImportance,
        "hessian": GroupHessianImportance,
        "lamp": LAMPImportance,
        "magnitude": GroupMagnitudeImportance,
        "obdc": OBDCImportance,
        "output_change": OutputChangeImportance,
        "random": RandomImportance,
        "reap": REAPImportance,
        "reconstruction": ReconstructionImportance,
        "relative_energy": RelativeEnergyImportance,
        "rerouting": ReroutingImportance,
        "taylor": GroupTaylorImportance,
        "wanda": WandaImportance,
    }


@hookimpl
def prunekit_checks() -> Mapping[tuple[str, Any], Callable[..., None]]:
    """Those of criteria that must be prepared, and of random scores."""
    return declared()
