"""Statistics of a model on calibration data, as a value: saved, loaded, and checked against a model."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import attrs
import safetensors
import safetensors.torch
import torch
from torch import nn

from prunekit_core.errors import ArgumentError, CheckpointError
from prunekit_core.modules.tree import named_tensors
from prunekit_core.program.linear_forms import Site
from prunekit_plugins.calibration.experts.statistics import ExpertStatistics
from prunekit_plugins.calibration.moments import Distinct, Moments
from prunekit_plugins.calibration.symmetric import Symmetric
from prunekit_plugins.calibration.uncertainty import Uncertainty
from prunekit_plugins.checkpoints.tensorfile import CHECK_PATH, NO_FILE

KEY = "prunekit_statistics"
EXPERTS = "experts-"
"""What the names of tensors of experts start with in a file."""
FORMAT = "1"
MOMENTS, COVARIANCES, CURVATURES = "moments", "covariances", "curvatures"
GRADIENTS, FISHER = "gradients", "fisher"
ROUTING, CONTRIBUTIONS, PRODUCTS, REROUTING = "routing", "contributions", "products", "rerouting"
NEURONS = "neurons"
PARTS = (MOMENTS, COVARIANCES, CURVATURES, GRADIENTS, FISHER, ROUTING, CONTRIBUTIONS, PRODUCTS, REROUTING, NEURONS)


@attrs.frozen(eq=False)
class SiteStatistics:
    """What one consumer read.

    Attributes:
        site: The (part of a) parameter that it multiplies by.
        moments: Mean and variance, and the covariance if it was gathered, of its features.
        curvature: Tensor ``[groups, outputs, outputs]``, float32: the matrix ``G`` with which a small error ``e`` of
            what it puts out changes the outputs of the model, squared and summed up over an example: ``e^T G e``; see
            `Curvatures`. Of a wide consumer its diagonal, ``[groups, outputs]``. None if not gathered. It may be made
            for each use, of a triangle that is kept.
        energy: Tensor ``[groups, outputs]``, float64: the mean square of what it puts out; None without curvatures.
    """

    site: Site
    moments: Moments
    _curvature: torch.Tensor | Symmetric | None = None
    energy: torch.Tensor | None = None

    @property
    def curvature(self) -> torch.Tensor | None:
        """Tensor ``[groups, outputs, outputs]`` or ``[groups, outputs]``, float32; None if not gathered."""
        known = self._curvature
        return known.whole(torch.float32) if isinstance(known, Symmetric) else known

    def bent(self, values: torch.Tensor) -> torch.Tensor:
        """Returns the product of a curvature that is a whole matrix with a tensor ``[groups, outputs, columns]``."""
        known = self._curvature
        assert known is not None
        return known.times(values) if isinstance(known, Symmetric) else known.to(values.dtype) @ values

    @property
    def whole_curvature(self) -> bool:
        """Whether the curvature is a matrix for each group; it is a diagonal of a wide consumer."""
        known = self._curvature
        return isinstance(known, Symmetric) or (known is not None and known.dim() > 2)

    @property
    def has_curvature(self) -> bool:
        """Whether it was gathered."""
        return self._curvature is not None

    @property
    def diagonal(self) -> torch.Tensor:
        """Tensor ``[groups, outputs]``, float64: the diagonal of the curvature; for statistics with curvatures."""
        known = self._curvature
        assert known is not None
        if isinstance(known, Symmetric):
            return known.diagonal.double()
        return (known.diagonal(dim1=1, dim2=2) if known.dim() > 2 else known).double()

    @property
    def effect(self) -> torch.Tensor:
        """Tensor ``[groups, outputs]``, float64: ``G_cc E[y_c^2]``, what the model loses, to first order, if an output
        becomes zero; for statistics with curvatures."""
        assert self.energy is not None
        return self.diagonal * self.energy


@attrs.frozen(eq=False)
class Statistics:
    """What `calibrate` gathered.

    Attributes:
        sites: Consumers by the name of their site.
        gradients: Parameter to the mean gradient of the loss, in its shape, float32; empty if not gathered.
        fisher: Parameter to the mean over examples of the squared gradient of one example, float32; empty likewise.
        shapes: Every parameter of the model to its shape.
        examples: Number of examples.
        notes: Lines for the report: where an estimate is poor, and what wasn't seen.
        experts: Group of experts to what was gathered of them; empty if nothing was.
    """

    sites: Mapping[str, SiteStatistics]
    gradients: Mapping[str, torch.Tensor]
    fisher: Mapping[str, torch.Tensor]
    shapes: Mapping[str, tuple[int, ...]]
    examples: int
    notes: tuple[str, ...] = ()
    experts: Mapping[str, ExpertStatistics] = attrs.field(factory=dict)

    def __contains__(self, part: str) -> bool:
        """Tells whether a part (``"moments"``, ``"covariances"``, ``"curvatures"``, ``"gradients"``, ``"fisher"``,
        ``"routing"``, ``"contributions"``, ``"products"``, ``"rerouting"``, ``"neurons"``) is there."""
        if part == MOMENTS:
            return bool(self.sites)
        if part == COVARIANCES:
            return bool(self.sites) and all(s.moments.has_covariance for s in self.sites.values())
        if part == CURVATURES:
            return bool(self.sites) and all(s.has_curvature for s in self.sites.values())
        if part == CONTRIBUTIONS:
            return any(found.weighted is not None for found in self.experts.values())
        if part == PRODUCTS:
            return any(found.products is not None for found in self.experts.values())
        if part == REROUTING:
            return any(found.error is not None for found in self.experts.values())
        if part == NEURONS:
            return any(found.neurons for found in self.experts.values())
        return bool({GRADIENTS: self.gradients, FISHER: self.fisher, ROUTING: self.experts}.get(part))

    def of(self, parameter: str) -> list[SiteStatistics]:
        """Lists what was read by the consumers that multiply by a parameter, or by parts of it."""
        return [found for found in self.sites.values() if found.site.parameter == parameter]

    def check(self, model: nn.Module) -> None:
        """Raises `ArgumentError` unless the statistics are of a model with these parameters."""
        tensors = named_tensors(model)
        for name, shape in self.shapes.items():
            found = tuple(tensors[name].shape) if name in tensors else None
            if found != shape:
                raise ArgumentError(
                    "The statistics are of another model.",
                    where=name,
                    why=f"they were gathered with shape {shape}, the model has {found}",
                    hint="gather them anew: the model was pruned since, or is another one",
                )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the statistics as safetensors."""
        tensors: dict[str, torch.Tensor] = {}
        listing, doubt = [], {}
        written: set[int] = set()  # moments that several consumers share: a file has them for each
        for name, found in self.sites.items():
            site, moments = found.site, found.moments
            if moments.uncertainty is not None:
                doubt[name] = attrs.astuple(moments.uncertainty)
            listing.append([name, moments.count, site.parameter, site.rows, site.groups, site.inputs_first])
            for part in ("mean", "variance", "covariance"):
                values = getattr(moments, part)
                if values is not None:
                    values = values.contiguous().cpu()
                    tensors[f"{part}/{name}"] = values.clone() if id(moments) in written else values
            written.add(id(moments))
            for part in ("curvature", "energy"):
                values = getattr(found, part)
                if values is not None:
                    tensors[f"{part}/{name}"] = values.contiguous().cpu()
        for part in (GRADIENTS, FISHER):
            for name, values in getattr(self, part).items():
                tensors[f"{part}/{name}"] = values.contiguous().cpu()
        for name, experts in self.experts.items():
            tensors.update({f"{EXPERTS}{part}/{name}": values for part, values in experts.tensors().items()})
        about = {
            "sites": listing,
            "shapes": self.shapes,
            "examples": self.examples,
            "notes": self.notes,
            "experts": {name: experts.rest() for name, experts in self.experts.items()},
            "uncertainties": doubt,
        }
        safetensors.torch.save_file(tensors, path, metadata={KEY: FORMAT, "about": json.dumps(about)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Statistics:
        """Reads what `save` wrote.

        Raises:
            CheckpointError: The file is missing, corrupt, or holds no statistics.
        """
        where = os.fspath(path)
        if not Path(where).is_file():
            raise CheckpointError(NO_FILE, where=where, hint=CHECK_PATH)
        try:
            with safetensors.safe_open(where, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get(KEY) != FORMAT:
                    raise CheckpointError("The file holds no statistics.", where=where, hint="write it with save()")
                tensors = {name: file.get_tensor(name) for name in list(file.keys())}
            about = json.loads(metadata["about"])
            shapes = {name: tuple(shape) for name, shape in about["shapes"].items()}
            doubt = about.get("uncertainties", {})  # files of earlier versions have none
            sites, distinct = {}, Distinct()
            for name, count, parameter, rows, groups, inputs_first in about["sites"]:
                site = Site(parameter, shapes[parameter], (rows[0], rows[1]), groups, inputs_first)
                parts = [tensors.get(f"{part}/{name}") for part in ("mean", "variance", "covariance")]
                if parts[0] is None or parts[1] is None:
                    raise KeyError(name)
                uncertainty = Uncertainty(*doubt[name]) if name in doubt else None
                moments = Moments(count, parts[0], parts[1], parts[2], uncertainty=uncertainty)
                extra = [tensors.get(f"{part}/{name}") for part in ("curvature", "energy")]
                moments = distinct.of(moments)
                sites[name] = SiteStatistics(site, moments, *extra)
            others = {
                part: {name.partition("/")[2]: t for name, t in tensors.items() if name.startswith(f"{part}/")}
                for part in (GRADIENTS, FISHER)
            }
            experts = {
                name: ExpertStatistics.of(
                    {
                        part.removeprefix(EXPERTS): values
                        for key, values in tensors.items()
                        for part, _, group in [key.partition("/")]
                        if part.startswith(EXPERTS) and group == name
                    },
                    rest,
                )
                for name, rest in about.get("experts", {}).items()  # older files know none
            }
            found = cls(sites, others[GRADIENTS], others[FISHER], shapes, about["examples"], tuple(about["notes"]))
            return attrs.evolve(found, experts=experts)
        except (safetensors.SafetensorError, KeyError, TypeError, ValueError, IndexError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError("The file holds no readable statistics.", where=where, why=str(error)) from error
