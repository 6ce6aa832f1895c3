"""Sorting the groups of a model into scopes: what is ranked with what, at which ratio, and what is left alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from torch import nn

from prunekit_core.algebra.layout import Product, groups_of, walk
from prunekit_core.choose.candidates import Scope, target_count
from prunekit_core.choose.settings import Ratios, Settings, layers_of
from prunekit_core.graph.graph import Graph
from prunekit_core.groups.report import left_by_default
from prunekit_core.groups.unit_group import Member, UnitGroup
from prunekit_core.program.op_call import Kind


def is_heads(group: UnitGroup) -> bool:
    """Tells whether the units of a group are whole attention heads; a repeat that holds no dims may be any."""
    return group.kind is Kind.HEADS or (group.kind is Kind.QUERIES_PER_HEAD and group.outer)


def is_experts(group: UnitGroup) -> bool:
    """Tells whether the units of a group are chosen by value, one by one or in groups."""
    return group.kind in (Kind.EXPERTS, Kind.EXPERT_GROUPS)


class Scopes:
    """Sorts the groups of a graph into scopes.

    Args:
        graph: The graph.
        settings: What was asked for.
        schedule: Ratio to the cumulative ratios of all steps.

    Attributes:
        left: Groups that are in no scope, with the reason.
        notes: Lines for the report: what was asked for of experts and heads and can't be had.
    """

    def __init__(self, graph: Graph, settings: Settings, schedule: Callable[[float], Sequence[float]]) -> None:
        self._graph, self._settings, self._schedule = graph, settings, schedule
        self._protected = graph.protected_groups(settings.ignored_layers)
        self._kept = graph.protected_groups(settings.demands.layers)
        self._ratios = self._by_path(settings.pruning_ratio_dict)
        self._head_ratios = self._by_path(settings.head_pruning_ratio_dict)
        families = (*siblings(graph.model, graph.groups()), *settings.demands.ties) if settings.uniform else ()
        self._families = joined(families, {group.name for group in graph.groups()})
        for family in self._families:
            graph.knowledge.add_tie(family)
        self.left: dict[str, str] = {}
        self.notes = (*self._about_experts(), *self._about_heads())

    def _about_experts(self) -> Iterator[str]:
        """Says where no expert can leave, or fewer than the ratio says."""
        ratio = self._settings.expert_pruning_ratio
        experts = [group for group in self._graph.groups() if is_experts(group) and not group.outer]
        if ratio and not experts:
            yield f"expert_pruning_ratio={ratio:g}: the model has no experts that could leave"
        for group in experts:
            count = target_count(group.size, ratio or 0.0)
            if count < group.least:
                yield (
                    f"{group.name} keeps {group.least} of {group.size} experts, as many as are chosen for a token: "
                    f"expert_pruning_ratio={ratio:g} would leave {count}"
                )

    def _about_heads(self) -> Iterator[str]:
        """Says where a ratio of heads takes none."""
        settings = self._settings
        ratio = settings.head_pruning_ratio
        asked = f"head_pruning_ratio={ratio:g}" if ratio else ""
        if not asked and any(settings.head_pruning_ratio_dict.values()):
            asked = "head_pruning_ratio_dict"
        if asked and not settings.prune_num_heads:
            yield f"{asked} takes none: whole heads stay unless prune_num_heads=True lets them go"
        elif asked and not any(is_heads(group) for group in self._graph.groups()):
            yield f"{asked}: the model has no heads that could leave"

    def _by_path(self, ratios: Ratios) -> list[tuple[set[str], bool, float]]:
        return [(self._graph.module_paths(layers_of(key)), isinstance(key, tuple), r) for key, r in ratios.items()]

    def at(self, step: int) -> list[Scope]:
        """Lists the scopes with their ratios at a step."""
        heads: list[UnitGroup] = []
        experts: list[UnitGroup] = []
        units: list[UnitGroup] = []
        reasons = {group.name: self._reason_to_leave(group) for group in self._graph.groups()}
        whole = [(family, name) for family in self._families for name in sorted(family) if reasons[name] is not None]
        for group in self._graph.groups():
            brother = next((name for family, name in whole if group.name in family), None)
            reason = reasons[group.name] or (brother and f"uniform: {brother} stays whole")
            if reason is not None:
                self.left[group.name] = reason
            elif group.name not in self._graph.knowledge.restored:
                (heads if is_heads(group) else experts if is_experts(group) else units).append(group)
        settings = self._settings
        scopes = self._sorted(
            units, self._ratios, settings.pruning_ratio, "pruning_ratio_dict", self._shared(units), step
        )
        ranked = [("heads", heads)] if heads else []
        ratio = settings.pruning_ratio if settings.head_pruning_ratio is None else settings.head_pruning_ratio
        scopes += self._sorted(heads, self._head_ratios, ratio, "head_pruning_ratio_dict", ranked, step)
        if experts:
            names = tuple(group.name for group in experts)
            stated = settings.expert_pruning_ratio
            taken = self._schedule(settings.pruning_ratio if stated is None else stated)[step]
            scopes.append(Scope("experts", names, taken, settings.global_pruning, fixed=stated is not None))
        return scopes

    def _reason_to_leave(self, group: UnitGroup) -> str | None:
        settings = self._settings
        if group.name in self._protected:
            return f"ignored layer {self._protected[group.name] or 'the model'}"
        if group.name in self._kept:
            return settings.demands.kept
        if settings.root_module_types is not None:
            roots = {type(self._graph.model.get_submodule(member.module)) for member in group.producers()}
            if not any(issubclass(root, settings.root_module_types) for root in roots):
                return "no layer of root_module_types produces it"
        if is_heads(group):
            if not settings.prune_num_heads:
                return left_by_default(group)
            if settings.head_pruning_ratio == 0 and not settings.head_pruning_ratio_dict:
                return "prune_num_heads is on, but head_pruning_ratio is 0"
            if group.kind is Kind.QUERIES_PER_HEAD and self._has_heads_above(group.name):
                return "queries leave together with their key-value heads"
            if settings.demands.counts.get(group.name) == (group.size,):
                return settings.demands.kept
        elif group.outer or (is_experts(group) and not settings.takes_experts):
            return left_by_default(group)
        elif group.kind is Kind.HEAD_DIM and not settings.prune_head_dims:
            return f"prune_head_dims is off{settings.demands.about('prune_head_dims')}"
        return None

    def _has_heads_above(self, name: str) -> bool:
        """Whether the queries of a group belong to key-value heads that are a group themselves."""
        groups = self._graph.analysis.groups
        for member in groups[name].members:
            for part in walk(self._graph.analysis.parameters[member.parameter].dims[member.dim]):
                inside = groups_of(part) if isinstance(part, Product) else []
                if name in inside and any(groups[other].kind is Kind.HEADS for other in inside):
                    return True
        return False

    def _sorted(
        self,
        groups: Sequence[UnitGroup],
        ratios: Sequence[tuple[set[str], bool, float]],
        ratio: float,
        label: str,
        shared: Sequence[tuple[str, Sequence[UnitGroup]]],
        step: int,
    ) -> list[Scope]:
        """Makes a scope of the groups under each entry of a dict, and of the rest as they share one."""
        own: dict[int, list[str]] = {}
        for group in groups:
            home = _home(group, ratios)
            if home is not None:
                own.setdefault(home, []).append(group.name)
        taken = {name for names in own.values() for name in names}
        fixed = label.startswith("head") and self._settings.head_pruning_ratio is not None
        scopes = [
            Scope(f"{label}[{home}]", tuple(names), self._schedule(ratios[home][2])[step], ratios[home][1], fixed=True)
            for home, names in own.items()
        ]
        for name, members in shared:
            rest = tuple(group.name for group in members if group.name not in taken)
            if rest:
                ranked = self._settings.global_pruning
                scopes.append(Scope(name, rest, self._schedule(ratio)[step], ranked, fixed=fixed))
        return scopes

    def _shared(self, groups: Sequence[UnitGroup]) -> list[tuple[str, Sequence[UnitGroup]]]:
        """Tells which groups share a scope where no ratio of their own is stated."""
        if not self._settings.isomorphic:
            return [("global" if self._settings.global_pruning else "local", groups)]
        alike: dict[tuple[str, ...], list[UnitGroup]] = {}
        for group in groups:
            alike.setdefault(self._structure(group), []).append(group)
        return [(f"isomorphic to {members[0].name}", members) for members in alike.values()]

    def _structure(self, group: UnitGroup) -> tuple[str, ...]:
        """What a group looks like: the class, parameter and dim of every member, in any order."""
        members = []
        for member in group.members:
            owner = type(self._graph.model.get_submodule(member.module)).__qualname__
            members.append(f"{owner}.{member.parameter.rpartition('.')[2]}[{member.dim}] {member.role.value}")
        return (group.kind.value, *sorted(members))


def _home(group: UnitGroup, ratios: Sequence[tuple[set[str], bool, float]]) -> int | None:
    """Finds the entry of a dict that a group falls under: by its first producer that has one."""
    for member in group.producers():
        for position, (paths, _, _) in enumerate(ratios):
            if member.module in paths:
                return position
    return None


_OF_HEADS = (Kind.HEADS, Kind.QUERIES_PER_HEAD, Kind.HEAD_DIM)


def siblings(model: nn.Module, groups: Iterable[UnitGroup]) -> list[frozenset[str]]:
    """Sorts groups into families that one number can describe.

    Groups are siblings when their members lie at the same places of modules of the same classes: the same layer of
    every block. Heads are siblings of all heads, and head dims of all head dims, in attention modules of one class,
    because one number says how many heads a model has and how wide they are.

    Args:
        model: The model.
        groups: Its groups.

    Returns:
        The families of two and more, in order of their first groups.
    """
    families: dict[tuple[object, ...], list[str]] = {}
    for group in groups:
        if group.kind in _OF_HEADS:
            made = group.producers() or list(group.members)
            key: tuple[object, ...] = (group.kind, frozenset(_around(model, member) for member in made))
        else:
            key = (group.kind, group.size, *sorted(_place(model, member) for member in group.members))
        families.setdefault(key, []).append(group.name)
    return [frozenset(names) for names in families.values() if len(names) > 1]


def joined(families: Iterable[frozenset[str]], known: Collection[str]) -> list[frozenset[str]]:
    """Unites families that overlap, of those groups that there are."""
    found: list[frozenset[str]] = []
    for family in families:
        others = [other for other in found if other & family]
        found = [other for other in found if other not in others] + [frozenset(family & set(known)).union(*others)]
    return [family for family in found if len(family) > 1]


def _around(model: nn.Module, member: Member) -> str:
    """Returns the class of the module that contains the layer of a member."""
    parent = model.get_submodule(member.module.rpartition(".")[0])
    return f"{type(parent).__module__}.{type(parent).__qualname__}"


def _place(model: nn.Module, member: Member) -> str:
    """Tells where a member lies, whichever block it is in: numbers in its layer's name don't count."""
    name = member.module.rpartition(".")[2]
    layer = "" if name.isdigit() else name
    owner = type(model.get_submodule(member.module)).__qualname__
    leaf = member.parameter.rpartition(".")[2]
    return f"{_around(model, member)} {layer} {owner}.{leaf}[{member.dim}] {member.role.value}"
