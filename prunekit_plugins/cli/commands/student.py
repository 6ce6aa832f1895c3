"""The smaller model that ``prunekit distill`` trains: a file that ``prune --out`` wrote, or a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import attrs
from torch import nn

from prunekit import Plan, load, load_folder, read_plan, read_protocol, save, save_folder
from prunekit.plugin import ArgumentError, Protocol
from prunekit_plugins.cli.arguments import check_there, check_writable
from prunekit_plugins.cli.commands.destination import TRANSFORMERS
from prunekit_plugins.cli.sources import Inputs
from prunekit_plugins.folders import SavedFolder
from prunekit_plugins.folders.companions import PLAN, PROTOCOL
from prunekit_plugins.folders.writing import check_destination


@attrs.frozen
class Student:
    """Where a smaller model lies, and where it goes once it was trained.

    Attributes:
        place: The file or folder.
        source: The folder of the model before the cut, for a student in a folder; None for a file.
        out: Where it goes: a file for a file, a folder for a folder.
    """

    place: Path
    source: Path | None
    out: Path

    @classmethod
    def of(cls, student: str, teacher: str, out: Path, *, overwrite: bool) -> Student:
        """Reads what was typed.

        Raises:
            ArgumentError: The teacher of a folder isn't one, the folder doesn't say what was removed, or the
                destination can't be written.
            CheckpointError: There is no such file.
        """
        place = Path(student.removeprefix(TRANSFORMERS))
        if not place.is_dir():
            check_there(place)
            check_writable(out, "--out")
            if overwrite:
                raise ArgumentError("--overwrite is for folders.", hint="a file is replaced anyway")
            return cls(place, None, out)
        if not teacher.startswith(TRANSFORMERS):
            raise ArgumentError(
                "The teacher of a folder is a folder.",
                why=f"got {teacher!r}",
                hint="hf:FOLDER, the model before the cut",
            )
        if not (place / PLAN).is_file():
            raise ArgumentError(
                "The folder doesn't say what was removed.",
                where=str(place / PLAN),
                hint="prunekit prune hf:FOLDER --out FOLDER2 and pk.save_folder write it",
            )
        source = Path(teacher.removeprefix(TRANSFORMERS))
        check_destination(out, overwrite=overwrite, others={"the student": place, "the teacher": source})
        return cls(place, source, out)

    def plan(self) -> Plan:
        """Reads what was removed."""
        return read_plan(self.place) if self.source is None else Plan.load(self.place / PLAN)

    def model(self, whole: Callable[[], nn.Module]) -> nn.Module:
        """Opens it; ``whole`` builds the model before the cut, for a file."""
        return load(whole(), self.place) if self.source is None else load_folder(self.place)

    def save(self, model: nn.Module, plan: Plan, inputs: Inputs, *, overwrite: bool) -> SavedFolder | None:
        """Writes the trained model; returns what is known of a folder that was loaded again."""
        if self.source is None:
            save(model, self.out, plan=plan, protocol=read_protocol(self.place))
            return None
        text = self.place / PROTOCOL
        return save_folder(
            model,
            self.out,
            plan=plan,
            source=self.source,
            example_inputs=inputs if isinstance(inputs, Mapping) else None,
            protocol=Protocol.from_json(text.read_text("utf-8")) if text.is_file() else None,
            overwrite=overwrite,
        )
