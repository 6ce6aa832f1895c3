"""The command line, stopped at a given moment: ``interrupted MOMENT MARK COMMAND...`` writes MARK and waits there."""

from __future__ import annotations

import importlib
import signal
import sys
import time
from pathlib import Path
from typing import Any

MOMENTS = {
    "loading the plugins": ("prunekit_core.plugins.registry", "load_installed"),
    "building": ("prunekit_plugins.cli.commands.prune", "build"),
    "rehearsing": ("prunekit_core.rehearse.make_plan", "rehearse"),
    "cutting": ("prunekit_core.plans.apply", "Application.prepare"),
    "writing": ("prunekit_core.files", "Files.commit"),
    "renaming": ("prunekit_core.files", "os.replace"),
}


def stop_at(moment: str, mark: Path) -> None:
    module, names = MOMENTS[moment]
    owner: Any = importlib.import_module(module)
    *path, name = names.split(".")
    for part in path:
        owner = getattr(owner, part)
    usual = getattr(owner, name)
    met = False

    def waiting(*args: Any, **kwargs: Any) -> Any:
        nonlocal met
        if not met:
            met = True
            mark.touch()
            for _ in range(10):  # an interrupt that is held back doesn't end a sleep
                time.sleep(0.1)
        return usual(*args, **kwargs)

    setattr(owner, name, waiting)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored in programs of the background
    from prunekit_plugins.cli.entry import main

    stop_at(sys.argv[1], Path(sys.argv[2]))
    sys.exit(main(sys.argv[3:]))
