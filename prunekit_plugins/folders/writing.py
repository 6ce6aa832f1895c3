"""A pruned model of transformers, diffusers or timm into a folder, loaded again and compared before it counts."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from torch import nn

from prunekit import Distillation, read_plan
from prunekit.plugin import ArgumentError, CheckpointError, Plan, Protocol, Registry, StorageError, write_text
from prunekit_plugins.checkpoints.checkpoint import PLAN, PROTOCOL
from prunekit_plugins.checkpoints.destination import check_folder
from prunekit_plugins.folders.cards import Provenance, card
from prunekit_plugins.folders.companions import CARD, WEIGHT_FILES, copy_companions
from prunekit_plugins.folders.hub import check_repository, push
from prunekit_plugins.folders.known import library_of
from prunekit_plugins.folders.library import Library, Opening, Said
from prunekit_plugins.folders.of_diffusers import DIFFUSERS
from prunekit_plugins.folders.pipeline import check_latents, component_in, copy_others, size_of_others
from prunekit_plugins.folders.stock import holds_plan
from prunekit_plugins.integrations.comparison import difference, outputs_of
from prunekit_plugins.integrations.huggingface import CONFIG

TOLERANCE = 1e-5
UNPRUNED = "the unpruned model"


@attrs.frozen
class SavedFolder:
    """A folder that `save_folder` wrote.

    Attributes:
        folder: Where it is.
        opened: The line of Python that opens it.
        changed: Field of the configuration to its value before and after, as in `ConfigUpdate`.
        notes: What the configuration can't say; empty for a folder that the stock class loads.
        copied: Files that were taken along: tokenizer, templates, processors.
        outputs: How many outputs of the loaded model were compared with those before saving.
        error: The largest difference, relative to the largest value: 0 where all are equal.
        loader: What loads a folder with the stock class.
        address: Where it was pushed to; empty for nowhere.
    """

    folder: Path
    opened: str
    changed: Mapping[str, tuple[int | None, int]]
    notes: tuple[str, ...]
    copied: tuple[str, ...]
    outputs: int
    error: float
    loader: str = "from_pretrained"
    address: str = ""

    @property
    def stock(self) -> bool:
        """Whether the stock class loads it."""
        return not self.notes

    def __str__(self) -> str:
        lines = [f"{name}: {old} -> {new}" for name, (old, new) in self.changed.items()]
        if self.notes:
            lines.append(f"{self.loader} can't load it, because no configuration can say its sizes:")
            lines.extend(f"  {note}" for note in self.notes)
        if self.copied:
            lines.append(f"copied along: {', '.join(self.copied)}")
        same = "are those before saving" if self.error == 0 else f"differ from those before saving by {self.error:.1g}"
        lines.append(f"loaded again with {self.opened}: its outputs {same} ({self.outputs} compared)")
        if self.address:
            lines.append(f"pushed to {self.address}")
        return "\n".join(lines)


def check_destination(
    folder: str | os.PathLike[str], *, overwrite: bool = False, others: Mapping[str, Path | None] | None = None
) -> None:
    """Makes sure that a folder can be written; leaves nothing there.

    Args:
        folder: Where it is to be.
        overwrite: Whether it may hold something.
        others: Folders that it must not be, by what they are of ("the unpruned model"); None for what is in none.

    Raises:
        ArgumentError: It is a file or named like one, holds something, can't be written, or is one of the others.
    """
    place = Path(folder)
    check_folder(place, overwrite=overwrite)
    for name, other in (others or {}).items():
        if other is not None and place.exists() and other.exists() and place.samefile(other):
            raise ArgumentError(f"The destination is the folder of {name}.", where=str(place))


def save_folder(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    plan: Plan,
    source: str | os.PathLike[str] | None = None,
    component: str | None = None,
    example_inputs: Mapping[str, Any] | None = None,
    protocol: Protocol | None = None,
    distillation: Distillation | None = None,
    measured: Mapping[str, tuple[float, float]] | None = None,
    max_shard_size: int | str = "5GB",
    overwrite: bool = False,
    push_to_hub: str | None = None,
    registry: Registry | None = None,
) -> SavedFolder:
    """Writes a pruned model to a folder that loads, and proves it: loaded again and compared.

    Where the configuration can say the sizes (see ``serve`` of `prunekit.prune`), it does, and the stock class loads
    the folder: ``from_pretrained`` of transformers or diffusers, ``create_model`` of timm. Otherwise the folder says
    so: it holds the configuration of the unpruned model and a plan, and `load_folder` opens it. Nothing is there before
    the comparison has passed.

    Args:
        model: The pruned model, of transformers, diffusers or timm. Its configuration is changed in place where it can
            say all sizes.
        folder: Where it goes; made if it isn't there.
        plan: The plan from the model in ``source`` to this one.
        source: The folder of the unpruned model: tokenizer, chat template, processor and what else is no weights are
            copied from there. For a component of a pipeline, the folder of the pipeline, which is copied as a whole.
            None for a folder without them.
        component: Of a pipeline in ``source``, the component that the model is; None for the one that takes the noise
            away.
        example_inputs: Keyword inputs to compare outputs on; None for random ones that suit the model.
        protocol: How the model came about (``result.protocol``), for the card.
        distillation: How it was trained after the cut, for the card.
        measured: Quality before and after, by name, for the card: ``{"perplexity": (24.3, 26.0)}``.
        max_shard_size: Bytes of a file of weights, at most; timm reads one file.
        overwrite: Whether a model that is there may be replaced; files that aren't written stay.
        push_to_hub: A repository of the Hugging Face hub, ``"user/name"``, that the folder is uploaded to in the end;
            made if it isn't there. Needs huggingface_hub, which finds the token and the address of the hub.
        registry: Where replacements are found; None for the default registry.

    Returns:
        What was written, and how it is opened.

    Raises:
        ArgumentError: The model is of no such library, or the destination isn't empty or can't be written.
        CheckpointError: What was written doesn't load, or computes something else; nothing is left of it.
        StorageError: The system refuses to write there, or the hub refuses the folder, which is written and complete.
    """
    place, origin = Path(folder), None if source is None else Path(source)
    check_destination(place, overwrite=overwrite, others={UNPRUNED: origin})
    if push_to_hub is not None:
        check_repository(push_to_hub)
    library, part = library_of(model), _component(origin, component)
    inner = None if origin is None else origin / (part or "")
    if part is not None and inner is not None:
        check_latents(model, inner)
    _check_room(model, place, 0 if origin is None or part is None else size_of_others(origin, part))
    inputs = library.inputs(model) if example_inputs is None else dict(example_inputs)
    earlier = inner is not None and holds_plan(inner)
    whole = read_plan(inner).then(plan) if earlier and inner is not None else plan
    said = library.say(model, whole, inputs)
    expected = outputs_of(model, inputs)
    temporary = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
    spot = temporary / (part or "")
    try:
        spot.mkdir(parents=True)
        _write(library, model, spot, said, whole, protocol, max_shard_size, registry)
        copied = () if inner is None else copy_companions(inner, spot)
        if part is not None and origin is not None:
            copied = copy_others(origin, temporary, part)
        loaded = library.load(spot) if said.update.complete else library.load_planned(spot, registry)
        found = outputs_of(loaded, inputs)
        error = difference(expected, found)
        if not error <= TOLERANCE:
            raise CheckpointError(
                "The model that was written computes something else.",
                where=str(place),
                why=f"loaded again, its outputs differ by {error:.1g} of the largest value",
            )
        opening = _opening(library.opening(model), part, component, stock=said.update.complete)
        made = Provenance(
            name=type(model).__name__,
            plan=f"{part}/{PLAN}" if part else PLAN,
            protocol=protocol,
            distillation=distillation,
            measured=measured or {},
            library=library.name if part is None else DIFFUSERS.name,
            old=_old_card(origin),
        )
        write_text(temporary / CARD, card(made, opening, said.update))
        _move(temporary, place)
    except StorageError:
        raise
    except OSError as refusal:
        why = refusal.strerror or str(refusal)
        raise StorageError("The folder can't be written.", where=str(place), why=why, cause=refusal) from refusal
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    address = "" if push_to_hub is None else push(place, push_to_hub)
    update = said.update
    opened = opening.at(place)
    return SavedFolder(place, opened, update.changed, update.notes, copied, len(found), error, library.loader, address)


def _old_card(origin: Path | None) -> str:
    place = None if origin is None else origin / CARD
    return place.read_text("utf-8", errors="replace") if place is not None and place.is_file() else ""


def _component(origin: Path | None, component: str | None) -> str | None:
    if origin is not None:
        return component_in(origin, component)
    if component is not None:
        raise ArgumentError(
            "A component is one of a pipeline.", why=f"got {component!r} and no source", hint="source=, its folder"
        )
    return None


def _opening(opening: Opening, part: str | None, component: str | None, *, stock: bool) -> Opening:
    """Says how a folder is opened: a model, or a pipeline with one component that was pruned."""
    named = "" if component is None else f', component="{component}"'
    ours = Opening(("import prunekit",), f'prunekit.load_folder("FOLDER"{named})')
    if part is None:
        return opening if stock else ours
    imports, whole = ("from diffusers import DiffusionPipeline",), 'DiffusionPipeline.from_pretrained("FOLDER"'
    if stock:
        return Opening(imports, f"{whole})")
    return Opening((*ours.imports, "", *imports), f"{whole}, {part}={ours.call})")


def _check_room(model: nn.Module, place: Path, others: int) -> None:
    parent = place if place.is_dir() else place.absolute().parent
    needed = others + sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    free = shutil.disk_usage(parent).free
    if needed > free:
        why = f"it takes {needed:,} bytes, and {free:,} are free"
        cause = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(place))
        raise StorageError("There is no room for the model.", where=str(parent), why=why, cause=cause)


def _write(
    library: Library,
    model: nn.Module,
    folder: Path,
    said: Said,
    plan: Plan,
    protocol: Protocol | None,
    max_shard_size: int | str,
    registry: Registry | None,
) -> None:
    """Writes weights, configurations and the plan."""
    if said.update.complete:
        library.write(model, folder, said.fields, max_shard_size)
    else:
        library.write_planned(model, folder, plan, protocol, max_shard_size, registry)
    plan.save(folder / PLAN)
    if protocol is not None:
        write_text(folder / PROTOCOL, protocol.to_json())


def _move(temporary: Path, place: Path) -> None:
    """Gives a folder its name; where there is one of that name, its files go there in the place of weights and others
    of their names."""
    if not place.exists():
        os.replace(temporary, place)
        return
    new = {file.name for file in temporary.iterdir()}
    stale = [f for f in place.iterdir() if f.is_file() and any(f.match(p) for p in WEIGHT_FILES) and f.name not in new]
    for file in [*stale, *(place / name for name in new if (place / name).is_dir())]:
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    for name in sorted(new, key=lambda name: name == CONFIG):  # without it nobody takes the folder for a model
        os.replace(temporary / name, place / name)
