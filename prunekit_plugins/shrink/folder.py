"""The folder of a shrinking: its protocol, a model after each step, and what a step needs to go on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from prunekit_core.errors import CheckpointError
from prunekit_core.files import storing, write_text
from prunekit_plugins.shrink.result import Step

FORMAT = 1
PROTOCOL = "protocol.json"


@attrs.frozen
class Folder:
    """Where a shrinking is stored.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def protocol(self) -> Path:
        """The file that says what was done."""
        return self.path / PROTOCOL

    def trained(self, step: int) -> Path:
        """The model at the end of a step."""
        return self.path / f"step-{step}.safetensors"

    def cut(self, step: int) -> Path:
        """The model between the cut and the training of a step, while that goes on."""
        return self.path / f"step-{step}-cut.safetensors"

    def training(self, step: int) -> Path:
        """The checkpoint of the training of a step, while that goes on."""
        return self.path / f"step-{step}-training.safetensors"

    def done_with(self, step: int) -> None:
        """Removes what a step needed only to go on."""
        with storing(self.path):
            for path in (self.cut(step), self.training(step)):
                path.unlink(missing_ok=True)

    def open(self, request: Mapping[str, Any]) -> list[Step]:
        """Makes the folder, or reads what was done in it.

        Args:
            request: What the call asks for.

        Returns:
            The steps, the last one perhaps without its training.

        Raises:
            CheckpointError: It holds something else, another shrinking, or a damaged protocol.
            StorageError: The system refuses.
        """
        with storing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            foreign = [] if self.protocol.exists() else sorted(n for n in os.listdir(self.path) if n[0] != ".")
        if foreign:
            raise CheckpointError(
                "The folder holds something else.",
                where=str(self.path),
                why=f"there is {foreign[0]!r}, and no {PROTOCOL}",
                hint="choose another folder, or one that isn't there yet",
            )
        if not self.protocol.exists():
            self.write(request, [])
            return []
        try:
            data = json.loads(self.protocol.read_text(encoding="utf-8"))
            if data["format"] != FORMAT:
                raise ValueError(f"its format is {data['format']!r}")
            stored, steps = data["request"], [Step.from_plain(step) for step in data["steps"]]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError("The protocol can't be read.", where=str(self.protocol), why=str(error)) from error
        self._check(stored, request)
        return steps

    def _check(self, stored: Mapping[str, Any], request: Mapping[str, Any]) -> None:
        now = json.loads(json.dumps(request))
        other = [name for name in {**now, **stored} if stored.get(name) != now.get(name)]
        if other:
            raise CheckpointError(
                "The folder holds another shrinking.",
                where=str(self.path),
                why="; ".join(f"{name} was {stored.get(name)!r}, and is {now.get(name)!r}" for name in other[:3]),
                hint="go on with the same arguments, or choose another folder",
            )

    def write(self, request: Mapping[str, Any], steps: Sequence[Step]) -> None:
        """Writes the protocol; it appears whole or not at all.

        Raises:
            StorageError: The system refuses.
        """
        data = {"format": FORMAT, "request": request, "steps": [step.to_plain() for step in steps]}
        write_text(self.protocol, json.dumps(data, indent=1) + "\n")
