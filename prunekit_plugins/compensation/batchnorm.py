"""BatchNorm statistics of the pruned model, estimated anew."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from prunekit_plugins.compensation.least_squares import PARTS
from prunekit_plugins.compensation.repair import ALONE, Repair

_BatchNorm = nn.modules.batchnorm._BatchNorm


class BatchNormStatistics:
    """Estimates the running mean and variance of every BatchNorm anew on the calibration data.

    The means over the batches of each batch's mean and variance take the place of the running ones, as far as that
    makes the error of the model's outputs less on data that were held out: all of the change, a part of it, or nothing.
    """

    def __call__(self, repair: Repair) -> None:
        """Estimates them all, and keeps the part of the change that does best on what was held out."""
        norms = {
            path: module
            for path, module in repair.module.named_modules()
            if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None
        }
        if not norms:
            return
        if any(parameter.is_meta for parameter in repair.module.parameters()):
            repair.left["batch norms"] = "batchnorm: the model is on disk; load it to estimate them anew"
            return
        if repair.held_out.examples < 2:
            repair.left["batch norms"] = f"batchnorm: {ALONE}"
            return
        old = {path: _statistics(norm) for path, norm in norms.items()}
        try:
            trial, found = _estimate(repair, norms, held=False), _estimate(repair, norms)
        except ValueError as error:  # one value per channel has no variance
            repair.left["batch norms"] = f"batchnorm: {error}"
            return
        if not all(
            bool(torch.isfinite(values).all()) for both in (*trial.values(), *found.values()) for values in both
        ):
            repair.left["batch norms"] = "batchnorm: the statistics are not finite"
            return
        before, errors = repair.output_error(held=True), dict[float, float]()
        for part in PARTS:
            _write(repair, _between(old, trial, part))
            errors[part] = repair.output_error(held=True)
        part = min(errors, key=errors.__getitem__)
        if not errors[part] <= before:
            _write(repair, old)
            worse = f"held-out output error {before:.3g} -> {errors[part]:.3g}"
            repair.left["batch norms"] = f"batchnorm would make it worse ({worse})"
            return
        _write(repair, _between(old, found, part))
        detail = "held-out error of the model's outputs" + (f", {part:.0%} of the change" if part < 1 else "")
        repair.record(f"{len(norms)} batch norms", before, errors[part], detail)


Both = tuple[torch.Tensor, torch.Tensor]


def _statistics(norm: _BatchNorm) -> Both:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean.clone(), norm.running_var.clone()


def _between(old: Mapping[str, Both], new: Mapping[str, Both], part: float) -> dict[str, Both]:
    """Goes a part of the way from some statistics to others."""
    return {
        path: (torch.lerp(mean, new[path][0], part), torch.lerp(variance, new[path][1], part))
        for path, (mean, variance) in old.items()
    }


def _estimate(repair: Repair, norms: Mapping[str, _BatchNorm], held: bool | None = None) -> dict[str, Both]:
    """Runs the copy with its batch norms in training, and puts back what that did to them; see `Repair.batches`."""
    kept = [(norm, norm.momentum, norm.num_batches_tracked, *_statistics(norm)) for norm in norms.values()]
    try:
        repair.module.train(False)
        for norm in norms.values():
            norm.momentum = None  # a plain mean over the batches
            norm.num_batches_tracked = torch.tensor(0, device="cpu")
            norm.train(True)
        with torch.no_grad():
            for batch in repair.batches(held=held):
                batch.example.runner(repair.module, batch.example.args, batch.example.kwargs)
        return {path: _statistics(norm) for path, norm in norms.items()}
    finally:
        for norm, momentum, tracked, mean, variance in kept:
            norm.momentum, norm.num_batches_tracked = momentum, tracked
            norm.train(False)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)


def _write(repair: Repair, statistics: Mapping[str, Both]) -> None:
    for path, (mean, variance) in statistics.items():
        repair.write(f"{path}.running_mean" if path else "running_mean", mean)
        repair.write(f"{path}.running_var" if path else "running_var", variance)
