"""Every snippet of the documents is run, and prints what the document says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.docs.snippets import DOCUMENTS, ROOT, blocks_of, run_document


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # as for a program that is started there
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


SLOW = (
    "docs/depth.md",
    "docs/halve-your-latency.md",
    "docs/reports.md",
    "docs/tutorial.md",
    "docs/writing-a-plugin.md",
)
FIGURES = "docs/recipes/"
"""Pages that `test_recipes` runs, for the figures that they make."""


def documents() -> Iterator[Any]:
    for path in DOCUMENTS:
        name = path.relative_to(ROOT).as_posix()
        if name.startswith(FIGURES):
            continue
        yield pytest.param(path, id=name, marks=[pytest.mark.slow] if name in SLOW else [])


@pytest.mark.parametrize("path", list(documents()))
def test_snippets_run_and_print_what_the_document_says(path: Path) -> None:
    document = path.read_text()
    run = run_document(document, str(path.relative_to(ROOT)))
    blocks = [block for block in blocks_of(document) if block.language in ("python", "console") and not block.skipped]
    assert run >= len(blocks)


def test_every_document_with_code_is_found() -> None:
    found = {path.relative_to(ROOT).as_posix() for path in DOCUMENTS}
    assert found == {"README.md"} | {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("**/*.md")}
    assert {"docs/criteria.md", "docs/criteria/taylor.md", *SLOW} <= found
    assert sum(block.language == "python" for path in DOCUMENTS for block in blocks_of(path.read_text())) > 20


WRONG = {
    "another output": "```python\nprint(1)\n```\n\n```text\n2\n```\n",
    "an output cut short": "```python\nprint('a'); print('b')\n```\n\n```text\na\n```\n",
    "an exception": "```python\nassert False\n```\n",
    "a warning": "```python\nimport warnings; warnings.warn('old')\n```\n",
    "another program": "```console\n$ rm -r /\n```\n",
    "an output of a file": "<!-- file: a.py -->\n```python\nprint(1)\n```\n\n```console\n$ python a.py\n2\n```\n",
    "a command with options": "```console\n$ python -c 1\n```\n",
    "a command that fails": "```console\n$ prunekit prune nonsense\n```\n",
    "a block without an end": "```python\nx = 1\n",
    "a skip without a reason": "<!-- not run: -->\n\n```python\nassert False\n```\n",
}


@pytest.mark.parametrize("document", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_document_is_told(document: str) -> None:
    with pytest.raises((AssertionError, UserWarning)):
        run_document(document, "wrong.md")


def test_blocks_share_names_and_dots_stand_for_anything() -> None:
    document = "```python\nx = 2\n```\n\n```python\nprint(x, 'left', 3)\n```\n\n```text\n2 ... 3\n```\n"
    assert run_document(document, "right.md") == 2


def test_a_block_with_a_visible_reason_is_left_out() -> None:
    document = "<!-- not run: needs a camera -->\n```python\nassert False\n```\n"
    assert run_document(document, "skipped.md") == 0


def test_files_and_fresh_processes() -> None:
    document = (
        "<!-- file: part.py -->\n```python\nimport os\nprint('in', os.getpid())\n```\n\n"
        "```console\n$ python part.py\nin ...\n```\n\n```python\nimport part\n```\n\n```text\nin ...\n```\n"
    )
    assert run_document(document, "files.md") == 3
    with pytest.raises(AssertionError, match=r"ended with 1: [^$]*ZeroDivisionError"):
        run_document(document.replace("print('in'", "1 / 0; print('in'"), "files.md")


def test_text_that_follows_prose_is_no_output() -> None:
    assert run_document("```python\nprint(1)\n```\n\nA drawing:\n\n```text\n2\n```\n", "drawing.md") == 1
