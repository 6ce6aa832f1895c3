"""The part of the page of hooks that says what the docstrings of the specifications say.

``python -m tests.docs.hook_pages`` writes it into docs/hooks.md; a test compares.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap

from prunekit_core.plugins import hookspecs
from prunekit_core.plugins.registry import HOOKS
from tests.docs.snippets import ROOT

PAGE = ROOT / "docs/hooks.md"
PARTS = ("Called", "Returns", "Empty", "Precedence", "Forbidden")
START, END = "<!-- from hookspecs.py -->", "<!-- end -->"
WIDTH = 120


def signatures() -> dict[str, str]:
    """Writes every hook with what it returns."""
    functions = {node.name: node for node in ast.parse(inspect.getsource(hookspecs)).body if _is_function(node)}
    assert sorted(functions) == sorted(HOOKS)
    found = {}
    for name in HOOKS:
        node = functions[name]
        assert node.returns is not None, f"{name} says nothing about what it returns"
        assert not node.args.args, f"{name} takes arguments"
        found[name] = f"{name}() -> {ast.unparse(node.returns)}"
    return found


def _is_function(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef)


def contract(hook: str) -> dict[str, str]:
    """Reads the docstring of a hook: the first line, and its parts in order."""
    text = inspect.cleandoc(getattr(hookspecs, hook).__doc__)
    summary, _, rest = text.partition("\n\n")
    found = {"": summary}
    for block in re.split(r"\n\n(?=\w+:\n)", rest):
        title, _, body = block.partition(":\n")
        found[title] = " ".join(textwrap.dedent(body).split())
    assert tuple(found) == ("", *PARTS), f"{hook}: the docstring has the parts {list(found)}, not {PARTS}"
    return {title: body.replace("``", "`") for title, body in found.items()}


def generated(hook: str) -> str:
    """Writes what the page says about a hook by its docstring."""
    said = contract(hook)
    words = {"Empty": "An empty mapping, or none at all"}
    lines = [said[""], "", "- *Arguments:* none."]
    for part in PARTS:
        text = f"- *{words.get(part, part)}:* {said[part]}"
        lines.extend(textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))
    return "\n".join([START, "", *lines, "", END])


def rewritten(page: str) -> str:
    """Puts the headings and what is generated into the page."""
    for hook, signature in signatures().items():
        section = rf"^## `{hook}\(\)[^\n]*`\n\n(?:{re.escape(START)}.*?{re.escape(END)}\n\n)?"
        page, count = re.subn(
            section,
            lambda _, hook=hook, signature=signature: f"## `{signature}`\n\n{generated(hook)}\n\n",
            page,
            flags=re.MULTILINE | re.DOTALL,
        )
        assert count == 1, f"docs/hooks.md has {count} sections for {hook}"
    return page


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text()))
