"""Torch-Pruning's cuts of a network of the quality benchmark, made in the environment that it lives in."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import attrs
import quality_tasks as tasks
import torch
from torch import nn

CRITERIA = ("magnitude", "taylor", "hessian")


@attrs.frozen(eq=False)
class Cut:
    """One cut by Torch-Pruning.

    Attributes:
        method: Its criterion and its scope, ``"taylor global"``.
        target: Part of the MACs that was asked for.
        macs: Part of the MACs that was left; None where no cut within the target ran.
        model: What was left; None likewise.
    """

    method: str
    target: float
    macs: float | None
    model: nn.Module | None


def cuts(
    python: Path,
    task: tasks.Task,
    model: nn.Module,
    seed: int,
    targets: Sequence[float],
    criteria: Sequence[str] = CRITERIA,
) -> list[Cut]:
    """Cuts copies of a trained network with some criteria, in every scope, to every target.

    Args:
        python: The interpreter of Torch-Pruning's environment.
        task: The network with its data.
        model: The trained network.
        seed: Of the calibration samples.
        targets: Parts of the MACs.
        criteria: Names of Torch-Pruning's criteria.
    """
    x, y = task.calibration_data(seed)
    job = {"network": task.name, "state": model.state_dict(), "x": x, "y": y}
    job |= {"targets": list(targets), "criteria": list(criteria)}
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("job.pt", "result.pt")]
        torch.save(job, paths[0])
        worker = Path(__file__).with_name("quality_worker.py")
        subprocess.run([str(python), str(worker), *map(str, paths)], check=True)
        # whole modules, written by the process that was just started
        rows = torch.load(paths[1], weights_only=False)
    return [Cut(f"{row['criterion']} {row['scope']}", row["target"], row["macs"], row["model"]) for row in rows]
