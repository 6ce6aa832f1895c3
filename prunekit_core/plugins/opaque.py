"""Modules that aren't looked into: a recording sees one operation for all that happens in them.

A layer type declares it (`Opaque`): how the axes of the module are tied, and which shapes its outputs have. `Closed`
is such a module of a shadow.
"""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import nn

from prunekit_core.algebra import axes
from prunekit_core.algebra.axes import Axis
from prunekit_core.errors import ArgumentError, PluginError
from prunekit_core.modules.surgery import set_size
from prunekit_core.modules.training_flag import mode_of
from prunekit_core.modules.tree import modules_in, tensors_in
from prunekit_core.plugins.blame import Blame, describe_error, module_of
from prunekit_core.program.op_call import OpCall, Outputs, Verb
from prunekit_core.program.rules import ModuleOp, OpRule, as_rule
from prunekit_core.torch_private.trees import pytree

UNSAID = "the rule of an opaque layer says nothing about it"
"""The reason that pins what a rule leaves out."""
_NOT_SAID = (
    "forward",
    "training",
    "_modules",
    "_parameters",
    "_buffers",
)  # the shadow's own; tensors are among the arguments


def _check_rule(opaque: Opaque, field: attrs.Attribute[OpRule], rule: OpRule) -> None:
    further = [fact.name for fact in attrs.fields(OpRule) if fact.name != "ties" and getattr(rule, fact.name)]
    if further:
        raise ArgumentError(
            "The rule of an opaque layer says more than how it ties axes.",
            where=", ".join(further),
            hint="leave that out: a layer that isn't looked into is run as it is, and taken for one that changes all",
        )


@attrs.frozen(eq=False)
class Opaque:
    """What a recording must know about a module that it doesn't look into.

    Attributes:
        rule: Ties the axes, with the verbs of an op rule. ``call["x"]`` is an argument of the module's ``forward`` by
            its name, ``call["weight"]`` or ``call["inner.weight"]`` one of its own parameters or buffers. It returns
            the axes of the outputs. What it says nothing about is pinned. An `OpRule` may hold ``ties`` only.
        fake: Called as ``fake(module, *args, **kwargs)`` with the arguments of ``forward`` as tensors without data;
            returns what ``forward`` returns, made of empty tensors (``x.new_empty(...)``). None where that can't be
            said: then models with the module are recorded on real tensors.
        exact: False if the module's result depends on how many units there are, so that removing some isn't the same
            as zeroing them. For single axes the rule may say so: ``call.whole(axis, Verb.MIX)``.
        added: For a module that returns one tensor, the first argument of its ``forward`` and something added to it:
            called as ``added(module, *args, **kwargs)``, returns what is added, of the same shape and without calling
            ``forward`` of the module. The recording sees this as the operation, and a sum behind it: a branch. None for
            a module that has none.
    """

    rule: OpRule = attrs.field(converter=as_rule, validator=_check_rule)
    fake: Callable[..., Any] | None = None
    exact: bool = True
    added: Callable[..., Any] | None = None


@attrs.frozen
class Held:
    """An argument that the rule can't see: an object with tensors inside. Any two are equal."""

    value: Any = attrs.field(eq=False)


class OtherShapesError(ValueError):
    """A module that isn't looked into returns other shapes than its layer type says."""


class Closed:
    """A module of a shadow that runs as one operation.

    Args:
        module: The module.
        name: Dotted name of the class that was declared opaque.
        declared: What was declared about it.
        blame: Whose layer type declared it.
        passed: What layers of the same shadow ran through on made-up values: what is alike isn't tried twice.

    Attributes:
        op: The operation.

    Raises:
        PluginError: An argument of its forward has the name of one of its parameters or buffers.
    """

    def __init__(self, module: nn.Module, name: str, declared: Opaque, blame: Blame, passed: set[object]) -> None:
        self.op = ModuleOp(f"opaque::{name}", _complete(declared), self._run)
        self._module, self._declared, self._passed = module, declared, passed
        self._blame = attrs.evolve(blame, noun=f"fake of {name}", thing=declared.fake)
        self._forward = module.forward
        self._signature = inspect.signature(module.forward)
        self._modules = modules_in(module)
        self._check_names(self._signature.parameters)
        self._tried: bool | None = None

    def _check_names(self, names: Sequence[str] | Mapping[str, Any]) -> None:
        for name in tensors_in(self._modules):
            if name in names:
                raise PluginError(
                    "An opaque layer has an argument and a parameter of the same name.",
                    where=f"{name} of {self.op.name.removeprefix('opaque::')}",
                    hint="rename the argument of its forward",
                )

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Names the arguments of a call, then the module's own tensors."""
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given: dict[str, Any] = {}
        for name, parameter in self._signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                self._check_names(bound.arguments[name])
                given.update(bound.arguments[name])
            else:
                given[name] = bound.arguments[name]
        arguments = {name: Held(value) if _hidden(value) else value for name, value in given.items()}
        arguments |= {f"{name} (inside)": found for name, value in given.items() if (found := _hidden(value))}
        return {**arguments, **tensors_in(self._modules)}

    def whole(self, result: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Returns what the module returns, from what its operation does: the sum where the module has a branch."""
        if self._declared.added is None:
            return result
        first = next(iter(self._signature.bind(*args, **kwargs).arguments.values()))
        return first + result

    def fake(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Returns outputs without data.

        Raises:
            NotImplementedError: Their shapes weren't declared.
        """
        if self._declared.fake is None:
            raise NotImplementedError(f"the layer type of {self.op.name} declares no `fake`, so it needs real tensors")
        given = {id(leaf) for leaf in pytree.tree_leaves((args, kwargs))}
        outputs = self._declared.fake(self._module, *args, **kwargs)
        # what is handed back is another tensor, as it is when the module runs
        return pytree.tree_map_only(torch.Tensor, lambda t: torch.empty_like(t) if id(t) in given else t, outputs)

    def fault(self, error: Exception) -> str:
        """Words what `fake` raised, or how it contradicts the module; empty where there is no `fake`."""
        if self._declared.fake is None:
            return ""
        if isinstance(error, OtherShapesError):
            return f"the {self._blame.where}: {error}"
        return f"the {self._blame.where}: {describe_error(error, module_of(self._declared.fake))}"

    def try_out(self, arguments: Mapping[str, Any], outputs: Any) -> str:
        """Runs the module on made-up values, to see that it runs in these shapes and returns those of the outputs.

        What can't run so at the first time (a kernel for another device, an index that must fit) isn't tried again.

        Returns:
            Why it could not be tried, at the first time; else nothing.

        Raises:
            Exception: What the module raises in these shapes, although it ran at the first time.
            OtherShapesError: It returns other shapes.
        """
        if self._tried is False or any(tensor.is_meta for tensor in _tensors(arguments)):
            return ""
        key = self._likeness(arguments)
        if key in self._passed:
            self._tried = True
            return ""
        first, self._tried = self._tried is None, False
        if any(isinstance(value, Held) for value in arguments.values()):
            return "it is given objects with tensors inside"
        try:
            found = self.op(**pytree.tree_map_only(torch.Tensor, _made_up, dict(arguments)))
        except Exception as error:
            if not first:
                self._tried = True
                raise
            return f"{type(error).__name__}: {error}"
        self._tried = True
        shapes, expected = ([tuple(tensor.shape) for tensor in _tensors(value)] for value in (found, outputs))
        if shapes != expected:
            raise OtherShapesError(f"it returns tensors of shape {shapes}, its layer type says {expected}")
        self._passed.add(key)
        return ""

    def _likeness(self, arguments: Mapping[str, Any]) -> object:
        """Writes what decides whether the module runs: classes, attributes, and the shapes of its arguments."""
        inside = [
            (path, id(type(module)), mode_of(module), [*_written_in(module)]) for path, module in self._modules.items()
        ]
        given = pytree.tree_map_only(torch.Tensor, lambda t: (tuple(t.shape), t.dtype, t.device), dict(arguments))
        return repr((self.op.name, inside, given))

    def _run(self, arguments: Mapping[str, Any], sizes: Mapping[tuple[str, str], Any]) -> Any:
        own = tensors_in(self._modules)
        given = {id(tensor): arguments[name] for name, tensor in own.items()}
        args, kwargs = self._unbound({name: value for name, value in arguments.items() if name not in own})
        undo: list[tuple[dict[str, Any], str, Any]] = []
        try:
            for module in self._modules.values():
                for table in (vars(module)["_parameters"], vars(module)["_buffers"]):
                    for name, tensor in table.items():
                        if tensor is not None and given[id(tensor)] is not tensor:
                            undo.append((table, name, tensor))
            for table, name, tensor in undo:
                table[name] = given[id(tensor)]
            for (path, attribute), value in sizes.items():
                undo.append((vars(self._modules[path]), attribute, vars(self._modules[path])[attribute]))
                set_size(self._modules[path], attribute, value)
            added = self._declared.added
            return self._forward(*args, **kwargs) if added is None else added(self._module, *args, **kwargs)
        finally:
            for table, name, value in undo:
                table[name] = value

    def _unbound(self, arguments: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Deals named arguments out as the forward takes them."""
        values = {name: value.value if isinstance(value, Held) else value for name, value in arguments.items()}
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        rest = {name: value for name, value in values.items() if not name.endswith(" (inside)")}
        for name, parameter in self._signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                args.extend(rest.pop(name))
            elif parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                kwargs[name] = rest.pop(name)
            elif parameter.kind is not inspect.Parameter.VAR_KEYWORD:
                args.append(rest.pop(name))
        return args, {**kwargs, **rest}


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _written_in(module: nn.Module) -> Iterator[tuple[str, object]]:
    for key, value in dict.items(vars(module)):
        if key not in _NOT_SAID:
            yield key, _written(value)


def _written(value: Any) -> object:
    """Writes a value such that equal texts mean equal values; an object is only like itself."""
    if value is None or isinstance(value, int | float | complex | str | bytes | torch.dtype | torch.device):
        return value
    if isinstance(value, tuple | list):
        return [_written(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(str(_written(item)) for item in value)
    if isinstance(value, Mapping):
        return [(_written(key), _written(item)) for key, item in value.items()]
    return id(value)


def _made_up(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_floating_point() or tensor.is_complex():
        return torch.randn(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    return torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def _hidden(value: Any) -> list[torch.Tensor]:
    """Lists the tensors in an argument unless it is a tensor, or tensors in lists and tuples."""

    def listed(value: Any) -> int:
        if isinstance(value, list | tuple):
            return sum(map(listed, value))
        return int(isinstance(value, torch.Tensor))

    leaves = pytree.tree_leaves(value)
    objects = [leaf for leaf in leaves if hasattr(leaf, "__dict__") and not isinstance(leaf, torch.Tensor | type)]
    found = _tensors([leaves, [list(vars(leaf).values()) for leaf in objects]])
    return found if len(found) > listed(value) else []


def _complete(declared: Opaque) -> OpRule:
    """Makes the rule that also pins what the declared one says nothing about."""

    @functools.wraps(declared.rule.ties)
    def ties(call: OpCall) -> Outputs:
        for name, value in call.arguments.items():
            if name.endswith(" (inside)"):
                for tensor in value:
                    call.pin(tensor.axes, "inside an object that an opaque layer is given")
        outputs = declared.rule.ties(call)
        made: list[Sequence[Axis]]
        if outputs is None:
            made = []
        elif not outputs or isinstance(outputs[0], Axis):
            made = [outputs]  # type: ignore[list-item]
        else:
            made = list(outputs)  # type: ignore[arg-type]
        sizes = [tuple(axes.resolve(axis).size for axis in dims) for dims in made]
        if sizes != list(call.shapes[: len(sizes)]):
            return outputs  # the engine will say so
        _pin_the_rest(call, made)
        if not declared.exact:
            for axis in [axis for tensor in call.tensors() for axis in tensor.axes]:
                call.whole(axis, Verb.MIX, "an opaque layer that is not exact")
        return outputs

    return OpRule(ties)


def _pin_the_rest(call: OpCall, outputs: Sequence[Sequence[Axis]]) -> None:
    """Pins the axes that the rule neither tied to another one, nor returned, nor gave a role or a use."""
    dims = [(tensor, dim) for tensor in call.tensors() for dim in range(tensor.ndim)]
    shown = [tensor.axes[dim] for tensor, dim in dims] + [axis for made in outputs for axis in made]
    places = Counter(id(leaf) for axis in [*shown, *call.used_whole()] for leaf in axes.leaves(axis))
    for tensor, dim in dims:
        if not call.has_role(tensor, dim):
            silent = [leaf for leaf in axes.leaves(tensor.axes[dim]) if places[id(leaf)] == 1]
            call.pin(silent, UNSAID)
