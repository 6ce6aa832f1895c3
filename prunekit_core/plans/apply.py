"""Applying a plan to a model: every check comes before the first change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import nn

from prunekit_core.errors import PlanError
from prunekit_core.modules import surgery
from prunekit_core.modules.absent import Absent
from prunekit_core.modules.edits import Decision, Size, Table, TableEdit, is_size, normal_size
from prunekit_core.modules.entries import (
    Detached,
    Recount,
    Shortening,
    changed,
    detached,
    holder_of,
    is_in_place,
    left_of,
    place_of,
    prefix_of,
)
from prunekit_core.modules.renaming import tied_in
from prunekit_core.modules.source_code import other_source
from prunekit_core.modules.surgery import Scale
from prunekit_core.modules.transaction import Transaction
from prunekit_core.plans.fused import fused_off
from prunekit_core.plans.optimizers import OptimizerCut, Optimizers
from prunekit_core.plugins.registry import Registry, default_registry
from prunekit_core.plugins.stand_ins import stand_in
from prunekit_core.record.recorder import inventory


class Application:
    """One application of a plan: every check comes before the first change."""

    def __init__(
        self,
        plan: Decision,
        model: nn.Module,
        registry: Registry | None,
        optimizer: Optimizers | None = None,
        *,
        any_program: bool = False,
    ) -> None:
        self._any_program = any_program
        self._plan, self._model, self._registry = plan, model, registry
        self._modules, self._tensors = inventory(model)
        self._stand_ins: dict[int, nn.Module] = {}
        self._converted: dict[str, tuple[nn.Module, nn.Module]] = {}
        self._removed: dict[str, tuple[nn.Module, Absent]] = {}
        self._edited: list[tuple[dict[str, Any], str]] = []
        self._listed: list[tuple[dict[str, Any], str, TableEdit]] = []
        self._counted: list[tuple[dict[str, Any], str, Recount | Shortening]] = []
        self._copies = Detached()
        self._optimizer = optimizer
        self._state: OptimizerCut | None = None
        self._memories: Counter[int] | None = None
        self._positions: Mapping[str, Mapping[int, torch.Tensor]] = {}

    def check(self) -> None:
        """Raises `PlanError` unless everything in the plan fits the model."""
        self.check_parameters()
        self.check_program()
        self._check_stubs()
        self._check_swaps()
        self._check_edits()
        self._check_tables()
        self._check_entries()
        if self._optimizer is not None:
            self._state = OptimizerCut(self._plan, self._tensors, self._optimizer)

    def check_parameters(self) -> None:
        """Raises `PlanError` unless every parameter exists in the expected shape."""
        tensors = self._tensors
        for cut in self._plan.parameters:
            name = cut.parameter
            if name not in tensors or tensors[name].shape != cut.shape:
                found = tuple(self._tensor(name).shape)
                raise self._misfit(name, f"it has shape {found}, the plan was made for {cut.shape}")
        for rescale in self._plan.rescales:
            tensor = self._tensor(rescale.parameter)
            if not isinstance(tensor, nn.Parameter) or not tensor.dim() or not tensor.is_floating_point():
                raise self._misfit(rescale.parameter, "only rows of a real-valued parameter can be scaled")
            rows = tensor.shape[0]
            if any(not 0 <= start < stop <= rows for start, stop in rescale.rows):
                raise self._misfit(rescale.parameter, "rows to scale are out of range")

    def check_program(self) -> None:
        """Raises `PlanError` if the code of a module isn't that of the model that the plan was made for."""
        other = None if self._any_program else other_source(self._modules, self._plan.sources)
        if other is not None:
            path, name = other
            raise PlanError(
                "The plan was made for another program.",
                where=f"{path or 'the model'} ({name})",
                why="its forward, or what that calls, has other code than that of the model that the plan was made "
                "for, and may combine other units with each other",
                hint="make a plan for this model; any_program=True applies this one all the same",
            )

    def tensors(self) -> list[torch.Tensor]:
        """Returns the parameters and buffers that are cut; call `check` first."""
        return [self._tensors[cut.parameter] for cut in self._plan.parameters]

    def _tensor(self, name: str) -> torch.Tensor:
        tensor = self._tensors.get(name)
        if tensor is None:
            raise self._misfit(name, "the model has no such parameter")
        return tensor

    def _misfit(self, where: str, why: str) -> PlanError:
        error = PlanError(
            "The plan was made for another model.",
            where=where,
            why=why,
            hint="apply it to an unpruned copy of the model it was made for",
        )
        error.misfit = True
        return error

    def _check_stubs(self) -> None:
        """Raises `PlanError` unless the modules that go are there, apart from each other, with the parameters named."""
        if not self._plan.stubs:
            return
        paths = {stub.module for stub in self._plan.stubs}
        for stub in self._plan.stubs:
            module = self._module(stub.module)
            parts = stub.module.split(".")
            if not stub.module or any(".".join(parts[:depth]) in paths for depth in range(1, len(parts))):
                raise self._misfit(stub.module, "it can't be exchanged: it is the model, or in what is exchanged")
            try:
                self._removed[stub.module] = (module, Absent(stub.result, module))
            except AttributeError as error:
                raise self._misfit(stub.module, f"it has no such module in it: {error}") from error
        self._check_gone()

    def _check_gone(self) -> None:
        """Raises `PlanError` unless what the plan says of names is so: what goes, and what stays under another name."""
        for name in self._plan.gone:
            self._tensor(name)
        away = {id(part) for old, _ in self._removed.values() for part in old.modules()}
        away -= {id(part) for _, new in self._removed.values() for part in new.modules()}
        left = [module for module in self._modules.values() if id(module) not in away]
        staying = set(surgery.places_in(left))
        gone = set(self._plan.gone)
        for name, tensor in self._tensors.items():
            if (name in gone) == (id(tensor) in staying):
                why = "it is registered elsewhere, too" if name in gone else "it is in removed modules only"
                raise self._misfit(name, f"{why}, and the plan says that it {'goes' if name in gone else 'stays'}")
        tied = tied_in(self._model, Decision(stubs=self._plan.stubs).renaming, gone)
        other = next(iter({*tied} ^ {*self._plan.tied}), None)
        if other is not None:
            raise self._misfit(other.names[0], "its other names are not those of the plan")

    def _check_swaps(self) -> None:
        for swap in self._plan.swaps:
            registry = self._registry or default_registry()
            replacement = registry.named("prunekit_replacements", swap.replacement)
            module = self._module(swap.module)
            if type(module) is not replacement.source:
                raise self._misfit(swap.module, f"it is a {type(module).__name__}, not a {replacement.source.__name__}")
            converted = stand_in(registry, replacement, module, swap.module)
            if converted is None or not swap.module or id(module) in self._stand_ins:
                raise self._misfit(swap.module, f"{swap.replacement} can't stand in for this module")
            self._converted[swap.module] = (module, converted)
            self._stand_ins[id(module)] = converted

    def _module(self, path: str) -> nn.Module:
        module = self._modules.get(path)
        if module is None:
            try:
                module = self._model.get_submodule(path)
            except AttributeError as error:
                raise self._misfit(path, "the model has no such module") from error
        return self._stand_ins.get(id(module), module)

    def _check_edits(self) -> None:
        seen: set[tuple[int, str]] = set()
        for edit in self._plan.edits:
            table, name = place_of(self._module(edit.module), edit.attribute)
            if (id(table), name) in seen:
                raise self._misfit(f"{edit.module}.{edit.attribute}", "it is set twice: the module has another name")
            seen.add((id(table), name))
            value = table.get(name)
            plain = type(value) is type(edit.new) is int and value == edit.old  # most are
            if not plain and not (is_size(value) and normal_size(value) == edit.old and _same_form(edit.old, edit.new)):
                where = f"{edit.module or 'the model'}.{edit.attribute}"
                if name not in table:
                    raise self._misfit(where, "the module has no such attribute of its own")
                raise self._misfit(where, f"it is {value!r}, the plan expects the size {edit.old!r}")
            self._edited.append((table, name))

    def _check_tables(self) -> None:
        """Raises `PlanError` where a list or a mapping holds something else than the plan expects."""
        for edit in self._plan.tables:
            names = tuple(edit.attribute.split("."))
            table = holder_of(self._module(edit.module), names) or {}
            if table.get(names[-1]) is not None:  # a configuration that is made anew may not have it
                if Table.of(table[names[-1]]) != edit.old:
                    where, why = (
                        f"{edit.module or 'the model'}.{edit.attribute}",
                        "it isn't what the plan expects there",
                    )
                    raise self._misfit(where, f"{why}: {edit.old.value()!r:.200}")
                self._listed.append((table, names[-1], edit))

    def _check_entries(self) -> None:
        """Raises `PlanError` unless lists have these entries, which are exchanged, and what counts them is there."""
        entries = self._plan.entries
        for deletion in entries.deletions:
            container = self._module(deletion.container)
            if prefix_of(container) != deletion.prefix or len(container._modules) != deletion.size:
                raise self._misfit(deletion.container, f"it is no list of {deletion.size} modules")
            for number in deletion.entries:
                path = deletion.path(number)
                if path not in self._removed and not isinstance(self._module(path), Absent):
                    raise self._misfit(path, "it can't leave its list: the plan doesn't exchange it")
        for change in entries.changes:
            path, names = change.place
            table = holder_of(self._module(path), names)
            if not is_in_place(table, change):
                raise self._misfit(".".join(filter(None, (path, *names))), "it isn't what the plan expects there")
            assert table is not None
            self._counted.append((table, names[-1], change))

    def _delete_entries(self, transaction: Transaction) -> None:
        new = {id(old): new for old, new in (*self._converted.values(), *self._removed.values())}
        for deletion in self._plan.entries.deletions:
            container = self._module(deletion.container)
            children = {name: new.get(id(child), child) for name, child in left_of(container, deletion).items()}
            transaction.entry(vars(container), "_modules", type(container._modules)(children))
        for table, name, change in self._counted:
            self._set(transaction, table, name, changed(table[name], change))

    def _detach(self, transaction: Transaction) -> None:
        """Copies the objects whose attributes change, such as a configuration: other models may hold them as well."""
        edits = [(edit.module, tuple(edit.attribute.split(".")), edit) for edit in self._plan.changed()]
        inside = [Recount((path, names), 0, 0) for path, names, _ in edits if len(names) > 1]
        self._copies = detached(self._modules, (*self._plan.entries.changes, *inside))
        for held in self._copies.held:
            transaction.entry(*held)

    def _set(self, transaction: Transaction, table: dict[str, Any], name: str, value: Any) -> None:
        if id(table) in self._copies.tables:
            self._copies.tables[id(table)][name] = value
        else:
            transaction.entry(table, name, value)

    def prepare(
        self, transaction: Transaction, values: Mapping[str, torch.Tensor] = {}, *, assign: bool = False
    ) -> None:
        """Makes everything that the model gets and hands it to a transaction; call `check` first.

        Args:
            transaction: What puts it in.
            values: Values of the pruned tensors that are known already, by canonical name: they are not cut then.
            assign: Whether the values take the place of the tensors themselves, as parameters of their dtypes.
        """
        self._positions = self._plan.all_positions(self._plan.parameters)
        own = {id(module) for module in self._modules.values()} if self._converted or self._removed else set()
        for old, new in (*self._converted.values(), *self._removed.values()):
            for module in new.modules():
                if id(module) not in own:  # a stand-in may hold layers of what it stands in for
                    module.training = old.training
            for parent in self._modules.values():
                for name, child in parent._modules.items():
                    if child is old:
                        transaction.entry(parent._modules, name, new)
        for module, attribute, value in fused_off(self._modules, self._exchanged()):
            transaction.entry(vars(module), attribute, value)
        if values:
            self._fill(transaction, values, assign)
        self._cut(transaction, values)
        if self._state is not None:
            self._state.prepare(transaction, self._positions)
        self._detach(transaction)
        for edit, (table, name) in zip(self._plan.edits, self._edited, strict=True):
            self._set(transaction, table, name, surgery.sized_like(table[name], edit.new))
        for table, name, listed in self._listed:
            self._set(transaction, table, name, listed.new.value())
        self._delete_entries(transaction)

    def _exchanged(self) -> set[str]:
        """Returns the paths of modules that others stand in for, but for those that leave their lists as well."""
        return {*self._converted, *self._removed} - self._plan.entries.deleted()

    def mask(self, transaction: Transaction) -> None:
        """Makes parameters whose removed units are zero and hands them to a transaction.

        Raises:
            PlanError: The plan doesn't fit the model.
        """
        if self._plan.absent and not self._plan.silent:
            raise PlanError(
                "Branches can't be switched off by zeros in the weights.",
                where=", ".join(self._plan.absent),
                why="not all that they add is zero where the weights are that nothing else reads",
                hint="apply the plan to a copy",
            )
        self.check_parameters()
        self.check_program()
        self._check_stubs()
        for name in self._plan.silent:
            tensor = self._tensors[name]
            with surgery.as_made(tensor):
                zeros = torch.zeros_like(tensor.data)
            transaction.refill(tensor, zeros, shared=self._is_shared(tensor))
        for name, positions in self._plan.all_positions(self._plan.parameters).items():
            tensor = self._tensors[name]
            if isinstance(tensor, nn.Parameter) and positions:
                with surgery.as_made(tensor):
                    values = torch.empty_like(tensor.data).copy_(tensor.data)
                    surgery.zero_positions(values, positions)
                transaction.refill(tensor, values, shared=self._is_shared(tensor))

    def _fill(self, transaction: Transaction, values: Mapping[str, torch.Tensor], assign: bool) -> None:
        """Hands over tensors whose values are known."""
        converted = [module for _, new in self._converted.values() for module in new.modules()]
        places = surgery.places_in([*self._modules.values(), *converted])
        for name, value in values.items():
            tensor = self._tensors[name]
            if assign or tensor.is_meta:
                device = value.device if tensor.is_meta else tensor.device
                new = surgery.parameter_like(tensor, value.to(device, value.dtype if assign else tensor.dtype))
                for table, leaf in places[id(tensor)]:
                    transaction.entry(table, leaf, new)
                continue
            new = surgery.values_like(tensor, value)
            if new.shape == tensor.shape:
                transaction.refill(tensor, new, shared=self._is_shared(tensor))
            else:
                gradient = tensor.grad if tensor.is_leaf else None
                if gradient is not None:
                    gradient = surgery.select_positions(gradient, self._positions[name])
                transaction.resize(tensor, new, gradient)

    def _cut(self, transaction: Transaction, done: Container[str]) -> None:
        """Hands over tensors that are cut or scaled."""
        rescales: dict[str, list[Scale]] = {}
        for rescale in self._plan.rescales:
            if rescale.parameter not in done:
                rescales.setdefault(rescale.parameter, []).append((rescale.rows, rescale.factor))
        surgery.plan_cuts(
            transaction,
            (
                (self._tensors[name], dims, rescales.pop(name, ()))
                for name, dims in self._positions.items()
                if dims and name not in done
            ),
        )
        for name, scales in rescales.items():  # of what isn't cut
            tensor = self._tensors[name]
            with surgery.as_made(tensor):
                data = tensor.data.clone()
                for runs, factor in scales:
                    surgery.scale_rows(data, runs, factor)
            transaction.refill(tensor, data, shared=self._is_shared(tensor))

    def _is_shared(self, tensor: torch.Tensor) -> bool:
        """Whether others see a tensor's memory: other tensors of the model, what it is a part of, other processes."""
        if tensor.is_meta:
            return False
        if self._memories is None:
            self._memories = Counter(_memory(other) for other in self._tensors.values())
        part = tensor.untyped_storage().nbytes() != tensor.nbytes
        return part or self._memories[_memory(tensor)] > 1 or (tensor.is_cpu and tensor.is_shared())


def _memory(tensor: torch.Tensor) -> int:
    """Which memory a tensor is in."""
    return id(tensor) if tensor.is_meta else tensor.untyped_storage().data_ptr() or id(tensor)


def _same_form(a: Size, b: Size) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b)
    return isinstance(a, int) and isinstance(b, int)
