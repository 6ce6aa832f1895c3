"""The console script. It imports typer and rich only after it has made sure that they are there."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: The words after ``prunekit``; None for those of the process.

    Returns:
        0, 1 (it failed; the reason is on stderr), 2 (wrong usage) or 130 (Ctrl-C).
    """
    try:
        return _main(arguments)
    except KeyboardInterrupt:  # before a command was at work, which would say so itself
        print("interrupted", file=sys.stderr)
        return 130


def _main(arguments: Sequence[str] | None) -> int:
    missing = [name for name in ("typer", "rich") if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"The command line needs {' and '.join(missing)}.\n"
            '  what to do: pip install "prunekit[cli]"; the library itself (import prunekit) works without',
            file=sys.stderr,
        )
        return 1
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words in ([], ["--help"], ["--version"]):
        from prunekit_plugins.cli.overview import overview

        code = overview(words)
        if code is not None:
            return code
    from prunekit_plugins.cli.app import run

    return run(arguments)
