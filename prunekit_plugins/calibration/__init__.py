"""Statistics of a model on calibration data: means, covariances, how outputs move."""

from prunekit_plugins.calibration.batches import Batches
from prunekit_plugins.calibration.branch_runs import BranchGatherer, BranchNeed, MeanOverRows, SeenBranch
from prunekit_plugins.calibration.branch_sums import AddedBranch
from prunekit_plugins.calibration.demand import DemandingCriterion, FrugalCriterion, StatisticalCriterion
from prunekit_plugins.calibration.experts.statistics import ExpertStatistics
from prunekit_plugins.calibration.moments import Moments
from prunekit_plugins.calibration.statistics import SiteStatistics, Statistics
from prunekit_plugins.calibration.stream import calibrate

__all__ = [
    "AddedBranch",
    "Batches",
    "BranchGatherer",
    "BranchNeed",
    "DemandingCriterion",
    "ExpertStatistics",
    "FrugalCriterion",
    "MeanOverRows",
    "Moments",
    "SeenBranch",
    "SiteStatistics",
    "StatisticalCriterion",
    "Statistics",
    "calibrate",
]
