"""Submodules that follow others by a moving average: momentum encoders, target networks, teachers.

A copy has to lose what its original loses, or the next average of the two fails. Copies that no recording ran are found
by their structure and names; copies that the forward runs as well are declared.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence

import attrs
import torch
from torch import nn

from prunekit_core import axes
from prunekit_core.axes import Axis, AxisMismatchError, Reason
from prunekit_core.edits import AttributeEdit, Rescale
from prunekit_core.errors import ArgumentError

MARKS = frozenset(
    [
        "average",
        "averaged",
        "avg",
        "copy",
        "delayed",
        "ema",
        "fast",
        "frozen",
        "k",
        "key",
        "local",
        "m",
        "main",
        "mean",
        "momentum",
        "old",
        "online",
        "q",
        "query",
        "slow",
        "smoothed",
        "student",
        "target",
        "targ",
        "teacher",
        "tgt",
    ]
)
"""Words that tell copies and originals apart: ``critic_target`` and ``critic``, ``encoder_k`` and ``encoder_q``."""


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
    tensors: tuple[tuple[str, tuple[int, ...], bool], ...]


def momentum_copies(
    modules: Mapping[str, nn.Module],
    names: Mapping[int, str],
    touched: Container[str],
    declared: Mapping[str, str],
) -> list[MomentumCopy]:
    """Finds the momentum copies among the submodules of a model, those declared first.

    A submodule that no recording touched is a copy of one that was touched, if all their modules are of the same
    classes and all parameters and buffers have the same names and shapes, and if only one submodule is like that or
    only one whose path differs in nothing but words such as ``target``. A single layer needs such a path.

    Args:
        modules: Path to module.
        names: Canonical names of parameters and buffers, by the tensors' identity.
        touched: Canonical names of those that some operation used.
        declared: Path of a copy to that of its original.

    Raises:
        ArgumentError: What was declared doesn't exist, or isn't of the same structure.
    """
    found = [_declared(modules, names, touched, copy, original) for copy, original in declared.items()]
    if all(name in touched for name in names.values()):
        return found
    structures = {path: _structure(module) for path, module in modules.items() if path}
    own = {path: _tensors(module) for path, module in modules.items() if path}
    used = {path: any(names[id(t)] in touched for t in tensors.values()) for path, tensors in own.items()}
    for path in structures:
        whole = any(shape for _, shape, parameter in structures[path].tensors if parameter)
        if used[path] or not whole or any(_overlap(path, copy.path) for copy in found):
            continue
        alike = [
            other
            for other, structure in structures.items()
            if used[other] and structure == structures[path] and not _overlap(path, other)
        ]
        by_name = [other for other in alike if _stem(other) == _stem(path)]
        simple = len(structures[path].types) == 1
        chosen = by_name if simple or len(alike) > 1 else alike
        if len(chosen) == 1:
            found.append(_pair(own, names, path, chosen[0], run=False, declared=False))
    return found


def _declared(
    modules: Mapping[str, nn.Module], names: Mapping[int, str], touched: Container[str], copy: str, original: str
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
    run = any(names[id(tensor)] in touched for tensor in own[copy].values())
    return _pair(own, names, copy, original, run=run, declared=True)


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
    return _Structure(
        tuple((name, type(each)) for name, each in module.named_modules(remove_duplicate=False)),
        tuple((name, tuple(t.shape), isinstance(t, nn.Parameter)) for name, t in sorted(_tensors(module).items())),
    )


def _overlap(path: str, other: str) -> bool:
    """Tells whether one of two paths lies in the other, or is the same."""
    shorter, longer = sorted((path, other), key=len)
    return longer == shorter or longer.startswith(shorter + ".")


def _stem(path: str) -> tuple[str, ...]:
    """The words of a path without those that tell copies and originals apart."""
    words = re.findall(r"[a-z]+|\d+|[A-Z][a-z]*", path)
    return tuple(word.lower() for word in words if word.lower() not in MARKS)


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
