"""A plan: which units stay, as data.

A plan is made on one model and applies to any copy of it without tracing again. It can be written as JSON, compared,
composed, and comes from strangers: applying one slices tensors that exist, sets attributes that exist and hold the old
value (numbers, lists and mappings of numbers and texts), and uses replacements registered by name. Nothing else.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn

from prunekit_core.algebra import layout as layouts
from prunekit_core.arguments import shown
from prunekit_core.collector import collection_paused
from prunekit_core.errors import ArgumentError, PlanError
from prunekit_core.files import write_text
from prunekit_core.modules import absent, entries
from prunekit_core.modules.edits import (
    AttributeEdit,
    Decision,
    GroupCut,
    ParameterCut,
    Rescale,
    Size,
    Stub,
    Swap,
    Table,
    TableEdit,
)
from prunekit_core.modules.exclusive import exclusive
from prunekit_core.modules.renaming import Tied
from prunekit_core.modules.transaction import Transaction
from prunekit_core.plans.apply import Application
from prunekit_core.plans.compose import compose, difference
from prunekit_core.plans.optimizers import Optimizers
from prunekit_core.plans.pricing import Prices, Room
from prunekit_core.plugins.registry import Registry
from prunekit_core.record.recorder import unwrap

FORMAT = 1


@attrs.frozen
class Preview:
    """What a plan saves.

    Attributes:
        params_before, params_after: Number of parameters.
        bytes_before, bytes_after: Bytes of parameters and buffers.
        costs: Cost model to (before, after), for the cost models at hand (``"macs"``).
        groups: Group name to (units before, units after).
    """

    params_before: int
    params_after: int
    bytes_before: int
    bytes_after: int
    costs: Mapping[str, tuple[float, float]]
    groups: Mapping[str, tuple[int, int]]

    def __str__(self) -> str:
        left = _percent(self.params_after, self.params_before)
        lines = [
            f"parameters  {self.params_before:,} -> {self.params_after:,}  {left}",
            f"bytes       {self.bytes_before:,} -> {self.bytes_after:,}",
        ]
        for name, (before, after) in self.costs.items():
            if name != "params":
                lines.append(f"{name:<11} {before:,.0f} -> {after:,.0f}  {_percent(after, before)}")
        lines.extend(f"  {name}: {before} -> {after}" for name, (before, after) in self.groups.items())
        return "\n".join(lines)


def _check_copy(operation: Application, number: int) -> None:
    try:
        operation.check()
    except PlanError as error:
        if not error.misfit:
            raise
        raise PlanError(
            "A copy isn't like the model.",
            where=f"copies[{number}], {error.where}",
            why=error.why,
            hint="copies are models with the layers and shapes that the model has before the cut",
        ) from error


def _check_apart(operations: Iterable[Application]) -> None:
    """Raises `PlanError` if a tensor would be cut twice."""
    cut = [tensor for operation in operations for tensor in operation.tensors()]
    if len({id(tensor) for tensor in cut}) < len(cut):
        raise PlanError(
            "A copy shares parameters with the model.",
            why="they would be cut twice",
            hint="copies are instances of their own: copy.deepcopy(model)",
        )


def _percent(after: float, before: float) -> str:
    return f"({after / before:.0%} kept)" if before else ""


@attrs.frozen(repr=False)
class Plan(Decision):
    """Which units stay, and every edit that follows from it.

    The parts are those of `Decision`.
    """

    _costs: Prices | None = attrs.field(default=None, eq=False, repr=False, alias="costs")
    _sizes: Mapping[str, Room] | None = attrs.field(default=None, eq=False, repr=False, alias="sizes")

    def __repr__(self) -> str:
        gone = f", {len(self.absent)} branches gone" if self.absent else ""
        return f"Plan({len(self.cuts)} groups cut, in {len(self.parameters)} parameters{gone})"

    def apply(
        self,
        model: nn.Module,
        *,
        registry: Registry | None = None,
        optimizer: Optimizers | None = None,
        copies: Iterable[nn.Module] = (),
        any_program: bool = False,
    ) -> nn.Module:
        """Prunes a model in place: checks everything first, then only slices and sets.

        Args:
            model: A copy of the model the plan was made for.
            registry: Where replacements are found; None for the default registry.
            optimizer: An optimizer that trains the model, or several; their state (momentum, averages) is cut along.
            copies: Further copies of the model that are cut alike, such as moving averages of its weights.
            any_program: Whether the code of the model's modules may be other than it was when the plan was made.

        Returns:
            The model.

        Raises:
            PlanError: The plan doesn't fit the model, a copy or the optimizer, or was made for another program; nothing
                was changed.
            BusyModelError: Another thread works on the model.
        """
        with collection_paused(), Transaction() as transaction:
            self.apply_within(
                transaction, model, registry=registry, optimizer=optimizer, copies=copies, any_program=any_program
            )
        return model

    def apply_within(
        self,
        transaction: Transaction,
        model: nn.Module,
        *,
        registry: Registry | None = None,
        optimizer: Optimizers | None = None,
        copies: Iterable[nn.Module] = (),
        values: Mapping[str, torch.Tensor] | None = None,
        any_program: bool = False,
    ) -> None:
        """Does what `apply` does, as part of a larger transaction.

        Args:
            transaction: What else is done with it.
            model: See `apply`.
            registry: See `apply`.
            optimizer: See `apply`.
            copies: See `apply`.
            values: Values that tensors of the model have afterwards, by canonical name; they take the place of the cut
                ones, and may be taken over.
            any_program: See `apply`.
        """
        copies = list(copies)
        strange = next((other for other in copies if not isinstance(other, nn.Module)), None)
        if strange is not None:
            raise ArgumentError("copies is a list of models.", why=f"got {shown(strange)}")
        targets = [unwrap(model), *(unwrap(other) for other in copies)]
        with contextlib.ExitStack() as alone:
            for target in targets:
                alone.enter_context(exclusive(target))
            operations = [Application(self, targets[0], registry, optimizer, any_program=any_program)]
            operations += [Application(self, other, registry, any_program=any_program) for other in targets[1:]]
            operations[0].check()
            for number, operation in enumerate(operations[1:]):
                _check_copy(operation, number)
            if len(operations) > 1:
                _check_apart(operations)
            operations[0].prepare(transaction, values or {})
            for operation in operations[1:]:
                operation.prepare(transaction)
            transaction.commit()

    def check(
        self,
        model: nn.Module,
        *,
        registry: Registry | None = None,
        optimizer: Optimizers | None = None,
        any_program: bool = False,
    ) -> None:
        """Makes every check of `apply`, and changes nothing.

        Args:
            model: See `apply`.
            registry: See `apply`.
            optimizer: See `apply`.
            any_program: See `apply`.

        Raises:
            PlanError: The plan doesn't fit the model or the optimizer.
        """
        Application(self, unwrap(model), registry, optimizer, any_program=any_program).check()

    def mask(self, model: nn.Module, *, any_program: bool = False) -> nn.Module:
        """Zeroes the units instead of removing them (soft pruning), in place; shapes stay.

        Of a branch that goes, zeros are written into the weights and biases that it reads last: it adds nothing then.

        Args:
            model: The model.
            any_program: See `apply`.

        Raises:
            PlanError: The plan doesn't fit the model, or zeros in its weights don't switch a branch off; nothing was
                changed.
        """
        target = unwrap(model)
        with exclusive(target), Transaction() as transaction:
            Application(self, target, None, any_program=any_program).mask(transaction)
            transaction.commit()
        return model

    def preview(self) -> Preview:
        """Tells what the plan saves, without running anything.

        A plan that was read from JSON knows only the parameters that it changes.
        """
        kept = self.kept
        before = dict(self._sizes or {cut.parameter: Room(math.prod(cut.shape)) for cut in self.parameters})
        after = dict(before)
        for cut in self.parameters:
            left = math.prod(layouts.new_size(dim, kept) for dim in cut.dims)
            after[cut.parameter] = attrs.evolve(before[cut.parameter], numbers=left)
        for name in self.gone:
            after.pop(name, None)
        return Preview(
            params_before=sum(room.numbers for room in before.values() if not room.buffer),
            params_after=sum(room.numbers for room in after.values() if not room.buffer),
            bytes_before=sum(room.bytes for room in before.values()),
            bytes_after=sum(room.bytes for room in after.values()),
            costs=self._costs.found() if self._costs else {},
            groups={cut.group: (cut.size, len(cut.kept)) for cut in self.cuts},
        )

    def to_json(self) -> str:
        """Writes the plan as JSON."""
        data = {
            "format": FORMAT,
            "groups": {cut.group: {"size": cut.size, "kept": list(cut.kept)} for cut in self.cuts},
            "parameters": {
                cut.parameter: {
                    "shape": list(cut.shape),
                    "dims": [layouts.to_json(dim) for dim in cut.dims],
                    **({"aliases": list(cut.aliases)} if cut.aliases else {}),
                    **({} if cut.persistent else {"persistent": False}),
                }
                for cut in self.parameters
            },
            "edits": [[e.module, e.attribute, e.old, e.new] for e in self.edits],
            "rescales": [[r.parameter, [list(run) for run in r.rows], r.factor] for r in self.rescales],
            "swaps": [[s.module, s.replacement] for s in self.swaps],
            **({"absent": self._absent_to_json()} if self.absent or self.stubs else {}),
            **({"sources": dict(self.sources)} if self.sources else {}),
            **({"tables": [_table_to_json(edit) for edit in self.tables]} if self.tables else {}),
        }
        return json.dumps(data)

    def _absent_to_json(self) -> dict[str, Any]:
        return {
            "branches": list(self.absent),
            "modules": {stub.module: absent.to_json(stub.result) for stub in self.stubs},
            "parameters": list(self.gone),
            **({"silent": list(self.silent)} if self.silent else {}),
            **({"tied": [[tied.name, *tied.names] for tied in self.tied]} if self.tied else {}),
            **({"entries": entries.to_json(self.entries)} if self.entries else {}),
        }

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Reads what `to_json` wrote.

        Raises:
            PlanError: The text is no plan, or contradicts itself.
        """
        try:
            data = json.loads(text, object_pairs_hook=_named_once)
        except (TypeError, ValueError, RecursionError) as error:
            raise PlanError("The text is not a plan.", why=f"no valid JSON: {error}") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise PlanError("The text is not a plan.", why=f'it has no "format": {FORMAT}')
        try:
            return cls(
                cuts=tuple(
                    GroupCut(_text(name), _whole(entry["size"]), tuple(_whole(unit) for unit in entry["kept"]))
                    for name, entry in data["groups"].items()
                ),
                parameters=tuple(
                    ParameterCut(
                        _text(name),
                        tuple(_whole(size) for size in entry["shape"]),
                        tuple(layouts.from_json(dim) for dim in entry["dims"]),
                        tuple(_text(other) for other in entry.get("aliases", ())),
                        _switch(entry.get("persistent", True)),
                    )
                    for name, entry in data["parameters"].items()
                ),
                edits=tuple(
                    AttributeEdit(_text(m), _text(a), _size(old), _size(new)) for m, a, old, new in data["edits"]
                ),
                rescales=tuple(
                    Rescale(_text(name), tuple((_whole(a), _whole(b)) for a, b in rows), _factor(factor))
                    for name, rows, factor in data["rescales"]
                ),
                swaps=tuple(Swap(_text(module), _text(name)) for module, name in data["swaps"]),
                **_absent(data.get("absent")),
                sources=tuple((_text(path), _text(source)) for path, source in data.get("sources", {}).items()),
                tables=tuple(
                    TableEdit(_text(m), _text(a), Table.from_json(old), Table.from_json(new))
                    for m, a, old, new in data.get("tables", ())
                ),
            )
        except PlanError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise PlanError("The plan is malformed.", why=f"{type(error).__name__}: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the plan to a JSON file, which appears whole or not at all."""
        write_text(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Reads what `save` wrote.

        Raises:
            PlanError: There is no such file, or it holds no plan.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            hint = "prunekit.read_plan reads the plan that lies in a folder" if Path(path).is_dir() else ""
            raise PlanError(
                "The file of the plan can't be read.", where=os.fspath(path), why=str(error), hint=hint
            ) from error
        try:
            return cls.from_json(text)
        except PlanError as error:
            error.where = error.where or os.fspath(path)
            raise

    def then(self, later: Plan) -> Plan:
        """Composes two plans: applying the result equals applying this one, then the later one.

        Args:
            later: A plan made for the model after this plan.

        Raises:
            PlanError: The later plan doesn't fit the model that this one leaves.
        """
        return _plan(compose(self, later))

    def since(self, earlier: Plan) -> Plan:
        """Returns the plan that leads from the model after ``earlier`` (a plan with the same groups that keeps at
        least the same units) to the model after this plan."""
        return _plan(difference(self, earlier))


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in it")
    return found


def _absent(data: Any) -> dict[str, Any]:
    """Reads the part of a plan about branches that go, which plans without any don't have."""
    if data is None:
        return {}
    return {
        "absent": tuple(map(_text, data["branches"])),
        "stubs": tuple(Stub(_text(path), absent.from_json(result)) for path, result in data["modules"].items()),
        "gone": tuple(map(_text, data["parameters"])),
        "silent": tuple(map(_text, data.get("silent", ()))),
        "tied": tuple(Tied(_text(name), tuple(map(_text, names))) for name, *names in data.get("tied", ())),
        "entries": entries.from_json(data["entries"]) if "entries" in data else entries.NO_ENTRIES,
    }


def _table_to_json(edit: TableEdit) -> list[Any]:
    return [edit.module, edit.attribute, edit.old.to_json(), edit.new.to_json()]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a name")
    return value


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"{value!r} is not a size")
    return value


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is not true or false")
    return value


def _factor(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a factor")
    return float(value)


def _size(value: Any) -> Size:
    return tuple(_whole(item) for item in value) if isinstance(value, list) else _whole(value)


def _plan(decision: Decision) -> Plan:
    return Plan(**{field.name: getattr(decision, field.name) for field in attrs.fields(Decision)})
