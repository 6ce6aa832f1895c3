"""Distributions with plugins, written where Python finds them, as an installer leaves them."""

from __future__ import annotations

import textwrap
from pathlib import Path

import attrs
import pytest

HEAD = "import torch\nfrom prunekit import plugin\nfrom torch import nn\n"
VERSION = "1.2"


@attrs.frozen
class Installed:
    """An installed distribution with one plugin.

    Attributes:
        name: Name of the plugin: ``"distribution:entry point"``.
        module: Name of its module.
        path: File of its module.
        declared: Its ``entry_points.txt``.
    """

    name: str
    module: str
    path: Path
    declared: Path

    @property
    def title(self) -> str:
        return f"{self.name} {VERSION}"

    def line_of(self, text: str) -> str:
        """Returns file and line of a text in the module; of the entry point where the text is ``"entry point"``."""
        path, wanted = (self.declared, "point =") if text == "entry point" else (self.path, text)
        lines = path.read_text().splitlines()
        return f"{path}:{next(number for number, line in enumerate(lines, 1) if wanted in line)}"


def install(
    folder: Path, patch: pytest.MonkeyPatch, name: str, source: str, *, head: str = HEAD, loads: str = "{module}"
) -> Installed:
    """Installs a distribution whose plugin is a module.

    Args:
        folder: Where it goes; it is put on the path.
        patch: Takes it off the path after the test.
        name: Name of the distribution.
        source: The module, without its imports.
        head: Imports that come first.
        loads: What the entry point names; ``{module}`` stands for the name of the module.
    """
    module = f"made_{folder.name}_{name}".replace("-", "_").lower()
    path, info = folder / f"{module}.py", folder / f"{name}-{VERSION}.dist-info"
    path.write_text(head + textwrap.dedent(source))
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {VERSION}\n")
    declared = info / "entry_points.txt"
    declared.write_text(f"[prunekit]\npoint = {loads.format(module=module)}\n")
    files = (path, declared, info / "METADATA", info / "RECORD")
    (info / "RECORD").write_text("".join(f"{file.relative_to(folder)},,\n" for file in files))
    patch.syspath_prepend(folder)
    return Installed(f"{name}:point", module, path, declared)
