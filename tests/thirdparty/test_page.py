"""The package of the page for authors: made from nothing but the page, built, installed, tested by its own tests."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.thirdparty.environment import Environment, build_wheel

PAGE = Path(__file__).resolve().parents[2] / "docs/writing-a-plugin.md"
FILE = re.compile(
    r"^`(?P<path>[\w./]+)`:\n\n(?:<!-- [^\n]* -->\n\n)?```\w+\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


def test_the_package_of_the_page_works(tmp_path: Path) -> None:
    source, dist = tmp_path / "source", tmp_path / "dist"
    files = {found["path"]: found["text"] for found in FILE.finditer(PAGE.read_text())}
    assert list(files) == ["pyproject.toml", "src/gated/__init__.py", "src/gated/plugin.py", "test_gated.py"]
    for name, text in files.items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    environment = Environment.create(tmp_path / "venv")
    environment.pip("install", "--no-deps", "--no-index", build_wheel(source, dist), cwd=tmp_path)
    printed = environment.python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", cwd=source)
    assert "3 passed" in printed
    console = "import sys; from prunekit_plugins.cli.entry import main; sys.exit(main())"
    plugins = json.loads(environment.python("-c", console, "plugins", "--json", cwd=tmp_path))["plugins"]
    assert {"name": "gated:plugin", "version": "0.1.0", "state": "loaded"}.items() <= next(
        plugin.items() for plugin in plugins if plugin["distribution"] == "gated"
    )
