"""Rehearsing a cut on the shadow: the pruned program must run the same operations with the predicted shapes.

The shadow's parameters are exchanged for smaller ones and its attributes are edited; then the forward is replayed
under the same recorder, and every operation is compared with what the axes predict.
"""

from __future__ import annotations

import traceback
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from prunekit_core.algebra import layout as layouts
from prunekit_core.algebra.layout import Kept
from prunekit_core.groups.analysis import Analysis
from prunekit_core.groups.expert_lists import deletions
from prunekit_core.modules.absent import Absent
from prunekit_core.modules.edits import AttributeEdit, is_size, normal_size
from prunekit_core.modules.entries import changed, detached, holder_of, left_of
from prunekit_core.modules.surgery import set_size
from prunekit_core.plugins.layer_facts import check_present_sizes, sizes_by_type
from prunekit_core.plugins.layers import Resizing
from prunekit_core.plugins.registry import Registry
from prunekit_core.rehearse.comparison import Argument, Comparer, Drift, Mismatch


class Stage:
    """The shadow with a cut made on it, to replay forwards on.

    Args:
        analysis: The analysed model.
        registry: Where op rules and layer types are found.
        kept: Kept units per group.
        unsteady: Arguments that are tensors of other values each time the program runs.
    """

    def __init__(self, analysis: Analysis, registry: Registry, kept: Kept, unsteady: Collection[Argument] = ()) -> None:
        self.analysis, self.kept, self._unsteady = analysis, kept, unsteady
        self._registry = registry
        self._shadow = analysis.shadow
        self._shadow.rewind()
        self.modules = self._shadow.modules
        size_of = layouts.Sizer(kept)
        shapes = {name: tuple(map(size_of, found.dims)) for name, found in analysis.parameters.items()}
        self._shapes = {name: shape for name, shape in shapes.items() if shape != analysis.parameters[name].shape}
        self.layer_edits = self._layer_edits()
        self._exchange_tensors()
        for stub in analysis.stubs:
            self._shadow.exchange(stub.module, Absent(stub.result, self.modules[stub.module]))
        self._delete_entries()
        for edit in self.layer_edits:
            set_size(self.modules[edit.module], edit.attribute, edit.new)
        self._shadow.commit()

    def _delete_entries(self) -> None:
        entries = self.analysis.entries
        for deletion in (*entries.deletions, *deletions(self.analysis.lists, self.kept)):
            children: dict[str, Any] = self.modules[deletion.container]._modules
            left = left_of(self.modules[deletion.container], deletion)
            children.clear()
            children.update(left)
        for attributes, name, copied in detached(self.modules, entries.changes).held:
            attributes[name] = copied
        for change in entries.changes:
            path, names = change.place
            table = holder_of(self.modules[path], names)
            assert table is not None
            table[names[-1]] = changed(table[names[-1]], change)

    def _layer_edits(self) -> list[AttributeEdit]:
        edits = []
        for path, module in self.modules.items():
            tensors = [*module._parameters.items(), *module._buffers.items()]
            names = {name: self._shadow.names[id(tensor)] for name, tensor in tensors if tensor is not None}
            if self._shapes.keys().isdisjoint(names.values()):
                continue
            own = {name: self.analysis.parameters[canonical].dims for name, canonical in names.items()}
            check_present_sizes(self._registry, module, own)
            for attribute, new in sizes_by_type(self._registry, module, Resizing(own, self.kept)).items():
                old = getattr(module, attribute)
                if is_size(old) and old != new:
                    edits.append(AttributeEdit(path, attribute, normal_size(old), new))
        return edits

    def _exchange_tensors(self) -> None:
        fresh: dict[int, torch.Tensor] = {}
        for module in self.modules.values():
            for table in (module._parameters, module._buffers):
                slots: dict[str, Any] = table
                for name, tensor in slots.items():
                    if tensor is None:
                        continue
                    canonical = self._shadow.names[id(tensor)]
                    if canonical not in self._shapes:
                        continue
                    if id(tensor) not in fresh:
                        positions = partial(self.analysis.parameters[canonical].positions, self.kept)
                        made = self._shadow.cut(tensor, self._shapes[canonical], positions)
                        if isinstance(tensor, nn.Parameter):
                            made = self._shadow.as_parameter(made).requires_grad_(tensor.requires_grad)
                        fresh[id(tensor)] = made
                    slots[name] = fresh[id(tensor)]

    def replay(self, edits: Mapping[tuple[str, str], Any]) -> tuple[Mismatch | None, list[Drift]]:
        """Replays every recording with some attribute edits on top of those that layer types state.

        Args:
            edits: (module path, attribute) to new value.

        Returns:
            The first mismatch, or None with the numbers that drifted.
        """
        self._shadow.replays += 1
        drifts: list[Drift] = []
        for position, recording in enumerate(self.analysis.recordings):
            if not recording.replayed:
                continue
            rules, alive = self._registry.op_rules, self._shadow.fake_mode is not None
            lists, unsteady = self.analysis.lists, self._unsteady
            comparer = Comparer(position, recording, self.kept, rules, keep_alive=alive, unsteady=unsteady, lists=lists)
            error: Exception | None = None
            try:
                training = recording.training
                comparer.returned(
                    self._shadow.run(recording.example, comparer, rules, training=training, prepare=edits)
                )
            except Exception as raised:  # whatever the pruned program raises is the mismatch
                error = raised
            comparer.finish(error)
            mismatch, found = comparer.mismatch, comparer.drifts
            if error is not None:
                traceback.clear_frames(error.__traceback__)
            del comparer, error
            self._shadow.let_go()
            if mismatch is not None:
                return mismatch, []
            drifts.extend(found)
        return None, drifts
