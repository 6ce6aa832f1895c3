"""Values of a model's tensors from files, one at a time, so that a model on the meta device can be scored."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs
import torch
from torch import nn

from prunekit_core.errors import ArgumentError, CheckpointError
from prunekit_core.graph.current import StoredWeights
from prunekit_core.modules.renaming import Renaming
from prunekit_core.modules.surgery import scale_rows, select_positions
from prunekit_core.modules.tree import ModelTree
from prunekit_core.plans.plan import Plan
from prunekit_plugins.checkpoints.arranged import Arranged
from prunekit_plugins.checkpoints.computed import computed_buffers
from prunekit_plugins.checkpoints.shards import Weights
from prunekit_plugins.checkpoints.tensorfile import Stored, TensorFile, write_tensors


class StoredValues:
    """The values of a model's parameters and buffers in a checkpoint of the unpruned model.

    Buffers on the meta device that no checkpoint holds are computed, where the model's class can do it.

    Args:
        path: A safetensors file, a folder with ``model.safetensors`` or ``model.safetensors.index.json``, or the index.
        model: The model, before anything was cut from it.

    Raises:
        ArgumentError: The model is not on the meta device.
        CheckpointError: The checkpoint can't be read, or is for another model.
    """

    def __init__(self, path: str | os.PathLike[str], model: nn.Module) -> None:
        real = [name for name, parameter in model.named_parameters() if not parameter.is_meta]
        if real:
            raise ArgumentError(
                "Weights on disk are for a model on the meta device.",
                where=real[0],
                why="the model has values of its own",
                hint="build it under torch.device('meta'), or fill it with the weights and leave weights= out",
            )
        tree = ModelTree(model)
        tensors, canonical = tree.tensors, tree.aliases
        self._weights = Arranged(Weights(path), canonical)
        self._stored: dict[str, list[str]] = {}
        for name in self._weights.tensors:
            if name in canonical:
                self._stored.setdefault(canonical[name], []).append(name)
        persistent = set(model.state_dict(keep_vars=True))
        problems = [f"{name} is missing" for name in tensors if name in persistent and name not in self._stored]
        for name, stored in ((name, stored) for name, found in self._stored.items() for stored in found):
            shape = self._weights.tensors[stored].shape
            if shape != tuple(tensors[name].shape):
                problems.append(f"{stored} has shape {shape}, not {tuple(tensors[name].shape)}")
        if problems:
            why = "; ".join(problems[:4])
            raise CheckpointError("The checkpoint is for another model.", where=os.fspath(path), why=why)
        self._computed = {name: one for name, one in computed_buffers(model).items() if name not in self._stored}

    def __contains__(self, name: str) -> bool:
        return name in self._stored or name in self._computed

    def dtype(self, name: str) -> torch.dtype:
        """Returns the dtype of a tensor in the files, by its canonical name."""
        return (
            self._computed[name].dtype if name in self._computed else self._weights.tensors[self.names(name)[0]].dtype
        )

    def names(self, name: str) -> tuple[str, ...]:
        """Returns the names that a tensor has in the files, by its canonical name; none for one that is computed."""
        return tuple(self._stored.get(name, ()))

    def read(self, name: str, plan: Plan) -> torch.Tensor:
        """Reads a tensor and cuts it as a plan does.

        Args:
            name: Canonical dotted name in the model.
            plan: What was cut from the model so far.

        Returns:
            A tensor of its own memory, of the file's dtype, on the CPU.
        """
        computed = self._computed.get(name)
        values = self._weights.read(self.names(name)[0]) if computed is None else computed.clone()
        return as_cut(values, name, plan)


def as_cut(values: torch.Tensor, name: str, plan: Plan) -> torch.Tensor:
    """Returns the values of a tensor as a plan leaves them, and may change those that it is given.

    Args:
        values: The values before.
        name: Canonical dotted name in the model.
        plan: The plan.
    """
    for rescale in plan.rescales:
        if rescale.parameter == name:
            scale_rows(values, rescale.rows, rescale.factor)
    cuts = [cut for cut in plan.parameters if cut.parameter == name]
    return select_positions(values, plan.positions(cuts[0])) if cuts else values


@attrs.frozen(eq=False)
class Cut:
    """The values of a model after a plan, read from the checkpoint of the unpruned model.

    Names are those that tensors have after the plan: where entries left a list, others than before.

    Attributes:
        stored: The checkpoint.
        plan: What was cut.
        changes: Values that take the place of some, cut already, by their names in the checkpoint.
    """

    stored: StoredWeights
    plan: Plan
    changes: Mapping[str, torch.Tensor] = attrs.field(factory=dict)
    _renaming: Renaming = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "_renaming", self.plan.renaming)

    def __contains__(self, name: str) -> bool:
        return self._renaming.before(name) in self.stored

    def read(self, name: str) -> torch.Tensor:
        """Reads a tensor by its canonical name: a tensor of its own memory."""
        changed = next((stored for stored in self.names(name) if stored in self.changes), "") if self.changes else ""
        if changed:
            return self.changes[changed]
        return self.stored.read(self._renaming.before(name), self.plan)

    def dtype(self, name: str) -> torch.dtype:
        """Returns the dtype of a tensor in the checkpoint, by its canonical name."""
        return self.stored.dtype(self._renaming.before(name))

    def names(self, name: str) -> tuple[str, ...]:
        """Returns the names that a tensor has in the checkpoint, by its canonical name."""
        return self.stored.names(self._renaming.before(name))


class Scratch:
    """Values that take the place of some of a checkpoint's, in temporary files that go when nobody needs them.

    Args:
        under: The values as the plan leaves them.
    """

    def __init__(self, under: Cut) -> None:
        self._under, self._home = under, Path(tempfile.mkdtemp(prefix="prunekit-"))
        weakref.finalize(self, shutil.rmtree, self._home, ignore_errors=True)
        self._files: dict[str, TensorFile] = {}
        self._marked: dict[str, TensorFile] = {}
        self._numbers = itertools.count()

    def __contains__(self, name: str) -> bool:
        return name in self._under

    def read(self, name: str) -> torch.Tensor:
        """Reads a tensor by its canonical name: a tensor of its own memory, of the checkpoint's dtype."""
        return self._files[name].read(name) if name in self._files else self._under.read(name)

    def put(self, name: str, values: torch.Tensor) -> None:
        """Writes a tensor in the place of the checkpoint's, in its dtype."""
        dtype, known = self._under.dtype(name), self._files.get(name)
        replaced = known if known is not self._marked.get(name) else None  # what was there at the mark may come back
        place = self._home / str(next(self._numbers)) if replaced is None else replaced.path
        write_tensors(place, {name: Stored(dtype, tuple(values.shape))}, {}, lambda _: [values.to(dtype)])
        self._files[name] = TensorFile(place)

    def mark(self) -> None:
        """Remembers what is here, for `restore`."""
        self._marked = dict(self._files)

    def restore(self) -> list[str]:
        """Puts back what was here at the last `mark`; returns the names of the tensors that have other values now."""
        changed = [name for name, file in self._files.items() if file is not self._marked.get(name)]
        self._files = dict(self._marked)
        return changed

    def changes(self) -> Mapping[str, torch.Tensor]:
        """Returns what was put here, by its names in the checkpoint; a tensor is read when it is asked for."""
        return Changes(self, {stored: name for name in self._files for stored in self._under.names(name)})


class Changes(Mapping[str, torch.Tensor]):
    """Tensors in temporary files, read when they are asked for.

    Args:
        scratch: Where they are.
        names: Name in the checkpoint to canonical name.
    """

    def __init__(self, scratch: Scratch, names: Mapping[str, str]) -> None:
        self._scratch, self._names = scratch, names

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._scratch.read(self._names[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
