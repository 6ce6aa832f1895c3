"""The site of the pages: built without a warning, every page in its navigation, in the groups of the first page."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.docs.snippets import ROOT

INDEX = (ROOT / "docs/index.md").read_text()


def navigation() -> list[dict[str, Any]]:
    yaml: Any = pytest.importorskip("yaml")
    found: list[dict[str, Any]] = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    return found


def pages(part: Any) -> list[str]:
    if isinstance(part, str):
        return [part]
    return [page for inner in (part.values() if isinstance(part, dict) else part) for page in pages(inner)]


def test_the_navigation_has_the_groups_of_the_first_page() -> None:
    start, *groups = navigation()
    assert pages(start) == ["index.md"]
    written = re.split(r"^## ", INDEX, flags=re.MULTILINE)[1:]
    assert [next(iter(group)) for group in groups] == [text.splitlines()[0] for text in written]
    for group, text in zip(groups, written, strict=True):
        linked = list(dict.fromkeys(re.findall(r"\]\(([\w-]+\.md)\)", text)))
        assert [page for page in pages(group) if "/" not in page] == linked


def test_every_page_is_there_once() -> None:
    found = pages(navigation())
    docs = ROOT / "docs"
    assert sorted(found) == sorted(path.relative_to(docs).as_posix() for path in docs.rglob("*.md"))


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs prunekit[docs]")
    pytest.importorskip("material", reason="needs prunekit[docs]")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site/experts.html").read_text()
    assert '<h1 id="experts">' in page
    assert 'href="zoo-experts.html"' in page


def test_links_out_of_the_folder_lead_to_the_repository() -> None:
    spec = importlib.util.spec_from_file_location("site_links", ROOT / "docs/site_links.py")
    assert spec is not None
    assert spec.loader is not None
    rewrite = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rewrite)
    page = type("Page", (), {"file": type("File", (), {"src_uri": "criteria/wanda.md"})})
    config = type("Config", (), {"repo_url": "https://example.org/repo/"})
    text = "[a](../calibration.md#x) [b](../../CHANGELOG.md) [c](other.md)"
    assert rewrite.on_page_markdown(text, page=page, config=config, files=None) == (
        "[a](../calibration.md#x) [b](https://example.org/repo/blob/main/CHANGELOG.md) [c](other.md)"
    )
