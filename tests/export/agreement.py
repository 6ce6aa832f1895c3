"""A whole model and a pruned one in an engine: the whole one shows the engine's own rounding."""

from __future__ import annotations

from pathlib import Path

from prunekit_plugins.export import Exported, export_folder
from prunekit_plugins.export.engines import steps

ULP = 1e-6
"""The last place of a log-probability in single precision."""


def both(big: Path, small: Path, to: str) -> tuple[Exported, Exported]:
    """Exports a whole model and a pruned one, which have to agree within twice the engine's rounding."""
    before, after = (export_folder(folder, f"{folder}-{to}", to=to) for folder in (big, small))
    assert isinstance(before.check, steps.EngineCheck)
    assert isinstance(after.check, steps.EngineCheck)
    assert before.check.error < 1e-5
    assert after.check.error <= 2 * max(before.check.error, ULP)
    assert (after.check.prompt, after.check.steps) == (24, 10)
    return before, after
