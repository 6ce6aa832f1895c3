"""Submodules that follow others by a moving average: momentum encoders, target networks, teachers.

A copy has to lose what its original loses, or the next average of the two fails. Copies that no recording ran are found
by their structure and names; copies that the forward runs as well are declared.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

import attrs
import torch
from torch import nn

from prunekit_core.algebra import axes
from prunekit_core.algebra.axes import Axis, AxisMismatchError
from prunekit_core.algebra.reasons import Reason
from prunekit_core.errors import ArgumentError
from prunekit_core.modules.edits import AttributeEdit, Rescale, Stub

AVERAGED = frozenset(
    [
        "average",
        "averaged",
        "avg",
        "delayed",
        "ema",
        "frozen",
        "momentum",
        "old",
        "online",
        "slow",
        "smoothed",
        "student",
        "targ",
        "target",
        "teacher",
        "tgt",
    ]
)
"""Words that tell copies and originals apart: ``critic_target`` and ``critic``."""
PAIRED = AVERAGED | frozenset(["copy", "fast", "k", "key", "local", "m", "main", "mean", "q", "query"])
"""The same with words that mean other things as well, in a single layer: ``encoder_k``, but not ``k_proj``."""


@attrs.frozen
class MomentumCopy:
    """A submodule that is cut exactly as another one.

    Attributes:
        path: Dotted path of the copy.
        original: Dotted path of the submodule that it follows.
        tensors: Canonical name of each of its parameters and buffers to that of the original's.
        run: Whether a recording ran it.
        declared: Whether it was declared; else it was found.
    """

    path: str
    original: str
    tensors: Mapping[str, str]
    run: bool
    declared: bool

    def place(self, path: str) -> str | None:
        """Returns the path in the copy for a path in the original; None for any other path."""
        inside = path == self.original or path.startswith(self.original + ".")
        return self.path + path[len(self.original) :] if inside else None

    def note(self) -> str:
        """Says in the report that it is cut alike."""
        why = "declared" if self.declared else "never run, and of the same structure"
        return f"{self.path} is cut as {self.original} is: a momentum copy ({why})"


@attrs.frozen
class _Structure:
    types: tuple[tuple[str, type[nn.Module]], ...]
    numbers: tuple[tuple[str, str, object], ...]
    tensors: tuple[tuple[str, tuple[int, ...], bool], ...]

    def agrees(self, other: _Structure) -> bool:
        """Tells whether modules of one name and class have the same numbers; each may have modules of its own."""
        shared = {name for name, _ in {*self.types}.intersection(other.types)}
        own, others = ({entry for entry in each.numbers if entry[0] in shared} for each in (self, other))
        return own == others


def momentum_copies(
    modules: Mapping[str, nn.Module],
    names: Mapping[int, str],
    touched: Collection[str],
    declared: Mapping[str, str],
    parameters: Mapping[str, tuple[Axis, ...]],
) -> tuple[list[MomentumCopy], list[str]]:
    """Finds the momentum copies among the submodules of a model, those declared first.

    A submodule that no recording ran is a copy of one that ran if their modules are of the same classes with the same
    integers as attributes, their parameters and buffers have the same names and shapes, and

    - it is the only one that ran whose path differs in nothing but words such as ``target``, or
    - it is the only one that ran at all, and shares no units with what lies around it. A program that wasn't recorded
      may feed the other one with units of another group; what only lies inside fits wherever it is used.

    A single layer needs such a path. Of a module that ran in part, or with other numbers, no parts are copies: those
    that ran have units of their own, and the others read units in another order.

    Args:
        modules: Path to module.
        names: Canonical names of parameters and buffers, by the tensors' identity.
        touched: Canonical names of those that some operation used.
        declared: Path of a copy to that of its original.
        parameters: Axes of all parameters and buffers, when all is tied.

    Returns:
        The copies, and lines for the report on what may be one and isn't cut.

    Raises:
        ArgumentError: What was declared doesn't exist, isn't of the same structure, or follows what wasn't run.
    """
    both = next((path for path in declared.values() if path in declared), None)
    if both is not None:
        raise ArgumentError(
            "A momentum copy can't be an original as well.",
            where=f"momentum_copies: {both!r}",
            hint="let all copies follow the same submodule",
        )
    found = [_declared(modules, names, touched, copy, original) for copy, original in declared.items()]
    hints: list[str] = []
    own_parameters = (t for module in modules.values() for t in module._parameters.values() if t is not None)
    if all(not tensor.dim() or names[id(tensor)] in touched for tensor in own_parameters):
        return found, hints
    paths = [path for path in modules if path]
    structures = {path: _structure(modules[path]) for path in paths}
    own = {path: _tensors(modules[path]) for path in paths}
    inside = {path: {names[id(tensor)] for tensor in own[path].values()} for path in paths}
    ran = {path: inside[path].intersection(touched) for path in paths}
    for path in paths:
        missed = [t for t in own[path].values() if isinstance(t, nn.Parameter) and names[id(t)] not in touched]
        if not any(tensor.dim() for tensor in missed) or any(_overlap(path, copy.path) for copy in found):
            continue
        alike = [
            other
            for other in paths
            if ran[other]
            and structures[other] == structures[path]
            and ran[path] <= ran[other]  # it may share what ran: tied weights
            and not _overlap(path, other)
        ]
        words = AVERAGED if len(structures[path].types) == 1 else PAIRED
        named = [
            other
            for other in alike
            if _stem(other, words) == _stem(path, words)
            and ran[_parting(path, other)] <= ran[_parting(other, path)]
            and structures[_parting(path, other)].agrees(structures[_parting(other, path)])
        ]
        if len(named) == 1:
            found.append(_pair(own, names, path, named[0], run=False, declared=False))
        elif len(alike) == 1 and len(structures[path].types) > 1:
            if not _shares_units(inside[alike[0]], parameters):
                found.append(_pair(own, names, path, alike[0], run=False, declared=False))
            else:
                hints.append(
                    f"{path} was never run and stays whole, though {alike[0]} has the same structure; if it follows "
                    f"that one, declare it: momentum_copies={{{path!r}: {alike[0]!r}}}"
                )
    return found, hints


def _parting(path: str, other: str) -> str:
    """Returns the first part of a path, up to the word in which it differs from another path."""
    own, others = path.split("."), other.split(".")
    same = next((i for i, (a, b) in enumerate(zip(own, others, strict=False)) if a != b), len(own) - 1)
    return ".".join(own[: same + 1])


def _shares_units(inside: Collection[str], parameters: Mapping[str, tuple[Axis, ...]]) -> bool:
    """Tells whether some tensors have units that may leave in common with tensors that aren't among them."""

    def units(name: str) -> set[int]:
        found = (leaf for axis in parameters[name] for leaf in axes.leaves(axis))
        return {id(leaf) for leaf in found if leaf.size > 1 and leaf.reason is None}

    own = set().union(*map(units, inside))
    return any(not own.isdisjoint(units(name)) for name in parameters if name not in inside)


def _declared(
    modules: Mapping[str, nn.Module], names: Mapping[int, str], touched: Collection[str], copy: str, original: str
) -> MomentumCopy:
    for path in (copy, original):
        if path not in modules or not path:
            raise ArgumentError(
                "There is no such submodule.",
                where=f"momentum_copies: {path!r}",
                hint="give the dotted path of a copy and that of its original: {'teacher': 'student'}",
            )
    own = {path: _tensors(modules[path]) for path in (copy, original)}
    shapes = [{name: tuple(tensor.shape) for name, tensor in own[path].items()} for path in (copy, original)]
    if shapes[0] != shapes[1] or _overlap(copy, original):
        other = sorted(name for name in {*shapes[0], *shapes[1]} if shapes[0].get(name) != shapes[1].get(name))
        raise ArgumentError(
            "A momentum copy needs the parameters and buffers of its original.",
            where=f"momentum_copies: {copy!r} and {original!r}",
            why=f"they differ in {', '.join(other[:3])}" if other else "one of them is part of the other",
        )
    ran = {path: any(names[id(tensor)] in touched for tensor in own[path].values()) for path in (copy, original)}
    if not ran[original]:
        raise ArgumentError(
            "The original of a momentum copy was never run.",
            where=f"momentum_copies: {copy!r} and {original!r}",
            why=f"what {original} may lose isn't known",
            hint=f"turn it around: {{{original!r}: {copy!r}}}" if ran[copy] else "pass example inputs that run it",
        )
    return _pair(own, names, copy, original, run=ran[copy], declared=True)


def _pair(
    own: Mapping[str, Mapping[str, torch.Tensor]],
    names: Mapping[int, str],
    path: str,
    original: str,
    *,
    run: bool,
    declared: bool,
) -> MomentumCopy:
    pairs = {names[id(tensor)]: names[id(own[original][name])] for name, tensor in own[path].items()}
    return MomentumCopy(path, original, {a: b for a, b in pairs.items() if a != b}, run, declared)


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    parameters: Iterable[tuple[str, torch.Tensor]] = module.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(module.named_buffers(remove_duplicate=False))}


def _structure(module: nn.Module) -> _Structure:
    modules = list(module.named_modules(remove_duplicate=False))
    numbers = [
        (name, key, value)
        for name, each in modules
        for key, value in sorted(vars(each).items())
        if key != "training" and (isinstance(value, int) or (isinstance(value, tuple) and all(map(_is_int, value))))
    ]
    return _Structure(
        tuple((name, type(each)) for name, each in modules),
        tuple(numbers),
        tuple((name, tuple(t.shape), isinstance(t, nn.Parameter)) for name, t in sorted(_tensors(module).items())),
    )


def _is_int(value: object) -> bool:
    return isinstance(value, int)


def _overlap(path: str, other: str) -> bool:
    """Tells whether one of two paths lies in the other, or is the same."""
    shorter, longer = sorted((path, other), key=len)
    return longer == shorter or longer.startswith(shorter + ".")


def _stem(path: str, marks: Collection[str]) -> tuple[str, ...]:
    """The words of a path without those that tell copies and originals apart."""
    words = re.findall(r"[a-z]+|\d+|[A-Z][a-z]*", path)
    return tuple(word.lower() for word in words if word.lower() not in marks)


def unrun_tensors(copies: Iterable[MomentumCopy]) -> dict[str, str]:
    """Returns the tensors of copies that no recording ran: canonical name to that of the original's."""
    return {name: original for copy in copies if not copy.run for name, original in copy.tensors.items()}


def tie_run(copies: Iterable[MomentumCopy], parameters: Mapping[str, tuple[Axis, ...]]) -> None:
    """Ties the axes of copies that a recording ran to those of their originals; what can't mean the same is pinned."""
    for copy in copies:
        for name, original in copy.tensors.items() if copy.run else ():
            for own, other in zip(parameters[name], parameters[original], strict=True):
                try:
                    axes.tie(own, other)
                except AxisMismatchError as error:
                    for axis in (own, other):
                        axes.pin(axis, Reason(f"{copy.path} and {copy.original} can't lose the same: {error}"))


def mirrored_edits(
    copies: Iterable[MomentumCopy], modules: Mapping[str, nn.Module], edits: Sequence[AttributeEdit]
) -> tuple[AttributeEdit, ...]:
    """Adds to the attributes that change those of copies that no recording ran, as in their originals."""
    found = {(edit.module, edit.attribute): edit for edit in edits}
    for copy in copies:
        for edit in edits if not copy.run else ():
            place = copy.place(edit.module)
            if place is not None and edit.attribute in vars(modules[place]):
                found.setdefault((place, edit.attribute), attrs.evolve(edit, module=place))
    return tuple(found.values())


def mirrored_rescales(copies: Iterable[MomentumCopy], rescales: Sequence[Rescale]) -> tuple[Rescale, ...]:
    """Adds to the rows that are scaled those of copies that no recording ran, as in their originals."""
    found = list(rescales)
    for copy in copies:
        names = {original: name for name, original in unrun_tensors([copy]).items()}
        found += [attrs.evolve(r, parameter=names[r.parameter]) for r in rescales if r.parameter in names]
    return tuple(found)


def mirrored_stubs(copies: Iterable[MomentumCopy], stubs: Sequence[Stub]) -> tuple[Stub, ...]:
    """Adds to the modules that go those of copies that no recording ran, as in their originals."""
    found = {stub.module: stub for stub in stubs}
    for copy in copies:
        for stub in stubs if not copy.run else ():
            place = copy.place(stub.module)
            if place is not None:
                found.setdefault(place, attrs.evolve(stub, module=place))
    return tuple(found.values())


def mirrored_names(copies: Iterable[MomentumCopy], names: Sequence[str]) -> tuple[str, ...]:
    """Adds to the tensors that go those of copies that no recording ran, as in their originals."""
    own = set(names)
    return tuple(dict.fromkeys([*names, *(name for name, other in unrun_tensors(copies).items() if other in own)]))


def one_sided(copies: Iterable[MomentumCopy], stubs: Sequence[Stub]) -> tuple[MomentumCopy, str] | None:
    """Finds a copy that a recording ran and that would no longer have the modules of its original.

    Returns:
        The copy, and the path of a module that goes in one of the two only; None where there is none.
    """
    paths = {stub.module for stub in stubs}
    for copy in copies:
        if copy.run:
            mirrored = {place for path in paths if (place := copy.place(path)) is not None}
            inside = {path for path in paths if path.startswith(f"{copy.path}.")}
            if mirrored != inside:
                return copy, min(mirrored ^ inside)
    return None
