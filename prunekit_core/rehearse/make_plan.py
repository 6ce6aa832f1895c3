"""Drafts: choices of units made into proven plans, with everything that a plan says."""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Collection, Mapping, Sequence

import attrs
from torch import nn

from prunekit_core.algebra import layout as layouts
from prunekit_core.branches.branch import Branch
from prunekit_core.branches.decoding import with_decoding
from prunekit_core.branches.find import find_branches
from prunekit_core.collector import collection_paused
from prunekit_core.groups.analysis import Analysis
from prunekit_core.groups.costs import PreviewedCosts
from prunekit_core.groups.expert_lists import Leaving, alike
from prunekit_core.groups.moving_averages import mirrored_edits, mirrored_rescales
from prunekit_core.modules.absent import Given, Handed
from prunekit_core.modules.edits import AttributeEdit, GroupCut, ParameterCut, Rescale, Stub, Swap
from prunekit_core.modules.entries import Entries
from prunekit_core.modules.source_code import Sources, sources_of
from prunekit_core.modules.tree import ModelTree
from prunekit_core.plans.plan import Plan
from prunekit_core.plans.pricing import Prices, Room
from prunekit_core.plugins.registry import Registry
from prunekit_core.rehearse.comparison import Unmet
from prunekit_core.rehearse.knowledge import Knowledge
from prunekit_core.rehearse.ladder import Rehearsed, rehearse
from prunekit_core.rehearse.places import ancestors
from prunekit_core.rehearse.temperatures import Constants, find_rescales
from prunekit_core.rehearse.ties import Reselect


@attrs.frozen
class Names:
    """What plans say of a model as it was at analysis.

    Attributes:
        others: Canonical name of a tensor to its further names, see `ModelTree.other_names`.
        stored: Names of what checkpoints hold.
        sources: The code of every module.
    """

    others: Mapping[str, tuple[str, ...]]
    stored: frozenset[str]
    sources: Sources


def witnessed(entries: Entries, names: Names) -> Entries:
    """Returns entries with a tensor of each list that says, in a file, whether they are there."""
    plain = sorted(names.stored - names.others.keys()) if entries else []
    found = []
    for deletion in entries.deletions:
        prefix, left = f"{deletion.container}.{deletion.prefix}".lstrip("."), len(deletion.moved())
        numbers = {name: name[len(prefix) :].partition(".")[0] for name in plain if name.startswith(prefix)}
        later = (name for name, number in numbers.items() if number.isdigit() and int(number) >= left)
        found.append(attrs.evolve(deletion, witness=next(later, "")))
    return attrs.evolve(entries, deletions=tuple(found))


class Drafts:
    """Makes plans for one analysed model by rehearsing on its shadow.

    Args:
        analysis: The model as analysed.
        registry: Where rules, layer types and cost models are found.
        names: What plans say of the model; None to find it out when the first plan is made.

    Attributes:
        knowledge: What rehearsals have found out so far.
    """

    def __init__(self, analysis: Analysis, registry: Registry, names: Names | None = None) -> None:
        self.analysis, self.registry = analysis, registry
        self.knowledge = Knowledge()
        self._previewed: PreviewedCosts | None = None
        self._passed: Sources | None = None
        self._names = names
        self._found: tuple[Rehearsed, Constants] | None = None
        self._for_branches: Drafts | None = None
        self._prices: weakref.WeakSet[Prices] = weakref.WeakSet()  # of plans that live longer ask before this goes

    def for_branches(self) -> Drafts:
        """Returns what makes plans without branches: for recordings of decoding as well; see `with_decoding`."""
        if self._for_branches is None:
            with collection_paused():
                found = with_decoding(self.analysis, self.registry)
            self._for_branches = self if found is self.analysis else Drafts(found, self.registry)
            self._for_branches.knowledge.skipped_costs = self.knowledge.skipped_costs
        return self._for_branches

    def branches(self) -> tuple[Branch, ...]:
        """Returns the branches of the model as analysed here; see `find_branches`."""
        return find_branches(self.analysis, self.registry.op_rules)

    def draft(self, model: nn.Module, kept: Mapping[str, tuple[int, ...]], reselect: Reselect | None = None) -> Plan:
        """Makes a proven plan from the model as it was at analysis.

        Args:
            model: The model as it is now; its names of tensors are noted.
            kept: All kept units per group, as numbered at analysis.
            reselect: Chooses units anew when the program needs another number; None if the choice is fixed.

        Raises:
            RehearsalError: The program can't express the cut.
        """
        with collection_paused():
            found = rehearse(self.analysis, self.registry, self.knowledge, kept, reselect, self._unmet)
            return self._proven(model, found)

    def _unmet(self, rehearsed: Rehearsed) -> tuple[Unmet, ...]:
        return self._constants(rehearsed).unmet

    def _constants(self, rehearsed: Rehearsed) -> Constants:
        if self._found is None or self._found[0] is not rehearsed:  # asked when it is judged, and for the plan
            self._found = (rehearsed, find_rescales(self.analysis, self.registry.op_rules, rehearsed))
        return self._found[1]

    def _proven(self, model: nn.Module, rehearsed: Rehearsed) -> Plan:
        parameters = self._parameters(model, rehearsed)
        constants, self._found = self._constants(rehearsed), None
        changed = tuple(dict.fromkeys(unmet.constant for unmet in constants.unmet))
        cut = rehearsed.kept
        leaving = Leaving.of(self.analysis.lists, cut, self.analysis.parameters)
        copies = self.analysis.copies
        edits = self._in_all_entries(mirrored_edits(copies, self.analysis.shadow.modules, rehearsed.edits))
        rescales = self._scaled_alike(mirrored_rescales(copies, constants.rescales))
        for site, groups in constants.means.items():
            self.knowledge.means.update(dict.fromkeys(groups, f"{site}, which makes a mean of a sum"))
        return Plan(
            cuts=tuple(GroupCut(g.name, g.size, cut[g.name]) for g in self.analysis.groups.values() if g.name in cut),
            parameters=tuple(one for one in parameters if not leaving.has(one.parameter)),
            edits=tuple(edit for edit in edits if not leaving.has(edit.module)),
            rescales=tuple(one for one in rescales if not leaving.has(one.parameter)),
            swaps=tuple(one for one in self._swaps(parameters, rehearsed) if not leaving.has(one.module)),
            stubs=tuple(Stub(path, Handed(Given("", 0))) for path in leaving.modules),
            gone=leaving.tensors,
            entries=witnessed(Entries(leaving.deletions), self.names(model)),
            sources=self._sources(model) if cut else (),
            constants=changed,
            notes=(
                *map(str, changed),
                *(
                    f"{site} divides a sum by the number of units: a mean over those that are left"
                    for site in constants.means
                ),
            ),
            costs=self._priced(cut),
            sizes=self._sizes(),
        )

    def _in_all_entries(self, edits: Sequence[AttributeEdit]) -> tuple[AttributeEdit, ...]:
        """Adds to the attributes that change those of entries of lists that no recording ran: they are alike."""
        modules, found = self.analysis.shadow.modules, {(edit.module, edit.attribute): edit for edit in edits}
        for edit in edits:
            for path in alike(self.analysis.lists, edit.module):
                own, theirs = vars(modules[edit.module]), vars(modules[path])
                if edit.attribute in own and theirs.get(edit.attribute) == own[edit.attribute]:
                    found.setdefault((path, edit.attribute), attrs.evolve(edit, module=path))
        return tuple(found.values())

    def _scaled_alike(self, rescales: Sequence[Rescale]) -> tuple[Rescale, ...]:
        """Adds to the rows that are scaled those of entries of lists that no recording ran."""
        found = {(one.parameter, one.rows): one for one in rescales}
        for one in rescales:
            for name in alike(self.analysis.lists, one.parameter):
                found.setdefault((name, one.rows), attrs.evolve(one, parameter=name))
        return tuple(found.values())

    def _sources(self, model: nn.Module) -> Sources:
        """The code of the modules that units pass through, and of those around them."""
        if self._passed is None:
            paths = {
                operation.module
                for recording in self.analysis.recordings
                for operation in recording.trace.operations
                if any(ref.index in recording.live for ref in (*operation.references(), *operation.outputs))
            }
            around = {parent for path in paths for parent in ancestors(path)}
            self._passed = self.sources(model, around)
        return self._passed

    def names(self, model: nn.Module) -> Names:
        """Returns the names of a model's tensors and the code of its modules, from before any of them were removed."""
        if self._names is None:
            tree, stored = ModelTree(model), frozenset(model.state_dict(keep_vars=True))
            self._names = Names(tree.other_names(), stored, sources_of(tree.modules, tree.modules))
        return self._names

    def sources(self, model: nn.Module, paths: Collection[str]) -> Sources:
        """Returns what is known of the code of some modules, see `sources_of`."""
        return tuple((path, source) for path, source in self.names(model).sources if path in paths)

    def without(self, analysis: Analysis, model: nn.Module) -> Drafts:
        """Makes plans for what is left when branches are taken out of the model.

        Args:
            analysis: What is known about that.
            model: The model as it is now.
        """
        left = Drafts(analysis, self.registry, self.names(model))
        left.knowledge.ties = self.knowledge.ties
        left.knowledge.restored = self.knowledge.restored
        left.knowledge.multiples = self.knowledge.multiples
        left.knowledge.means = self.knowledge.means
        left.knowledge.skipped_costs = self.knowledge.skipped_costs
        return left

    def _parameters(self, model: nn.Module, rehearsed: Rehearsed) -> tuple[ParameterCut, ...]:
        names = self.names(model)
        return tuple(
            ParameterCut(name, parameter.shape, parameter.dims, names.others.get(name, ()), name in names.stored)
            for name, parameter in self.analysis.parameters.items()
            if any(group in rehearsed.kept for dim in parameter.dims for group in layouts.groups_of(dim))
        )

    def _swaps(self, parameters: Sequence[ParameterCut], rehearsed: Rehearsed) -> tuple[Swap, ...]:
        """The replacements of layers in which something changes."""
        changed = {cut.parameter.rpartition(".")[0] for cut in parameters} | {edit.module for edit in rehearsed.edits}
        return tuple(
            Swap(path, name)
            for path, name in self.analysis.swaps
            if any(module == path or module.startswith(path + ".") for module in changed)
        )

    def _sizes(self) -> dict[str, Room]:
        return {name: Room(math.prod(p.shape), p.itemsize, p.buffer) for name, p in self.analysis.parameters.items()}

    def _priced(self, kept: Mapping[str, tuple[int, ...]]) -> Prices:
        prices = Prices(self, kept)
        self._prices.add(prices)
        return prices

    def __del__(self) -> None:
        if not sys.is_finalizing():
            for prices in list(self._prices):
                prices.settle(self)

    def costs(self, kept: Mapping[str, Sequence[int]]) -> dict[str, tuple[float, float]]:
        """Returns every previewed cost before a cut, and when only the kept units stay."""
        if self._previewed is None:
            self._previewed = PreviewedCosts(self.registry, self.analysis, self.knowledge.skipped_costs)
        found = self._previewed.at({}, {name: len(units) for name, units in kept.items()})
        return {name: (before, after) for name, (before, after) in found.items()}
