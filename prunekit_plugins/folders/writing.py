"""A pruned model of transformers into a folder, loaded again and compared before it counts."""

from __future__ import annotations

import copy
import errno
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from torch import nn

from prunekit import read_plan
from prunekit.plugin import ArgumentError, CheckpointError, Plan, Protocol, Registry, StorageError, write_text
from prunekit_plugins.folders.companions import CARD, PLAN, PROTOCOL, WEIGHT_FILES, card, copy_companions
from prunekit_plugins.folders.example_inputs import example_inputs as made_inputs
from prunekit_plugins.folders.reading import holds_plan, load_stock
from prunekit_plugins.integrations.comparison import difference, outputs_of
from prunekit_plugins.integrations.config_search import sizes_of
from prunekit_plugins.integrations.configuration import ConfigUpdate, update_config
from prunekit_plugins.integrations.huggingface import CONFIG, empty_model, library, load_pretrained, save_pretrained

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
    """

    folder: Path
    opened: str
    changed: Mapping[str, tuple[int | None, int]]
    notes: tuple[str, ...]
    copied: tuple[str, ...]
    outputs: int
    error: float

    @property
    def stock(self) -> bool:
        """Whether ``from_pretrained`` of transformers loads it."""
        return not self.notes

    def __str__(self) -> str:
        lines = [f"{name}: {old} -> {new}" for name, (old, new) in self.changed.items()]
        if self.notes:
            lines.append("from_pretrained can't load it, because no configuration can say its sizes:")
            lines.extend(f"  {note}" for note in self.notes)
        if self.copied:
            lines.append(f"copied along: {', '.join(self.copied)}")
        same = "are those before saving" if self.error == 0 else f"differ from those before saving by {self.error:.1g}"
        lines.append(f"loaded again with {self.opened}: its outputs {same} ({self.outputs} compared)")
        return "\n".join(lines)


def check_destination(
    folder: str | os.PathLike[str], *, overwrite: bool = False, others: Mapping[str, Path | None] | None = None
) -> None:
    """Makes sure that a folder can be written; touches nothing.

    Args:
        folder: Where it is to be.
        overwrite: Whether it may hold something.
        others: Folders that it must not be, by what they are of ("the unpruned model"); None for what is in none.

    Raises:
        ArgumentError: It is a file, holds something, can't be written, or is one of the others.
    """
    place = Path(folder)
    if place.exists() and not place.is_dir():
        raise ArgumentError("The destination isn't a folder.", where=str(place))
    if place.is_dir() and any(place.iterdir()) and not overwrite:
        raise ArgumentError(
            "The destination isn't an empty folder.",
            where=str(place),
            hint="name another one; overwrite=True (--overwrite) replaces the model in it",
        )
    parent = place if place.is_dir() else place.absolute().parent
    if not parent.is_dir():
        raise ArgumentError("The folder of the destination doesn't exist.", where=str(parent))
    if not os.access(parent, os.W_OK) or not os.access(place.absolute().parent, os.W_OK):
        raise ArgumentError("The destination can't be written to.", where=str(place))
    for name, other in (others or {}).items():
        if other is not None and place.exists() and other.exists() and place.samefile(other):
            raise ArgumentError(f"The destination is the folder of {name}.", where=str(place))


def save_folder(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    plan: Plan,
    source: str | os.PathLike[str] | None = None,
    example_inputs: Mapping[str, Any] | None = None,
    protocol: Protocol | None = None,
    max_shard_size: int | str = "5GB",
    overwrite: bool = False,
    registry: Registry | None = None,
) -> SavedFolder:
    """Writes a pruned model of transformers to a folder that loads, and proves it: loaded again and compared.

    Where the configuration can say the sizes (see ``serve`` of `prunekit.prune`), it does, and ``from_pretrained`` of
    the stock class loads the folder. Otherwise the folder says so: it holds the configuration of the unpruned model and
    a plan, and `load_folder` opens it. Nothing is there before the comparison has passed.

    Args:
        model: The pruned model, a ``transformers.PreTrainedModel``. Its configuration is changed in place where it can
            say all sizes.
        folder: Where it goes; made if it isn't there.
        plan: The plan from the model in ``source`` to this one.
        source: The folder of the unpruned model: tokenizer, chat template, processor and what else is no weights are
            copied from there. None for a folder without them.
        example_inputs: Keyword inputs to compare outputs on; None for random ones that suit the model.
        protocol: How the model came about (``result.protocol``).
        max_shard_size: Bytes of a file of weights, at most.
        overwrite: Whether a model that is there may be replaced; files that aren't written stay.
        registry: Where replacements are found; None for the default registry.

    Returns:
        What was written, and how it is opened.

    Raises:
        ArgumentError: The model is not one of transformers', or the destination isn't empty or can't be written.
        CheckpointError: What was written doesn't load, or computes something else; nothing is left of it.
        StorageError: The system refuses to write there.
    """
    place, origin = Path(folder), None if source is None else Path(source)
    check_destination(place, overwrite=overwrite, others={UNPRUNED: origin})
    if not isinstance(model, library().PreTrainedModel):
        raise ArgumentError("The model is not one of transformers'.", why=f"got {type(model).__name__}")
    _check_room(model, place)
    inputs = made_inputs(model) if example_inputs is None else dict(example_inputs)
    earlier = origin is not None and holds_plan(origin)
    whole = read_plan(origin).then(plan) if earlier and origin is not None else plan
    update = ConfigUpdate({}, ()) if _is_said(model) else update_config(model, whole, inputs)
    expected = outputs_of(model, inputs)
    temporary = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
    try:
        temporary.mkdir()
        _write(model, temporary, update, whole, protocol, max_shard_size, registry)
        copied = () if origin is None else copy_companions(origin, temporary)
        loaded = load_stock(temporary) if update.complete else load_pretrained(temporary, registry=registry)
        found = outputs_of(loaded, inputs)
        error = difference(expected, found)
        if not error <= TOLERANCE:
            raise CheckpointError(
                "The model that was written computes something else.",
                where=str(place),
                why=f"loaded again, its outputs differ by {error:.1g} of the largest value",
            )
        name = type(model).__name__
        opened = f'{name}.from_pretrained("{place}")' if update.complete else f'prunekit.load_folder("{place}")'
        text = card(name, opened.replace(str(place), "FOLDER"), update.changed, update.notes, protocol)
        write_text(temporary / CARD, text)
        _move(temporary, place)
    except StorageError:
        raise
    except OSError as refusal:
        why = refusal.strerror or str(refusal)
        raise StorageError("The folder can't be written.", where=str(place), why=why, cause=refusal) from refusal
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return SavedFolder(place, opened, update.changed, update.notes, copied, len(found), error)


def _is_said(model: Any) -> bool:
    """Whether the configuration says the sizes already."""
    try:
        built = empty_model(type(model), copy.deepcopy(model.config))
    except Exception:  # whatever a model raises on numbers that contradict each other
        return False
    return sizes_of(built) == sizes_of(model)


def _check_room(model: nn.Module, place: Path) -> None:
    parent = place if place.is_dir() else place.absolute().parent
    needed = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    free = shutil.disk_usage(parent).free
    if needed > free:
        why = f"it takes {needed:,} bytes, and {free:,} are free"
        cause = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(place))
        raise StorageError("There is no room for the model.", where=str(parent), why=why, cause=cause)


def _write(
    model: Any,
    folder: Path,
    update: ConfigUpdate,
    plan: Plan,
    protocol: Protocol | None,
    max_shard_size: int | str,
    registry: Registry | None,
) -> None:
    """Writes weights, configurations and the plan."""
    if update.complete:
        model.save_pretrained(str(folder), max_shard_size=max_shard_size)
    else:
        save_pretrained(model, folder, plan=plan, protocol=protocol, max_shard_size=max_shard_size, registry=registry)
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
