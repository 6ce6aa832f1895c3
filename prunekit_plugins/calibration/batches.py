"""Calibration batches as users have them: any iterable, and how each batch is given to the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any

import attrs
import torch
from torch import nn

from prunekit_core.errors import ArgumentError
from prunekit_core.program.examples import Example, example_of
from prunekit_core.torch_private.trees import pytree


@attrs.frozen(eq=False)
class Batch:
    """One batch, ready to be run.

    Attributes:
        given: The batch as it came.
        example: The inputs of the model.
        mask: Tensor ``[batch, positions]``, bool: which positions count; None for all.
        size: Number of examples in it.
        where: What to call it in a message.
        doubt: What of its mask isn't understood; empty if nothing.
        fits: Filled where the mask was found to be about what a layer reads.
    """

    given: Any
    example: Example
    mask: torch.Tensor | None
    size: int
    where: str
    doubt: str = ""
    fits: set[tuple[int, ...]] = attrs.field(factory=set)

    def note(self) -> str:
        """Says, once it ran, why its mask was left out of account; empty if it wasn't."""
        if self.doubt or self.mask is None or self.fits:
            return self.doubt
        return f"a mask of shape {tuple(self.mask.shape)} fits nothing that a layer reads: all positions count"

    def cut(self, cut: Callable[[Any], Any]) -> Batch:
        """Returns the batch with a function applied to what was given and to the inputs, for one example alone."""
        args, kwargs = cut((self.example.args, self.example.kwargs))
        example = attrs.evolve(self.example, args=args, kwargs=kwargs)
        return attrs.evolve(self, given=cut(self.given), example=example, mask=None, size=1)

    def counted(self, lead: tuple[int, ...]) -> torch.Tensor | None:
        """Tells which samples count, for a tensor whose dims but the last are these.

        Returns:
            Bool tensor of shape ``lead``; None where all do, as where the tensor has no positions that the mask is
            about.
        """
        mask = self.mask
        if mask is None:
            return None
        batch, positions = mask.shape
        beside = [1] * (len(lead) - 2)
        if lead[:2] == (batch, positions):
            found = mask.reshape(batch, positions, *beside).expand(lead)
        elif lead[:2] == (positions, batch):
            found = mask.t().reshape(positions, batch, *beside).expand(lead)
        elif lead == (batch * positions,):
            found = mask.flatten()
        else:
            return None
        self.fits.add(lead)
        return found


@attrs.frozen(eq=False)
class Batches:
    """An iterable of batches, with how they are read.

    Attributes:
        source: Any iterable: a list, a ``DataLoader``, a generator. An iterator is read once and kept.
        inputs: Called with a batch; returns the inputs of the model: a tensor, a tuple of positional inputs, or a
            mapping of keyword inputs. None: the batch is the inputs.
        forward_fn: Called as ``forward_fn(model, inputs)`` instead of the model.
        mask: Called with a batch; returns a tensor ``[batch, positions]``, nonzero where a position counts, or None.
            Where it is None, the ``"attention_mask"`` of a mapping is the mask.
        limit: Largest number of batches; None for all.
        finite: Whether inputs that hold NaN or infinity are an error as they are read; see `checked`.
        passes: How many examples each pass over all of them read so far.
    """

    source: Iterable[Any]
    inputs: Callable[[Any], Any] | None = None
    forward_fn: Callable[[nn.Module, Any], Any] | None = None
    mask: Callable[[Any], torch.Tensor | None] | None = None
    limit: int | None = None
    finite: bool = False
    passes: list[int] = attrs.field(factory=list, init=False, repr=False)

    @classmethod
    def of(cls, batches: Any) -> Batches:
        """Takes batches as they are, or wraps an iterable.

        Raises:
            ArgumentError: It can't be iterated over, or is a single batch.
        """
        if isinstance(batches, Batches):
            found = batches
        else:
            if isinstance(batches, torch.Tensor | Mapping | str) or not isinstance(batches, Iterable):
                raise ArgumentError(
                    "Calibration batches must be an iterable of batches.",
                    why=f"got {type(batches).__name__}",
                    hint="for a single batch: [batch]",
                )
            found = cls(batches)
        if isinstance(found.source, Iterator):
            found = attrs.evolve(found, source=list(_first(found.source, found.limit)))
        return found

    def checked(self, *, strict: bool) -> tuple[Batches, tuple[str, ...]]:
        """Looks for inputs that aren't finite: in a list now, in what else is iterated over as it is read.

        Infinity may stand where a mask is added to scores: in a tensor of zeros and minus infinity.

        Args:
            strict: Whether any is an error; else only data of which nothing is finite are, and samples that aren't are
                left out where statistics are gathered.

        Returns:
            The same batches, and a line for the report.

        Raises:
            ArgumentError: They hold NaN or infinity.
        """
        listed = list(_first(self.source, self.limit)) if isinstance(self.source, list | tuple) else []
        found = [
            flaw
            for number, given in enumerate(listed)
            if (flaw := _flaw(given if self.inputs is None else self.inputs(given), f"batch {number}")) is not None
        ]
        if found and (strict or (len(found) == len(listed) and all(flaw.whole for flaw in found))):
            raise found[0].error()
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        notes = (
            f"calibration data hold NaN or infinity: {flaw.where}{more}; such samples are left out"
            for flaw in found[:1]
        )
        return attrs.evolve(self, finite=strict), tuple(notes)

    def count(self) -> int | None:
        """Returns the number of batches, if it is known beforehand."""
        known = len(self.source) if isinstance(self.source, Sized) else None
        if self.limit is None:
            return known
        return self.limit if known is None else min(known, self.limit)

    def held_out(self) -> tuple[Batches, Batches]:
        """Splits the batches, in order: the last quarter, at least one batch, is for measuring what the rest decided.

        All are read at once, as a source may come in another order every time.

        Returns:
            The first part and the last one; twice the same where there is a single batch.
        """
        batches = list(_first(self.source, self.limit))
        first = len(batches) - max(1, len(batches) // 4)
        parts = (batches[:first], batches[first:]) if first else (batches, batches)
        fit, held = (attrs.evolve(self, source=part, limit=None) for part in parts)
        return fit, held

    def read(self, device: torch.device | None) -> Iterator[Batch]:
        """Yields the batches that aren't empty, with their tensors on a device.

        Raises:
            ArgumentError: There is none, or a mask doesn't fit.
        """
        examples = 0
        for number, given in enumerate(_first(self.source, self.limit)):
            if device is not None:
                given = _moved(given, device)
            batch = self._batch(given, f"batch {number}")
            if batch.size:
                examples += batch.size
                yield batch
        if not examples:
            raise ArgumentError(
                "There are no calibration batches.",
                hint="an iterator that was used up elsewhere gives none: pass a list",
            )
        self.passes.append(examples)

    def _batch(self, given: Any, where: str) -> Batch:
        inputs = given if self.inputs is None else self.inputs(given)
        if isinstance(inputs, Mapping) and not isinstance(inputs, dict):
            inputs = dict(inputs)
        if self.finite and (flaw := _flaw(inputs, where)) is not None:
            raise flaw.error()
        tensors = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, torch.Tensor)]
        size = next((len(tensor) for tensor in tensors if tensor.dim()), 1)
        mask, doubt = self._mask(given, inputs, where)
        return Batch(given, example_of(inputs, self.forward_fn, None), mask, size, where, doubt)

    def _mask(self, given: Any, inputs: Any, where: str) -> tuple[torch.Tensor | None, str]:
        if self.mask is not None:
            mask = self.mask(given)
        else:
            mask = inputs.get("attention_mask") if isinstance(inputs, dict) else None
            if isinstance(mask, torch.Tensor) and mask.dim() == 4 and mask.shape[1:3] == (1, 1):
                mask = mask[:, 0, 0]
            if isinstance(mask, torch.Tensor) and mask.dim() != 2:
                return None, f"an attention_mask of shape {tuple(mask.shape)} is none of positions: all of them count"
        if mask is None:
            return None, ""
        if not isinstance(mask, torch.Tensor) or mask.dim() != 2:
            shape = tuple(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
            raise ArgumentError("A mask must be a tensor [batch, positions].", where=where, why=f"got {shape}")
        counting = _counting(mask, where)
        if not bool(counting.any()):
            raise ArgumentError(
                "A mask leaves nothing.",
                where=where,
                why="no position of the batch counts",
                hint="nonzero where a position counts; of a mask that is added to scores: Batches(mask=...)",
            )
        return counting, ""


@attrs.frozen
class _Flaw:
    """An input of a batch that isn't finite.

    Attributes:
        where: The batch and the input.
        why: How many values aren't.
        whole: Whether no example of the batch is finite.
    """

    where: str
    why: str
    whole: bool

    def error(self) -> ArgumentError:
        return ArgumentError(
            "Calibration data hold NaN or infinity.",
            where=self.where,
            why=self.why,
            hint="leave such examples out: what the model computes from them is NaN, too",
        )


def _flaw(inputs: Any, where: str) -> _Flaw | None:
    """Finds an input that holds NaN, or infinity that is no mask."""
    for path, tensor in pytree.tree_leaves_with_path(inputs):
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point() or tensor.is_meta:
            continue
        wrong = ~tensor.isfinite()
        if not bool(wrong.any()) or bool((tensor[wrong] == -torch.inf).all() and (tensor[~wrong] == 0).all()):
            continue
        named = pytree.keystr(path)
        first = tuple(wrong.nonzero()[0].tolist())
        return _Flaw(
            f"{where}, input {named}" if named else where,
            f"{int(wrong.sum())} of {tensor.numel()} values, the first at {first}",
            bool(wrong.reshape(max(1, len(wrong) if wrong.dim() else 1), -1).any(1).all()),
        )
    return None


_BLOCKED = -100.0
"""What is added to a score is at most this where a position is masked: the exponential is nothing."""


def _counting(mask: torch.Tensor, where: str) -> torch.Tensor:
    """Tells where a mask lets positions count: where it isn't zero, or, of one that is added to scores, where it is."""
    if not mask.is_floating_point() or not bool((mask < 0).any()):
        return mask != 0
    if bool(((mask != 0) & (mask > _BLOCKED)).any()):
        raise ArgumentError(
            "A mask isn't understood.",
            where=where,
            why="it has negative values that block nothing",
            hint="nonzero where a position counts; or, as added to scores, 0 there, and large and negative elsewhere",
        )
    return mask == 0


def _first(source: Iterable[Any], limit: int | None) -> Iterator[Any]:
    for number, batch in enumerate(source):
        if limit is not None and number >= limit:
            return
        yield batch


def _moved(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Mapping) and not isinstance(batch, dict):
        batch = dict(batch)
    return pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), batch)
