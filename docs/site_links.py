"""Links of pages to files outside of docs/ (benchmarks, the changelog) lead to the repository on the site."""

from __future__ import annotations

import posixpath
import re
from typing import Any

LINK = re.compile(r"(?<=\]\()((?:\.\./)+[^)\s]+)(?=\))")


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Rewrites relative links that leave the folder of the pages; mkdocs calls it for each page."""
    folder = posixpath.dirname(page.file.src_uri)

    def absolute(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", folder, found[1]))
        return found[1] if path.startswith("docs/") else f"{config.repo_url.rstrip('/')}/blob/main/{path}"

    return LINK.sub(absolute, markdown)
