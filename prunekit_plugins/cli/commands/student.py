"""The smaller model that ``prunekit distill`` trains: a file that ``prune --out`` wrote, or a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import attrs
from torch import nn

from prunekit import Distillation, Plan, load, load_folder, read_plan, read_protocol, save, save_folder
from prunekit.plugin import ArgumentError
from prunekit_plugins.checkpoints.checkpoint import PLAN
from prunekit_plugins.checkpoints.destination import check_format
from prunekit_plugins.cli.arguments import check_there, check_writable
from prunekit_plugins.cli.sources import Inputs, folder_of
from prunekit_plugins.folders import SavedFolder
from prunekit_plugins.folders.hub import check_repository
from prunekit_plugins.folders.pipeline import component_in
from prunekit_plugins.folders.writing import check_destination


@attrs.frozen
class Student:
    """Where a smaller model lies, and where it goes once it was trained.

    Attributes:
        place: The file or folder.
        source: The folder of the model before the cut, for a student in a folder; None for a file.
        out: Where it goes: a file for a file, a folder for a folder.
        push_to_hub: The repository that a folder is pushed to; None for none.
    """

    place: Path
    source: Path | None
    out: Path
    push_to_hub: str | None = None

    @classmethod
    def of(cls, student: str, teacher: str, out: Path, *, overwrite: bool, push_to_hub: str | None = None) -> Student:
        """Reads what was typed.

        Raises:
            ArgumentError: The teacher of a folder isn't one, the folder doesn't say what was removed, or the
                destination can't be written.
            CheckpointError: There is no such file.
        """
        place = folder_of(student) or Path(student)
        if not place.is_dir():
            check_there(place)
            check_format(out)
            check_writable(out, "--out")
            if overwrite or push_to_hub is not None:
                raise ArgumentError("--overwrite and --push-to-hub are for folders.", hint="a file is replaced anyway")
            return cls(place, None, out)
        source = folder_of(teacher)
        if source is None:
            raise ArgumentError(
                "The teacher of a folder is a folder.",
                why=f"got {teacher!r}",
                hint=f"hf:{teacher if Path(teacher).is_dir() else 'FOLDER'}, the model before the cut",
            )
        inner = _inner(place)
        if not (inner / PLAN).is_file():
            raise ArgumentError(
                "The folder doesn't say what was removed.",
                where=str(inner / PLAN),
                hint="prunekit prune hf:FOLDER --out FOLDER2 and pk.save_folder write it",
            )
        check_destination(out, overwrite=overwrite, others={"the student": place, "the teacher": source})
        if push_to_hub is not None:
            check_repository(push_to_hub)
        return cls(place, source, out, push_to_hub)

    def plan(self) -> Plan:
        """Reads what was removed."""
        return read_plan(_inner(self.place))

    def model(self, whole: Callable[[], nn.Module]) -> nn.Module:
        """Opens it; ``whole`` builds the model before the cut, for a file."""
        return load(whole(), self.place) if self.source is None else load_folder(self.place)

    def save(
        self, model: nn.Module, plan: Plan, inputs: Inputs, result: Distillation, *, overwrite: bool
    ) -> SavedFolder | None:
        """Writes the trained model; returns what is known of a folder that was loaded again."""
        if self.source is None:
            save(model, self.out, plan=plan, protocol=read_protocol(self.place))
            return None
        return save_folder(
            model,
            self.out,
            plan=plan,
            source=self.source,
            example_inputs=inputs if isinstance(inputs, Mapping) else None,
            protocol=read_protocol(_inner(self.place)),
            distillation=result,
            overwrite=overwrite,
            push_to_hub=self.push_to_hub,
        )


def _inner(place: Path) -> Path:
    """The folder of the model: of a pipeline that of its denoiser."""
    return place / (component_in(place, None) or "")
