"""Engines in processes of their own: what one aborts on is an error, and what it prints isn't shown."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunekit_plugins.export.comparison import ExportError


def run_engine(script: str, request: Mapping[str, Any], engine: str) -> Any:
    """Runs a script beside this file in a process of its own.

    Args:
        script: Name of the file. It is called with the names of two files: the request, and where the answer goes.
        request: What it is asked, as JSON.
        engine: What the engine is called in messages.

    Returns:
        The answer, out of JSON.

    Raises:
        ExportError: The process failed: the engine can't load the file, or not run it.
    """
    with tempfile.TemporaryDirectory(prefix="prunekit-") as folder:
        question, answer = Path(folder) / "request.json", Path(folder) / "answer.json"
        question.write_text(json.dumps(request))
        command = [sys.executable, str(Path(__file__).with_name(script)), str(question), str(answer)]
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if ended.returncode or not answer.is_file():
            lines = [line.strip() for line in (ended.stderr + ended.stdout).splitlines() if line.strip()]
            telling = [line for line in lines if "error" in line.lower() or "assert" in line.lower()]
            why = "; ".join((telling or lines)[-3:])[:400] or f"its process ended with {ended.returncode}"
            raise ExportError(
                "The engine can't run what was exported; nothing was written.",
                where=engine,
                why=why,
                hint="try another version of the engine, or the unpruned model",
            )
        return json.loads(answer.read_text())
