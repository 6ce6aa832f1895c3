"""Fresh virtual environments that see what is installed here, so that nothing is downloaded."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import attrs


def call(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a program with one torch thread; fails with everything it printed unless it succeeds."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PRUNEKIT", "PYTEST"))}
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**clean, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done


@attrs.frozen
class Environment:
    """A virtual environment.

    Attributes:
        root: Its folder.
    """

    root: Path

    @classmethod
    def create(cls, root: Path) -> Environment:
        """Makes an environment with nothing of its own."""
        call(sys.executable, "-m", "venv", "--without-pip", root, cwd=root.parent)
        made = cls(root)
        # a .pth file alone would not run those of the other folder, such as that of an editable install
        inherited = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        lines = [f"import site; site.addsitedir({path!r})" for path in sorted(inherited)]
        own = made.python("-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=root.parent).strip()
        (Path(own) / "inherited.pth").write_text("\n".join(lines) + "\n")
        return made

    @property
    def scripts(self) -> Path:
        """Where its programs are."""
        return self.root / ("Scripts" if os.name == "nt" else "bin")

    def files(self) -> set[str]:
        """Lists everything in it but bytecode."""
        paths = (path.relative_to(self.root) for path in self.root.rglob("*") if path.is_file())
        return {str(path) for path in paths if path.suffix != ".pyc"}

    def python(self, *arguments: str | Path, cwd: Path) -> str:
        """Runs its interpreter and returns what it printed."""
        return call(self.scripts / "python", *arguments, cwd=cwd).stdout

    def pip(self, *arguments: str | Path, cwd: Path) -> None:
        """Runs the pip of this process for it, without a network."""
        call(sys.executable, "-m", "pip", "--python", self.scripts / "python", *arguments, cwd=cwd)


def build_wheel(source: Path, target: Path) -> Path:
    """Builds the wheel of a package with the setuptools that are here."""
    options = ("--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir")
    call(sys.executable, "-m", "pip", "wheel", *options, target, source, cwd=source)
    (wheel,) = target.glob("*.whl")
    return wheel
