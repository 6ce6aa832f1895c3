"""The environment of its own that Torch-Pruning lives in, made when first needed; prunekit never depends on it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

DEFAULT = Path.home() / ".cache" / "prunekit-bench"
REQUIREMENTS = ("torch", "torchvision", "torch-pruning==1.6.1")
PROBE = (
    "import importlib, json, sys; from importlib.metadata import version; names = sys.argv[1:];"
    "[importlib.import_module(name.replace('-', '_')) for name in names];"
    "print(json.dumps({name: version(name) for name in names}))"
)


def python_in(folder: Path) -> Path:
    """Returns the interpreter of a virtual environment."""
    return folder / "Scripts" / "python.exe" if os.name == "nt" else folder / "bin" / "python"


def probe(python: Path, requirements: Sequence[str] = REQUIREMENTS) -> str | None:
    """Returns the versions found in an environment as JSON, or None where something is missing."""
    if not python.exists():
        return None
    names = [requirement.partition("==")[0] for requirement in requirements]
    found = subprocess.run([python, "-c", PROBE, *names], capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else None


def ensure(folder: Path, requirements: Sequence[str] = REQUIREMENTS) -> tuple[Path, str]:
    """Makes the environment unless it is there.

    Args:
        folder: Where.
        requirements: What is installed into it.

    Returns:
        Its interpreter, and the versions in it as JSON.

    Raises:
        SystemExit: It can't be made, or what was installed doesn't import.
    """
    python = python_in(folder)
    versions = probe(python, requirements)
    if versions is None:
        print(f"installing {', '.join(requirements)} into {folder}", file=sys.stderr)
        uv = shutil.which("uv")
        if uv:
            make = [uv, "venv", "--allow-existing", "--python", sys.executable, str(folder)]
            install = [uv, "pip", "install", "--python", str(python), *requirements]
        else:
            make = [sys.executable, "-m", "venv", str(folder)]
            install = [str(python), "-m", "pip", "install", *requirements]
        for command in (make, install):
            if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
                raise SystemExit(f"this failed: {' '.join(command)}")
        versions = probe(python, requirements)
    if versions is None:
        raise SystemExit(f"{', '.join(requirements)} don't import in {folder}; remove it and try again, or give --env")
    return python, versions
