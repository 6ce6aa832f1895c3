"""Where ``prunekit prune`` puts the smaller model: nowhere, into a file, or into a folder that loads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from prunekit import PruneResult, save
from prunekit.plugin import (
    ArgumentError,
    CheckpointError,
    PrunekitError,
    Registry,
    ServingEngine,
)
from prunekit_plugins.checkpoints.destination import check_format
from prunekit_plugins.checkpoints.shards import parse_size
from prunekit_plugins.cli.arguments import check_writable, read_criterion
from prunekit_plugins.cli.models import Subject
from prunekit_plugins.cli.output import Output
from prunekit_plugins.cli.sources import folder_of
from prunekit_plugins.folders import SavedFolder, save_folder
from prunekit_plugins.folders.hub import check_repository
from prunekit_plugins.folders.known import library_at
from prunekit_plugins.folders.of_transformers import TRANSFORMERS
from prunekit_plugins.folders.pipeline import component_in, is_pipeline
from prunekit_plugins.folders.stock import holds_plan
from prunekit_plugins.folders.writing import UNPRUNED, check_destination

NO_PROFILE = "none"
PROFILES = "prunekit_serving_profiles"
STOCK = "transformers"
"""The profile of a folder that `save_folder` loads again and compares anyway."""


@attrs.frozen
class Destination:
    """Where the smaller model goes.

    Attributes:
        out: The file or folder; None for nowhere.
        source: The folder that MODEL names; None for models from elsewhere.
        on_disk: Whether files are pruned one tensor at a time, without a model.
        overwrite: Whether a model in the folder may be replaced.
        max_shard_size: Bytes of a file in the folder, at most.
        model: The MODEL argument that the model is built from, with a component that was named.
        component: Of a pipeline in ``source``, the component that is pruned; None for the denoiser.
        push_to_hub: The repository that the folder is pushed to; None for none.
    """

    out: Path | None
    source: Path | None
    on_disk: bool
    overwrite: bool
    max_shard_size: str | None
    model: str
    component: str | None = None
    push_to_hub: str | None = None

    @classmethod
    def of(
        cls,
        model: str,
        out: Path | None,
        *,
        on_disk: bool,
        overwrite: bool,
        max_shard_size: str | None,
        component: str | None = None,
        push_to_hub: str | None = None,
    ) -> Destination:
        """Reads what was typed.

        Raises:
            ArgumentError: It can't be written, or an option is about folders and it is none.
        """
        source = folder_of(model)
        if component is not None:
            if source is None:
                raise ArgumentError("--component is for pipelines of diffusers.", hint="hf:FOLDER --component unet")
            component_in(source, component)
        name = model if component is None else f"{model}/{component}"
        found = cls(out, source, on_disk, overwrite, max_shard_size, name, component, push_to_hub)
        if out is None or not found.is_folder:
            if overwrite or max_shard_size is not None or push_to_hub is not None:
                raise ArgumentError(
                    "--overwrite, --max-shard-size and --push-to-hub are for folders.",
                    hint="prunekit prune hf:FOLDER --out FOLDER2; a file is replaced anyway",
                )
            if out is not None:
                check_format(out)
                check_writable(out, "--out", folder=on_disk)
            return found
        if max_shard_size is not None:
            parse_size(max_shard_size)
        check_destination(out, overwrite=overwrite, others={UNPRUNED: source})
        if push_to_hub is not None:
            check_repository(push_to_hub)
        return found

    @property
    def is_folder(self) -> bool:
        """Whether a folder is written that loads."""
        named = self.out is not None and self.out.suffix != ".safetensors"
        return self.source is not None and not self.on_disk and named

    def profile(self, serve: str | None, registry: Registry) -> str | Mapping[str, Any] | None:
        """Returns the serving profile: the one that is named, or that of the folder that is written.

        Raises:
            ArgumentError: There is no profile of that name.
        """
        if serve is not None:
            return None if serve == NO_PROFILE else checked_profile(serve, registry)
        file = self.out is not None and not self.is_folder
        if self.source is None or self.on_disk or file or holds_plan(self.source):
            return None
        return None if is_pipeline(self.source) or library_at(self.source) is not TRANSFORMERS else STOCK

    def write(self, subject: Subject, result: PruneResult, registry: Registry) -> SavedFolder | None:
        """Writes the model; returns what is known of a folder that was loaded again."""
        if self.out is None or self.on_disk:
            return None
        if not self.is_folder:
            save(subject.model, self.out, plan=result.plan, protocol=result.protocol)
            return None
        return save_folder(
            subject.model,
            self.out,
            plan=result.plan,
            source=self.source,
            example_inputs=subject.inputs if isinstance(subject.inputs, Mapping) else None,
            protocol=result.protocol,
            max_shard_size=self.max_shard_size or "5GB",
            overwrite=self.overwrite,
            component=self.component,
            push_to_hub=self.push_to_hub,
            registry=registry,
        )


def checked_profile(serve: str | Mapping[str, Any], registry: Registry) -> str | Mapping[str, Any]:
    """Returns a profile as it was typed, or as settings have it: its name, or a table with the name and options.

    Raises:
        ArgumentError: There is none of that name; the message lists all, and what asks for nothing.
        PluginError: Only a broken plugin brings it.
    """
    found = read_criterion(serve, "--serve") if isinstance(serve, str) else serve
    try:
        registry.named(PROFILES, found["name"])
    except ArgumentError as error:
        error.hint += f", {NO_PROFILE}"
        raise
    return found if len(found) > 1 else str(found["name"])


def folder_data(saved: SavedFolder | None) -> dict[str, Any]:
    """What ``--json`` prints of a folder that was written; nothing where none was."""
    if saved is None:
        return {}
    found = {
        "opened": saved.opened,
        "stock": saved.stock,
        "changed": {name: list(values) for name, values in saved.changed.items()},
        "notes": list(saved.notes),
        "copied": list(saved.copied),
        "compared": {"outputs": saved.outputs, "error": saved.error},
        "pushed": saved.address or None,
    }
    return {"folder": found}


def load_tested(
    output: Output, profile: str | Mapping[str, Any] | None, saved: SavedFolder | None, registry: Registry
) -> dict[str, Any]:
    """Loads a folder that was written in the engine that it is for, and says what was compared.

    Returns:
        What ``--json`` prints of it: nothing where there is no such test, no comparison where the engine, or a package
        that writes its files, isn't installed.

    Raises:
        CheckpointError: The engine can't load it, or computes something else.
    """
    serve = profile["name"] if isinstance(profile, Mapping) else profile
    engine = None if serve in (None, STOCK) or saved is None else registry.named(PROFILES, serve)
    if saved is None or not isinstance(engine, ServingEngine) or engine.load_test is None:
        return {}
    try:
        with output.working(f"loading {saved.folder} for {serve}"):
            found = engine.load_test(saved.folder)
    except PrunekitError as error:
        if isinstance(error.__cause__, ImportError):  # a package that the test needs isn't there: nothing was tested
            return _untested(output, serve, f"{error.headline.rstrip('.')}: {error.hint}")
        raise CheckpointError(
            "The folder was written, and doesn't pass the load test of where it is served.",
            where=f"{saved.folder}, {serve}",
            why=" ".join(filter(None, (error.headline, error.where, error.why))),
            hint=error.hint,
        ) from error
    if found is None:
        return _untested(output, serve, "which isn't installed")
    output.line(f"served as {serve}: {found}", good=True)
    return {"served": {"as": serve, "checked": str(found)}}


def _untested(output: Output, serve: object, why: str) -> dict[str, Any]:
    output.line(f"not checked in the engine of {serve}, {why}", good=False)
    return {"served": {"as": serve, "checked": None}}
