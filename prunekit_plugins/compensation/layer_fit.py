"""What compensation solves: one consumer of a pruned model, and what it should put out."""

from __future__ import annotations

import functools

import attrs
import torch

from prunekit_core.modules.surgery import select_positions
from prunekit_core.plans.plan import Plan
from prunekit_core.program.linear_forms import Site
from prunekit_plugins.calibration.moments import Moments, merge

FAINT = 1e-4
"""Factors of a norm, relative to the largest, below which what is in front of it is left as it is."""


@attrs.frozen(eq=False)
class LayerFit:
    """One consumer of the pruned model, ``y = W x + b`` for each group, and moments of what it reads and should give.

    The targets are the outputs of the same consumer in the original model, those rows of it that stay; what it reads is
    what the pruned model produces now. Where all that it puts out goes into a sum, the targets are what that sum was in
    the original, less what it is added to now; where it takes over removed branches, it is the sum behind them, and
    where a norm stands before the sum, weight and offset are multiplied by the norm's factors. All tensors are float64.

    Attributes:
        name: Name of its site in the pruned model.
        weight: Tensor ``[groups, outputs, features]``: its weight as cut.
        offset: Tensor ``[groups, outputs]``: what is added to the product.
        movable: Whether another offset can be had: in its bias, or in the mean that a norm subtracts next.
        fit: Moments of features and targets on the samples to fit on.
        held: The same on samples that are held out; None if there were none.
        earlier: Moments of what it read in the original, less the removed features, and put out there, on the samples
            to fit on; None where they weren't gathered.
        earlier_held: The same on samples that are held out.
        lost_weight: Tensor ``[groups, outputs, lost]``: the original's weight of the features that were removed.
        lost_mean: Tensor ``[groups, lost]``: their mean in the original.
        lost_variance: Tensor ``[groups, lost]``: their variance.
        slope: Tensor ``[groups, outputs]``: the norm's factors; None without one.
    """

    name: str
    weight: torch.Tensor
    offset: torch.Tensor
    movable: bool
    fit: Moments
    held: Moments | None
    lost_weight: torch.Tensor
    lost_mean: torch.Tensor
    lost_variance: torch.Tensor
    earlier: Moments | None = None
    earlier_held: Moments | None = None
    slope: torch.Tensor | None = None

    def scaled(self, weight: torch.Tensor, offset: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the weight and offset of the fit that a weight and an offset of the consumer itself make."""
        return (weight, offset) if self.slope is None else (weight * self.slope[:, :, None], offset * self.slope)

    def unscaled(
        self, fitted: tuple[torch.Tensor, torch.Tensor], present: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the consumer's own weight and offset, from those of the fit.

        Args:
            fitted: Weight ``[groups, outputs, features]`` and offset ``[groups, outputs]`` of the fit.
            present: What the consumer has, for outputs that the norm behind it hardly hands on.
        """
        if self.slope is None:
            return fitted
        faint = self.slope.abs() <= FAINT * self.slope.abs().max()
        factor = self.slope.masked_fill(faint, 1.0)
        weight = torch.where(faint[:, :, None], present[0], fitted[0] / factor[:, :, None])
        return weight, torch.where(faint, present[1], fitted[1] / factor)

    def error(self, weight: torch.Tensor, offset: torch.Tensor, moments: Moments | None = None) -> float:
        """Returns the mean squared error of a weight and an offset, relative to the variance of the targets.

        Args:
            weight: Tensor ``[groups, outputs, features]``.
            offset: Tensor ``[groups, outputs]``.
            moments: The samples; None for those to fit on.
        """
        m = moments or self.fit
        assert m.covariance is not None
        assert m.cross is not None
        assert m.target_mean is not None
        assert m.target_variance is not None
        explained = torch.einsum("gof,gfo->go", weight, m.cross)
        spread = torch.einsum("gof,gof->go", weight @ m.covariance, weight)
        mean = m.target_mean - offset - torch.einsum("gof,gf->go", weight, m.mean)
        total = (m.target_variance - 2 * explained + spread).clamp(min=0) + mean.square()
        scale = m.target_variance.sum()
        if scale == 0:
            scale = m.target_mean.square().sum()
        return float(total.sum() / scale) if scale > 0 else float(total.sum())

    def whole(self) -> Moments:
        """Returns the moments of all samples, those that are held out among them."""
        return self.fit if self.held is None else merge(self.fit, self.held)

    def both(self) -> tuple[Moments, Moments]:
        """Returns the moments of what it reads now and of what it read earlier together.

        Returns:
            Those of the samples to fit on, and those of all samples.
        """
        parts = [part for part in (self.earlier, self.earlier_held) if part is not None]
        together = functools.partial(merge, apart=False)  # they are of the same examples
        training = self.fit if self.earlier is None else together(self.fit, self.earlier)
        return training, functools.reduce(together, parts, self.whole())

    def mean_error(self, weight: torch.Tensor, moments: Moments) -> torch.Tensor:
        """Returns what must be added to the product so that its mean is that of the targets: ``[groups, outputs]``."""
        assert moments.target_mean is not None
        return moments.target_mean - torch.einsum("gof,gf->go", weight, moments.mean)


@attrs.frozen(eq=False)
class Correspondence:
    """How a consumer of the pruned model follows from one of the original.

    Attributes:
        rows: Bool tensor ``[groups, outputs]`` of the original: which outputs stay.
        features: Bool tensor ``[groups, features]`` of the original: which features stay.
        scales: Tensor ``[kept groups x kept outputs]``: by which factor the cut multiplied each output.
    """

    rows: torch.Tensor
    features: torch.Tensor
    scales: torch.Tensor

    @property
    def lost(self) -> bool:
        """Whether a group that stays has lost features."""
        stays = self.rows.any(1)
        return not bool(self.features[stays].all())

    @classmethod
    def of(cls, site: Site, plan: Plan) -> Correspondence:
        """Tells what a plan leaves of a site of the original."""
        cut = next((cut for cut in plan.parameters if cut.parameter == site.parameter), None)
        positions = {} if cut is None else plan.positions(cut)
        mask = torch.ones(1, dtype=torch.bool, device="cpu").expand(site.shape)
        for dim, kept in positions.items():
            along = torch.zeros(site.shape[dim], dtype=torch.bool, device="cpu")
            along[kept] = True
            mask = mask & along.reshape([-1 if d == dim else 1 for d in range(len(site.shape))])
        matrix = site.matrix(mask)
        rows, features = matrix.any(2), matrix.any(1)
        factors = torch.ones(site.shape[0], dtype=torch.float64, device="cpu")
        for rescale in plan.rescales:
            if rescale.parameter == site.parameter:
                for start, stop in rescale.rows:
                    factors[start:stop] *= rescale.factor
        if site.inputs_first:
            scales = torch.ones(int(rows.sum()), dtype=torch.float64, device="cpu")
        else:
            part = factors[site.rows[0] : site.rows[1]].reshape(rows.shape)
            scales = part[rows]
        return cls(rows, features, scales)

    def lost_part(self, matrix: torch.Tensor) -> torch.Tensor:
        """Takes the kept outputs' weights of removed features out of the original's matrix.

        Returns:
            Tensor ``[kept groups, kept outputs, lost features]``.
        """
        pieces = [matrix[g][self.rows[g]][:, ~self.features[g]] for g in self.rows.any(1).nonzero().flatten().tolist()]
        return torch.stack(pieces)

    def lost_features(self, values: torch.Tensor) -> torch.Tensor:
        """Takes the removed features of groups that stay out of ``[groups, ..., features]``."""
        pieces = [values[g][..., ~self.features[g]] for g in self.rows.any(1).nonzero().flatten().tolist()]
        return torch.stack(pieces)

    def kept_samples(self, features: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes what stays out of samples of the original.

        Args:
            features: Tensor ``[groups, samples, features]``.
            targets: Tensor ``[groups, samples, outputs]``.

        Returns:
            The same for the pruned model's groups, features and outputs, the targets scaled as the cut scales them.
        """
        stays = self.rows.any(1).nonzero().flatten().tolist()
        kept = torch.stack([features[g][:, self.features[g]] for g in stays])
        wanted = torch.stack([targets[g][:, self.rows[g]] for g in stays])
        return kept, wanted * self.scales.to(wanted).reshape(wanted.shape[0], 1, wanted.shape[2])

    def kept_outputs(self, output: torch.Tensor, dim: int) -> torch.Tensor:
        """Takes the outputs that stay, as the cut scales them, out of what the original put out."""
        kept = self.rows.flatten().nonzero().flatten()
        shape = [-1 if d == dim % output.dim() else 1 for d in range(output.dim())]
        result = select_positions(output, {dim % output.dim(): kept})
        if bool((self.scales == 1).all()):
            return result
        return result * self.scales.to(result).reshape(shape)
