"""Dotted names of modules and tensors before and after modules leave a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import attrs
from torch import nn

from prunekit_core.modules.tree import ModelTree


@attrs.frozen
class Tied:
    """A tensor, or a module, with several names, of which some go.

    Attributes:
        name: Its canonical name afterwards; empty where it goes with all of them.
        names: All names that it has before, the canonical one first.
    """

    name: str
    names: tuple[str, ...]


@attrs.frozen
class Renaming:
    """What names become when modules leave a model.

    Attributes:
        removed: Paths of the modules that are exchanged for others without tensors of their own.
        kept: Paths of modules in them that stay.
        tied: Tensors and modules that have names in these modules, and others.
        renamed: Path of an entry of a list of modules that gets another number, to the path that it would have if only
            this list changed; what is in it follows.
        deleted: Paths of entries that leave their lists.
    """

    removed: frozenset[str]
    kept: frozenset[str]
    tied: tuple[Tied, ...]
    renamed: Mapping[str, str] = attrs.field(factory=dict)
    deleted: frozenset[str] = frozenset()
    _tied: Mapping[str, Tied] = attrs.field(init=False)
    _origins: Mapping[str, str] = attrs.field(init=False)
    _olds: Mapping[str, str] = attrs.field(init=False)
    _empty: bool = attrs.field(init=False)  # most models lose no modules, and all of their names are asked for

    def __attrs_post_init__(self) -> None:
        origins = {tied.name: tied.names[0] for tied in self.tied if tied.name}
        object.__setattr__(self, "_origins", origins)
        object.__setattr__(self, "_olds", {new: old for old, new in self.renamed.items()})
        object.__setattr__(self, "_empty", not (self.removed or self.tied or self.renamed or self.deleted))
        object.__setattr__(self, "_tied", {name: tied for tied in self.tied for name in tied.names})

    def after(self, name: str) -> str | None:
        """Returns what a tensor's canonical name, or a module's path, is afterwards; None where nothing has it.

        Any name of a tied tensor leads to its canonical one.
        """
        if self._empty:
            return name
        for prefix, rest in _prefixes(name):
            if prefix in self._tied:
                found = self._tied[prefix].name
                return found + rest if found else None
        return self.place(name)

    def place(self, name: str) -> str | None:
        """Returns what becomes of a single name, whatever others a tensor has; None where it goes."""
        lost = self._tied.get(name)
        if lost is not None and not lost.name:
            return None
        for prefix, rest in _prefixes(name):
            if prefix in self.deleted or (rest and prefix in self.removed and prefix not in self.kept):
                return None
            if prefix in self.kept:
                break
        return self.numbered(name)

    def vacated(self) -> tuple[str, ...]:
        """Lists the paths in lists that stay that nothing has afterwards, as these are shorter: the last ones."""
        taken = set(map(self._in_its_list, self.renamed.values()))
        paths = map(self._in_its_list, (*self.deleted, *self.renamed))
        return tuple(path for path in paths if path is not None and path not in taken)

    def _in_its_list(self, path: str) -> str | None:
        """Returns the path of an entry, its own number left as it is, in its list afterwards; None if that goes."""
        container, _, number = path.rpartition(".")
        now = self.place(container)
        return None if now is None else f"{now}.{number}".lstrip(".")

    def before(self, name: str) -> str:
        """Returns the name before of what has a name afterwards: of a tensor, the canonical one."""
        if self._empty:
            return name
        for prefix, rest in _prefixes(name):
            if prefix in self._origins:
                return self._origins[prefix] + rest
        return self.unnumbered(name)

    def numbered(self, path: str) -> str:
        """Returns a path with the numbers that entries of lists have afterwards."""
        parts = path.split(".")
        found = (".".join(parts[: depth + 1]) for depth in range(len(parts)))
        return ".".join(self.renamed.get(prefix, prefix).rpartition(".")[2] for prefix in found)

    def unnumbered(self, path: str) -> str:
        """Returns a path afterwards with the numbers that entries of lists have before."""
        parts: list[str] = []
        for part in path.split("."):
            prefix = ".".join([*parts, part])
            parts.append(self._olds.get(prefix, prefix).rpartition(".")[2])
        return ".".join(parts)


def _prefixes(name: str) -> Iterator[tuple[str, str]]:
    """Yields a dotted name and the paths around it, innermost first, each with what follows."""
    end = len(name)
    while end > 0:
        yield name[:end], name[end:]
        end = name.rfind(".", 0, end)


def tied_in(model: nn.Module, away: Renaming, gone: Iterable[str]) -> tuple[Tied, ...]:
    """Lists the tensors and modules of several names of which some lie in modules that go.

    Args:
        model: The model, with all of its modules.
        away: The modules that go.
        gone: Canonical names of the tensors that go.
    """
    if not away.removed:
        return ()
    elsewhere, lost = _other_paths(model), set(gone)
    others = [other for path in away.removed for other in elsewhere.get(path, ())]
    away = attrs.evolve(away, removed=away.removed.union(others))
    found = []
    for canonical, more in (*ModelTree(model).other_names().items(), *elsewhere.items()):
        names = (canonical, *more)
        left = [name for name in names if away.place(name) is not None]
        if canonical in lost:
            found.append(Tied("", names))
        elif len(left) < len(names) and left:
            found.append(Tied(left[0], names))
    return tuple(found)


def _other_paths(model: nn.Module) -> dict[str, list[str]]:
    """Lists the further paths of every module that has several, by the first one."""
    first: dict[int, str] = {}
    found: dict[str, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if first.setdefault(id(module), path) != path:
            found.setdefault(first[id(module)], []).append(path)
    return found
