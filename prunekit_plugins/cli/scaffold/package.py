"""The files of a new plugin, as text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from importlib import resources
from string import Template

import attrs

from prunekit.plugin import HOOKS
from prunekit_plugins.cli.scaffold.kinds import Kind

FROM = {
    "collections.abc": ("Callable", "Mapping"),
    "typing": ("Any",),
    "prunekit": ("Registry",),
    "prunekit.command": ("LazyCommand",),
    "prunekit.plugin": ("LayerType", "Replacement", "Rule", "hookimpl"),
    "torch": ("nn",),
}
"""Where the names come from that the assembled modules use; the first two are Python's own."""
STANDARD = ("collections.abc", "typing")


@attrs.frozen
class NewPlugin:
    """A plugin that is to be written.

    Attributes:
        name: Name of the distribution.
        package: Name of the package, which is imported.
        kinds: What it brings, in the order of `KINDS`.
    """

    name: str
    package: str
    kinds: tuple[Kind, ...]

    def files(self) -> dict[str, str]:
        """Returns every file by its path in the plugin's folder."""
        source = f"src/{self.package}"
        found = {
            "pyproject.toml": self._filled("pyproject.toml"),
            "README.md": self._filled("README.md"),
            f"{source}/__init__.py": '"""A plugin for prunekit; `plugin.py` says what it brings."""\n',
            f"{source}/plugin.py": self._plugin(),
            "tests/conftest.py": self._filled("conftest.py"),
            "tests/test_plugin.py": self._filled("test_plugin.py"),
        }
        if self._checked():
            found[f"{source}/checks.py"] = self._checks()
        for kind in self.kinds:
            found[f"{source}/{kind.name}.py"] = self._filled(f"{kind.name}.py")
            found[f"tests/test_{kind.name}.py"] = self._filled(f"test_{kind.name}.py")
        return found

    def _filled(self, template: str) -> str:
        return self._put(resources.files(__package__).joinpath(f"templates/{template}.txt").read_text("utf-8"))

    def _put(self, text: str) -> str:
        keys = sorted({self._key(kind) for kind in self.kinds})
        extra = "[cli]" if any(kind.name == "command" for kind in self.kinds) else ""
        return Template(text).substitute(
            name=self.name,
            package=self.package,
            brings=self._brings(),
            dependencies=f'"prunekit{extra}", "torch"',
            listing="\n".join(f"- {kind.words}: `src/{self.package}/{kind.name}.py`" for kind in self.kinds),
            expected="\n".join(f'        ("{key}", Outcome.PASSED),' for key in keys),
        )

    def _key(self, kind: Kind) -> str:
        return Template(kind.key).substitute(package=self.package)

    def _brings(self) -> str:
        words = [kind.words for kind in self.kinds]
        return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))

    def _checked(self) -> tuple[Kind, ...]:
        return tuple(kind for kind in self.kinds if kind.check)

    def _plugin(self) -> str:
        """The module of the entry point: one function for each hook."""
        functions = []
        for hook in HOOKS:
            own = [kind for kind in self.kinds if kind.hook == hook]
            if own:
                says = " and ".join(kind.words for kind in own).capitalize()
                functions.append(_function(hook, own[0].returns, f"{says}.", [kind.entry for kind in own]))
        owned = {kind.name: kind.imports for kind in self.kinds if kind.imports}
        if self._checked():
            doc = "How what can't be checked as it is passes the kit: prunekit plugins NAME --check."
            returns = "Mapping[tuple[str, Any], Callable[..., None]]"
            functions.append(f'@hookimpl\ndef prunekit_checks() -> {returns}:\n    """{doc}"""\n    return CHECKS')
            owned["checks"] = ("CHECKS",)
        return self._module("What prunekit finds in this package.", functions, owned)

    def _checks(self) -> str:
        """The module of checks: one function for each kind that needs something to be tried on."""
        functions = []
        for kind in self._checked():
            kit = ", ".join(_sorted(set(re.findall(r"\b(?:check_\w+|sample)\b", kind.check))))
            functions.append(
                f"def _check_{kind.name}(registry: Registry) -> None:\n"
                f"    from prunekit.testing import {kit}\n\n    {kind.check}"
            )
        pairs = [f'("{kind.hook}", {kind.entry.partition(": ")[0]}): _check_{kind.name}' for kind in self._checked()]
        lines = "".join(f"    {pair},\n" for pair in pairs)
        functions.append(f"CHECKS: Mapping[tuple[str, Any], Callable[..., None]] = {{\n{lines}}}")
        owned = {kind.name: tuple({*kind.checked, *re.findall(r"^[A-Z]\w+", kind.entry)}) for kind in self._checked()}
        doc = "How what needs a layer, tensors or a file to be tried on is proven."
        return self._module(doc, functions, owned)

    def _module(self, doc: str, functions: Sequence[str], owned: dict[str, tuple[str, ...]]) -> str:
        """Puts a module together: its docstring, the imports that it needs, its functions."""
        body = "\n\n\n".join(functions)
        used = {home: [name for name in names if re.search(rf"\b{name}\b", body)] for home, names in FROM.items()}
        plain = ["import torch"] if re.search(r"\btorch\.", body) else []
        blocks = [
            ["from __future__ import annotations"],
            [_import(home, used[home]) for home in STANDARD if used[home]],
            [*plain, *(_import(home, used[home]) for home in FROM if used[home] and home not in STANDARD)],
            [_import(f"$package.{module}", names) for module, names in sorted(owned.items())],
        ]
        imports = "\n\n".join("\n".join(block) for block in blocks if block)
        return self._put(f'"""{doc}"""\n\n{imports}\n\n\n{body}\n')


def _function(hook: str, returns: str, doc: str, entries: Sequence[str]) -> str:
    if len(entries) == 1:
        value = f"{{{entries[0]}}}"
    else:
        value = "{\n" + "".join(f"        {entry},\n" for entry in entries) + "    }"
    return f'@hookimpl\ndef {hook}() -> {returns}:\n    """{doc}"""\n    return {value}'


def _import(home: str, names: Iterable[str]) -> str:
    return f"from {home} import {', '.join(_sorted(names))}"


def _sorted(names: Iterable[str]) -> list[str]:
    """Sorts names as linters do: constants, classes, functions."""
    return sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
