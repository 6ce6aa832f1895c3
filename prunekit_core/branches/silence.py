"""Which weights have to be zero so that a branch adds nothing, in a model that keeps its shapes."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import nn

from prunekit_core.branches.branch import Branch
from prunekit_core.groups.analysis import Analysis
from prunekit_core.groups.zeros import zeros_after
from prunekit_core.program.rules import RuleTable


def silencing(
    analysis: Analysis, rules: RuleTable, branches: Sequence[Branch], gone: Collection[str]
) -> tuple[str, ...]:
    """Finds parameters whose zeros switch branches off: of each as few as are needed, and the last ones that it reads.

    Args:
        analysis: The analysed model.
        rules: The op rules.
        branches: The branches.
        gone: Names of the tensors that only they read.

    Returns:
        Canonical names; none where a branch can't be switched off so (a gate whose weights are zero is one half).
    """
    tensors = analysis.shadow.tensors()
    able = {name for name in gone if isinstance(tensors.get(name), nn.Parameter)}
    found: dict[str, None] = {}
    for branch in branches:
        names = [name for name in _in_order(analysis, branch) if name in able]
        if not _silences(analysis, rules, branch, names):
            return ()
        count = next(size for size in range(1, len(names) + 1) if _silences(analysis, rules, branch, names[-size:]))
        names = names[-count:]
        for name in tuple(names):
            others = [other for other in names if other != name]
            if _silences(analysis, rules, branch, others):
                names = others
        found.update(dict.fromkeys(names))
    return tuple(found)


def _in_order(analysis: Analysis, branch: Branch) -> list[str]:
    """Lists what a branch reads, in the order of its program."""
    found: dict[str, None] = {}
    for summand in branch.sums:
        trace = analysis.recordings[summand.recording].trace
        names = {ref.index: name for name, ref in trace.parameters.items()}
        for index in summand.operations:
            for ref in trace.operations[index].references():
                name = names.get(trace.memory(ref.index))
                if name is not None:
                    found.setdefault(name)
    return list(found)


def _silences(analysis: Analysis, rules: RuleTable, branch: Branch, names: Collection[str]) -> bool:
    """Tells whether a branch is zero, in every sum, where some parameters are."""
    for summand in branch.sums:
        trace = analysis.recordings[summand.recording].trace
        zero = {trace.parameters[name].index for name in names if name in trace.parameters}
        for index in summand.operations:
            zero = zeros_after(trace, trace.operations[index], zero, rules)
        if summand.tensor.index not in zero:
            return False
    return True
