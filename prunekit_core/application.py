"""Applying a plan to a model: every check comes before the first change."""

from __future__ import annotations

import torch
from torch import nn

from prunekit_core import surgery
from prunekit_core.edits import Decision, Size, is_size, normal_size
from prunekit_core.errors import PlanError
from prunekit_core.optimizers import OptimizerCut, Optimizers
from prunekit_core.recorder import inventory
from prunekit_core.registry import Registry, default_registry


class Application:
    """One application of a plan: every check comes before the first change."""

    def __init__(
        self,
        plan: Decision,
        model: nn.Module,
        registry: Registry | None,
        optimizer: Optimizers | None = None,
    ) -> None:
        self._plan, self._model, self._registry = plan, model, registry
        self._modules, self._tensors = inventory(model)
        self._stand_ins: dict[int, nn.Module] = {}
        self._converted: dict[str, tuple[nn.Module, nn.Module]] = {}
        self._edited: list[nn.Module] = []
        self._optimizer = optimizer
        self._state: OptimizerCut | None = None

    def check(self) -> None:
        """Raises `PlanError` unless everything in the plan fits the model."""
        self.check_parameters()
        self._check_swaps()
        self._check_edits()
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

    def tensors(self) -> list[torch.Tensor]:
        """Returns the parameters and buffers that are cut; call `check` first."""
        return [self._tensors[cut.parameter] for cut in self._plan.parameters]

    def _tensor(self, name: str) -> torch.Tensor:
        tensor = self._tensors.get(name)
        if tensor is None:
            raise self._misfit(name, "the model has no such parameter")
        return tensor

    def _misfit(self, where: str, why: str) -> PlanError:
        return PlanError(
            "The plan was made for another model.",
            where=where,
            why=why,
            hint="apply it to an unpruned copy of the model it was made for",
        )

    def _check_swaps(self) -> None:
        for swap in self._plan.swaps:
            replacement = (self._registry or default_registry()).named("prunekit_replacements", swap.replacement)
            module = self._module(swap.module)
            if type(module) is not replacement.source:
                raise self._misfit(swap.module, f"it is a {type(module).__name__}, not a {replacement.source.__name__}")
            converted = replacement.convert(module)
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
        for edit in self._plan.edits:
            module = self._module(edit.module)
            value = vars(module).get(edit.attribute)
            plain = type(value) is type(edit.new) is int and value == edit.old  # most are
            if not plain and not (is_size(value) and normal_size(value) == edit.old and _same_form(edit.old, edit.new)):
                where = f"{edit.module or 'the model'}.{edit.attribute}"
                if edit.attribute not in vars(module):
                    raise self._misfit(where, "the module has no such attribute of its own")
                raise self._misfit(where, f"it is {value!r}, the plan expects the size {edit.old!r}")
            self._edited.append(module)

    def perform(self) -> None:
        """Changes the model; call `check` first."""
        for old, new in self._converted.values():
            surgery.exchange_module(self._model, old, new)
            new.train(old.training)
        for rescale in self._plan.rescales:
            surgery.scale_rows(self._tensor(rescale.parameter), rescale.rows, rescale.factor)
        positions = self._plan.all_positions(self._plan.parameters)
        surgery.shrink_tensors((self._tensors[name], dims) for name, dims in positions.items())
        if self._state is not None:
            self._state.perform()
        for edit, module in zip(self._plan.edits, self._edited, strict=True):
            surgery.set_size(module, edit.attribute, edit.new)


def _same_form(a: Size, b: Size) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b)
    return isinstance(a, int) and isinstance(b, int)
