"""Torch-Pruning's cuts of a pretrained classifier, made in the environment that it lives in."""

from __future__ import annotations

import itertools
import subprocess
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import attrs
import environment
import torch
from torch import nn

CRITERIA, SCOPES = ("magnitude", "taylor", "hessian"), ("global", "local")
WAYS = {
    f"Torch-Pruning, {criterion} {scope}{' + BatchNorm statistics' if anew else ''}": (criterion, scope, anew)
    for anew, criterion, scope in itertools.product((False, True), CRITERIA, SCOPES)
}
"""Names of cuts: with a criterion, in a scope, and whether BatchNorm statistics are estimated again afterwards."""


@attrs.frozen(eq=False)
class Cut:
    """One cut by Torch-Pruning.

    Attributes:
        model: What is left; None where no cut within the budget ran.
        seconds: Processor time of the gradients, of the search for the ratio, and of BatchNorm's statistics.
    """

    model: nn.Module | None
    seconds: float


def ensure(folder: Path) -> Path:
    """Returns the interpreter of Torch-Pruning's environment, with the same timm in it as here: models travel."""
    return environment.ensure(folder, (*environment.REQUIREMENTS, f"timm=={version('timm')}"))[0]


def cut(python: Path, way: str, model: nn.Module, crops: torch.Tensor, budget: float) -> Cut:
    """Cuts the classifier to the largest model within a budget.

    Args:
        python: The interpreter of the environment.
        way: One of `WAYS`.
        model: The classifier that `pretrained.py` builds.
        crops: The calibration crops, ``[crops, 3, size, size]``.
        budget: Part of the MACs.
    """
    criterion, scope, anew = WAYS[way]
    job = {"state": model.state_dict(), "x": crops, "criterion": criterion, "scope": scope, "budget": budget}
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("job.pt", "result.pt")]
        torch.save(job, paths[0])
        worker = Path(__file__).with_name("pretrained_worker.py")
        subprocess.run([str(python), str(worker), *map(str, paths)], check=True)
        # a whole module, written by the process that was just started
        found = Cut(**torch.load(paths[1], weights_only=False))
    if not anew or found.model is None:
        return found
    start = time.process_time()
    reestimate(found.model, crops)
    return Cut(found.model, found.seconds + time.process_time() - start)


@torch.no_grad()
def reestimate(model: nn.Module, crops: torch.Tensor) -> None:
    """Estimates the statistics of all BatchNorm layers on the calibration crops: means over batches of 32."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
            module.train()
    for part in crops.split(32):
        model(part)
    model.eval()
