"""What the analysis and the cut have to say: pruned, left on purpose, not understood, untouched."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence

import attrs

from prunekit_core.algebra import layout as layouts
from prunekit_core.algebra.reasons import ReasonKind
from prunekit_core.groups.analysis import Analysis
from prunekit_core.groups.unit_group import UnitGroup
from prunekit_core.program.op_call import Kind


@attrs.frozen
class Report:
    """Every group and every parameter dim accounted for.

    Attributes:
        pruned: Group name to (units before, units after).
        left: Group name to the reason why it was left whole.
        pinned: Parameter dim (``"fc.weight[0]"``) to what pins it, kernels and single units apart.
        not_understood: Operations that were pinned for want of a rule, with the place and the reason.
        untouched: Parameters that no recording touched; they keep their shape.
        mixes: Pruned group to operations whose result depends on the number of units: legal, but not exact.
        notes: Anything else worth knowing.
        absent: Branches that are gone.
        branches: Name of each branch that stays to the reason; empty where no branch was to go.
    """

    pruned: Mapping[str, tuple[int, int]]
    left: Mapping[str, str]
    pinned: Mapping[str, str]
    not_understood: tuple[str, ...]
    untouched: tuple[str, ...]
    mixes: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...]
    absent: tuple[str, ...] = ()
    branches: Mapping[str, str] = attrs.field(factory=dict)

    @classmethod
    def of(
        cls,
        analysis: Analysis,
        kept: Mapping[str, Sequence[int]],
        restored: Mapping[str, str],
        left: Mapping[str, str],
        notes: Sequence[str] = (),
        means: Mapping[str, str] = types.MappingProxyType({}),
    ) -> Report:
        """Makes the report of an analysis and the units that stay."""
        mixes = {name: (*analysis.groups[name].inexact, *filter(None, [means.get(name)])) for name in kept}
        reasons: dict[str, str] = {}
        for name, group in analysis.groups.items():
            if name not in kept:
                back = restored.get(name)
                why = f"given back: {back}" if back else left.get(name, "not chosen")
                if (group.outer or group.kind is Kind.EXPERTS) and not back and name not in left:
                    why = left_by_default(group)
                reasons[name] = why
        return cls(
            pruned={n: (g.size, len(kept[n])) for n, g in analysis.groups.items() if n in kept},
            left=reasons,
            pinned=pinned_dims(analysis),
            not_understood=tuple(
                f"{gap.operation} in {gap.module or 'the model'}: {gap.why}"
                + ("" if gap.froze else " (nothing prunable was lost)")
                for gap in analysis.not_understood
            ),
            untouched=analysis.untouched,
            mixes={name: uses for name, uses in mixes.items() if uses},
            notes=(*analysis.notes, *notes),
        )

    def without(
        self, absent: Sequence[str], left: Mapping[str, str], gone: Sequence[str], analysis: Analysis
    ) -> Report:
        """Returns the report of a model without some branches: what is gone with them isn't among what was left.

        Args:
            absent: Branches that are gone.
            left: Name of each branch that stays to the reason.
            gone: Parameters and buffers that are gone.
            analysis: The analysis of the whole model.
        """
        if not (absent or left):
            return self
        parameters = {name: {member.parameter for member in g.members} for name, g in analysis.groups.items()}
        return attrs.evolve(
            self,
            left={name: why for name, why in self.left.items() if not parameters[name] <= set(gone)},
            pinned={dim: why for dim, why in self.pinned.items() if dim.rpartition("[")[0] not in set(gone)},
            absent=tuple(absent),
            branches=dict(left),
        )

    def __str__(self) -> str:
        lines = []
        if self.absent or self.branches:
            lines.append(f"branches gone: {len(self.absent)} of {len(self.absent) + len(self.branches)}")
            lines.extend(f"  {name}" for name in self.absent)
            lines.append(f"branches left: {len(self.branches)}")
            lines.extend(f"  {name}: {why}" for name, why in self.branches.items())
        lines.append(f"pruned: {len(self.pruned)} groups")
        lines.extend(f"  {name}: {before} -> {after}" for name, (before, after) in self.pruned.items())
        lines.append(f"left whole: {len(self.left)} groups")
        lines.extend(f"  {name}: {why}" for name, why in self.left.items())
        lines.append(f"pinned: {len(self.pinned)} parameter dims")
        lines.extend(f"  {where}: {why}" for where, why in self.pinned.items())
        if self.not_understood:
            lines.append("not understood:")
            lines.extend(f"  {gap}" for gap in self.not_understood)
        if self.untouched:
            lines.append("untouched (no recording used them): " + ", ".join(self.untouched))
        if self.mixes:
            lines.append(f"not exact ({len(self.mixes)} pruned groups under a norm, softmax or mean):")
            lines.extend(f"  {name}: {uses[0]}" for name, uses in self.mixes.items())
        lines.extend(f"note: {note}" for note in self.notes)
        return "\n".join(lines)


def left_by_default(group: UnitGroup) -> str:
    """Says why a group of heads or experts, or one whose units hold units of other groups, stays whole."""
    if group.kind is Kind.EXPERTS and not group.outer:
        return "experts are left alone by default: expert_pruning_ratio=0.5 takes half of those of each layer"
    if group.kind in (Kind.HEADS, Kind.QUERIES_PER_HEAD):
        return f"whole {group.kind.value} are left alone by default: prune_num_heads=True takes them"
    return f"each of its {group.kind.value} holds units of other groups, which leave instead; a group takes whole ones"


def pinned_dims(analysis: Analysis) -> dict[str, str]:
    """Lists the parameter dims that hold no free unit although they could, with the reason."""
    found = {}
    for name, parameter in analysis.parameters.items():
        for dim, (layout, reason) in enumerate(zip(parameter.dims, parameter.reasons, strict=True)):
            if layout.size < 2 or layouts.groups_of(layout) or reason is None:
                continue
            if reason.kind not in (ReasonKind.KERNEL, ReasonKind.UNTOUCHED):
                found[f"{name}[{dim}]"] = str(reason)
    return found


def outputs_that_pin(analysis: Analysis) -> str:
    """Says which outputs of the model pin parameters, and how those are released that may shrink; empty if none has
    a name."""
    counts: dict[str, int] = {}
    for parameter in analysis.parameters.values():
        for reason in parameter.reasons:
            if reason is not None and reason.output:
                name = reason.output.partition(".")[0]
                counts[name] = counts.get(name, 0) + 1
    if not counts:
        return ""
    listed = ", ".join(f"{name} ({count} parameter dims)" for name, count in counts.items())
    return f"outputs keep their size: {listed}; free_outputs=[...] releases those that may shrink, by these names"


@attrs.frozen
class Explanation:
    """What a layer's channels are tied to and what pins them.

    Attributes:
        module: Dotted path of the layer.
        dims: Parameter dim to how it is made of units.
        groups: The groups concerned, with all their members.
        operations: Group name to the operations that use its units, in order.
        pinned: Parameter dim to what pins it.
    """

    module: str
    dims: Mapping[str, str]
    groups: tuple[UnitGroup, ...]
    operations: Mapping[str, tuple[str, ...]]
    pinned: Mapping[str, str]

    @classmethod
    def of(cls, analysis: Analysis, path: str) -> Explanation:
        """Explains the parameters of a module and of everything in it."""
        inside = f"{path}."
        names = [n for n in analysis.parameters if not path or n.startswith(inside)]
        dims, pinned = {}, {}
        groups: dict[str, UnitGroup] = {}
        for name in names:
            parameter = analysis.parameters[name]
            for dim, (layout, reason) in enumerate(zip(parameter.dims, parameter.reasons, strict=True)):
                if layout.size > 1:
                    dims[f"{name}[{dim}]"] = layouts.describe(layout)
                    groups.update((g, analysis.groups[g]) for g in layouts.groups_of(layout))
                    if reason is not None:
                        pinned[f"{name}[{dim}]"] = str(reason)
        return cls(path, dims, tuple(groups.values()), _uses(analysis, groups), pinned)

    def __str__(self) -> str:
        lines = [f"{self.module or 'the model'}:"]
        lines.extend(f"  {where} = {what}" for where, what in self.dims.items())
        for group in self.groups:
            lines.append(f"group {group.name}: {group.size} {group.kind.value}, tied in")
            lines.extend(f"  {m.parameter}[{m.dim}] ({m.role.value})" for m in group.members)
            uses = self.operations.get(group.name, ())
            lines.append("  by " + ", ".join(uses[:12]) + (f" and {len(uses) - 12} more" if len(uses) > 12 else ""))
            lines.extend(f"  not exact: {mix}" for mix in group.inexact[:1])
        if self.pinned:
            lines.append("pinned:")
            lines.extend(f"  {where}: {why}" for where, why in self.pinned.items())
        return "\n".join(lines)


def _uses(analysis: Analysis, groups: Mapping[str, UnitGroup]) -> dict[str, tuple[str, ...]]:
    uses: dict[str, dict[str, None]] = {name: {} for name in groups}
    for recording in analysis.recordings:
        for operation in recording.trace.operations:
            refs = [*operation.outputs, *operation.references()]
            names = {
                n for ref in refs for layout in recording.live.get(ref.index, ()) for n in layouts.groups_of(layout)
            }
            for name in names & uses.keys():
                uses[name][operation.site] = None
    return {name: tuple(found) for name, found in uses.items()}
