"""A model after the cuts so far: which units are still there, and where they are in its parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from prunekit_core.algebra import layout as layouts
from prunekit_core.algebra.layout import Layout
from prunekit_core.algebra.reasons import ReasonKind
from prunekit_core.errors import PlanError
from prunekit_core.graph.group import MemberView
from prunekit_core.groups.analysis import Analysis
from prunekit_core.modules.absent import Absent
from prunekit_core.modules.tree import Layer, ModelTree
from prunekit_core.plans.plan import Plan
from prunekit_core.plugins.layer_facts import channels_by_type
from prunekit_core.plugins.registry import Registry


class StoredWeights(Protocol):
    """Values of a model's tensors that lie elsewhere than in the model, such as in files."""

    def __contains__(self, name: str) -> bool:
        """Tells whether there are values of a tensor, by its canonical dotted name."""

    def dtype(self, name: str) -> torch.dtype:
        """Returns the dtype that a tensor has there."""

    def names(self, name: str) -> tuple[str, ...]:
        """Returns the names that a tensor has there."""

    def read(self, name: str, plan: Plan) -> torch.Tensor:
        """Reads a tensor and cuts it as a plan does; it has memory of its own."""


class CurrentModel:
    """A model with what was cut from it.

    Args:
        analysis: What is known about the model as it was before.
        model: The model as it is now.
        plan: The plan that led there.
        stored: Where the values of tensors on the meta device are read from; None for nowhere.
    """

    def __init__(self, analysis: Analysis, model: nn.Module, plan: Plan, stored: StoredWeights | None = None) -> None:
        self.analysis, self.model, self.plan, self.stored = analysis, model, plan, stored
        self.tree = ModelTree(model)
        places, modules = plan.places(analysis.parameters), self.tree.modules
        self._places_now = {name: place.rpartition(".")[::2] for name, place in places.items()}
        self._owners = {name: modules.get(path) for name, (path, _) in self._places_now.items()}
        self._sizer = layouts.Sizer(plan.kept)
        self._placements: dict[int, dict[str, layouts.Placement]] = {}

    def check(self) -> None:
        """Raises `PlanError` unless all parameters have the shapes that the plan leads to, and what goes is gone."""
        modules, renaming = self.tree.modules, self.plan.renaming
        places = {stub.module: renaming.after(stub.module) for stub in self.plan.stubs}
        left = next((p for p, now in places.items() if now and not isinstance(modules.get(now), Absent)), None)
        left = left or next((path for path in renaming.vacated() if path in modules), None)
        if left is not None:
            raise PlanError("The plan doesn't lead to this model.", where=left, why="the plan takes the module out")
        for name in self._owners:
            expected = tuple(map(self._sizer, self.analysis.parameters[name].dims))
            tensor = self._tensor(name)
            if tensor is None or tuple(tensor.shape) != expected:
                why = "missing" if tensor is None else f"of shape {tuple(tensor.shape)}"
                raise PlanError("The plan doesn't lead to this model.", where=name, why=f"{why}, not {expected}")

    def is_left(self, group: str) -> bool:
        """Tells whether any parameter that a group cuts is still there."""
        return any(member.parameter in self._owners for member in self.analysis.groups[group].members)

    def remaining(self, group: str) -> tuple[int, ...]:
        """Returns the units of a group that are still there, as numbered at analysis."""
        return self.plan.kept.get(group) or _all_units(self.analysis.groups[group].size)

    def views(self, group: str, shared: dict[Any, torch.Tensor]) -> list[MemberView]:
        """Lists the members of a group; see `Graph.views`."""
        place = self._places(group)
        found = []
        for member in self.analysis.groups[group].members:
            if member.parameter not in self._owners:
                continue
            layout = self.analysis.parameters[member.parameter].dims[member.dim]
            positions, units = self._placed(layout)[group]
            path, name = self._places_now[member.parameter]
            owner, tensor = self._owners[member.parameter], self._tensor(member.parameter)
            if owner is None or tensor is None or tensor.shape[member.dim] != self._sizer(layout):
                raise PlanError(
                    "The model was changed since it was analysed.", where=member.parameter, hint="build the graph anew"
                )
            units = units if place is None else place[units]
            load = self._loader(member.parameter, tensor)
            found.append(MemberView(path, owner, name, tensor, member.dim, member.role, positions, units, shared, load))
        return found

    def _loader(self, name: str, tensor: torch.Tensor) -> Callable[[], torch.Tensor] | None:
        """How the values of a tensor on the meta device are read; None where they are in memory."""
        if self.stored is None or not tensor.is_meta or name not in self.stored:
            return None
        return functools.partial(self.stored.read, name, self.plan)

    def tensor(self, name: str) -> torch.Tensor | None:
        """Returns the parameter or buffer that had a canonical name at analysis; None where it is gone."""
        return self._tensor(name) if name in self._owners else None

    def _tensor(self, name: str) -> torch.Tensor | None:
        module, leaf = self._owners[name], self._places_now[name][1]
        if module is None:
            return None
        tensor = module._parameters.get(leaf)
        return module._buffers.get(leaf) if tensor is None else tensor

    def paths_of(self, layers: Iterable[Layer]) -> set[str]:
        """Returns the paths at analysis of some modules and of everything they contain; see `Graph.module_paths`."""
        renaming, present = self.plan.renaming, list[Layer]()
        for layer in layers:
            now = renaming.after(layer) if isinstance(layer, str) else layer
            if now is None and layer in self.analysis.shadow.modules:
                continue  # it is gone
            present.append(layer if now is None else now)
        return set(map(renaming.before, self.tree.paths_of(present)))

    def pins(self, path: str) -> str:
        """Says what pins the parameters of a layer, kernels apart.

        Args:
            path: Path of the layer now.
        """
        path = self.plan.renaming.before(path)
        for name, parameter in self.analysis.parameters.items():
            if name.rpartition(".")[0] == path:
                for reason in parameter.reasons:
                    if reason is not None and reason.kind is not ReasonKind.KERNEL:
                        return str(reason)
        return "they can't shrink"

    def flat_layouts(self, registry: Registry) -> dict[str, tuple[Layout | None, Layout | None]]:
        """Returns how the output and the input channels of every layer are made of units, by path at analysis."""
        found = {}
        names, renaming = self.names(), self.plan.renaming
        for path, module in self.tree.modules.items():
            kind, own = registry.layer_type(module), self.own_layouts(module, names)
            if kind is not None and own:
                out, into = (channels_by_type(registry, module, f, own) for f in (kind.flat_out, kind.flat_in))
                found[renaming.before(path)] = (out, into)
        return found

    def _places(self, group: str) -> torch.Tensor | None:
        """Place of every unit of a group among those that are there now; None while all are."""
        if group not in self.plan.kept:
            return None
        remaining = layouts.long_tensor(self.plan.kept[group])
        place = torch.full((self.analysis.groups[group].size,), -1, device="cpu")
        place[remaining] = torch.arange(len(remaining), device="cpu")
        return place

    def _placed(self, layout: Layout) -> dict[str, layouts.Placement]:
        """Where all groups are in a layout; the same for all dims that share it."""
        made = self._placements.get(id(layout))
        if made is None:
            made = self._placements[id(layout)] = layouts.placements(layout, self.plan.kept)
        return made

    def names(self) -> dict[int, str]:
        """Canonical names of the tensors that are there now, by identity."""
        return {id(self._tensor(name)): name for name in self._owners}

    def own_layouts(self, layer: nn.Module, names: Mapping[int, str] | None = None) -> dict[str, tuple[Layout, ...]]:
        """Layouts of a layer's own parameters and buffers, by local name.

        Args:
            layer: A module of the model.
            names: What `names` returns, where the caller has it.
        """
        names = self.names() if names is None else names
        own: dict[str, tuple[Layout, ...]] = {}
        for table in (layer._parameters, layer._buffers):
            for local, tensor in table.items():
                if tensor is not None and id(tensor) in names:
                    own[local] = self.analysis.parameters[names[id(tensor)]].dims
        return own


@functools.lru_cache(maxsize=64)
def _all_units(size: int) -> tuple[int, ...]:
    """The units of a whole group; groups of the same size are many, and large."""
    return tuple(range(size))
