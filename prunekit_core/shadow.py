"""The shadow: a copy of a model to run forwards on, reporting every operation.

Everything of PyTorch that is not promised to stay (fake tensors, dispatch modes, decompositions) is used here, in
`fakes` and in `hollow`, and nowhere else. What is relied on:

- a ``TorchDispatchMode`` sees every operation once, and under ``torch.inference_mode()`` composite ones arrive whole;
- ``OpOverload.decompose`` runs a composite operation as the operations it is made of;
- a ``FakeTensorMode`` computes shapes without data, and raises where a value would be needed; inside
  ``in_kernel_invocation_manager`` its tensors are meta tensors, which `Fakes` wraps;
- a module runs what its instance attribute ``forward`` holds.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from prunekit_core.examples import Example
from prunekit_core.fakes import Fakes
from prunekit_core.hollow import Hollows, device_for
from prunekit_core.modes import ModeWatch
from prunekit_core.opaque import Closed, Opaque
from prunekit_core.regime import Regime
from prunekit_core.rules import Likeness, ModuleOp, RuleTable
from prunekit_core.surgery import modules_in, select_positions, tensors_in
from prunekit_core.twin import Marks, deep_twin, shallow_twin

Positions = Mapping[int, torch.Tensor]
"""Per dim that shrinks, the positions that stay."""


class Sink:
    """Receives the operations of a running forward pass; the base class ignores them."""

    def start(self, tensors: Mapping[str, torch.Tensor], inputs: Any) -> None:
        """Called before the forward runs, with parameters and buffers by canonical name, and the stand-in inputs."""

    def compute(self, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Called to run an operation on real tensors; returns its result."""
        return op(*args, **kwargs)

    def operation(self, op: Any, module: str, arguments: Mapping[str, Any], outputs: Any) -> None:
        """Called after each operation with its arguments by name."""

    def failed(self, op: Any, module: str, error: Exception) -> None:
        """Called when an operation raises, before the exception goes on."""

    def alias(self, source: torch.Tensor, result: torch.Tensor) -> None:
        """Called when an operation only hands its input on."""


class _Recorder(TorchDispatchMode):
    def __init__(self, sink: Sink, rules: RuleTable, shadow: Shadow) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sink, self._rules, self._fake_mode = sink, rules, shadow.fake_mode
        self._stack, self._notes = shadow.stack, shadow.notes
        self._habits: dict[int, _Habit] = {}
        self._known, self._fakes = shadow.known_results, shadow.fakes
        self._hollows, self._names = shadow.hollows, shadow.names

    def closed(self, module: Closed, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs a module that isn't looked into, and reports it as one operation."""
        with _disable_current_modes():
            arguments = module.bind(args, kwargs)
            try:
                if self._fake_mode is None:
                    result = self._sink.compute(module.op, (), arguments)
                else:
                    with self._fake_mode:
                        result = module.fake(args, kwargs)
                    why = module.try_out(arguments, result)
                    if why:
                        self._notes.append(f"the opaque layer {path} was not tried on made-up values: {why}")
            except Exception as error:
                self._sink.failed(module.op, path, error)
                raise
            self._sink.operation(module.op, path, arguments, result)
        return result

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._hollows is None or func.namespace == "prim":
            return self._dispatched(func, args, kwargs)
        with self._hollows.filled(func, args, kwargs, self._names) as (args, kwargs):
            return self._dispatched(func, args, kwargs)

    def _dispatched(self, func: Any, args: Any, kwargs: Any) -> Any:
        habit = self._habits.get(id(func))
        if habit is None:
            habit = self._habits[id(func)] = _Habit.of(func, self._rules)
        if habit.passed_on:
            result = func(*args, **kwargs)
            if func is torch.ops.aten.detach.default:
                self._sink.alias(args[0], result)
            return result
        if habit.decomposes:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        module = self._stack[-1] if self._stack else ""
        arguments = bind_arguments(func, args, kwargs)
        if func is torch.ops.aten.lift_fresh.default:
            arguments["fill_value"] = _literal(args[0])  # a number in the program, like that of aten::full
        try:
            if self._fake_mode is None:
                result = self._sink.compute(func, args, kwargs)
            else:
                result = self._fake_result(func, habit, arguments, args, kwargs)
        except Exception as error:
            self._sink.failed(func, module, error)
            raise
        self._sink.operation(func, module, arguments, result)
        return result

    def _fake_result(
        self, op: Any, habit: _Habit, arguments: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Computes the result of an operation on fake tensors.

        The fake mode's own dispatch costs ten times the shape computation. Operations with a rule whose tensors are
        all fake and on one device are run on their meta tensors directly; whatever that can't do is left to the fake
        mode.
        """
        device = _common_device(arguments) if habit.shape_only else None
        if device is None:
            return op(*args, **kwargs)
        like = None if habit.likeness is None else habit.likeness(arguments)
        if like is not None and habit.writes_first:
            return args[0]
        assert self._fake_mode is not None
        assert self._fakes is not None
        asked = _described((id(op), arguments)) if like is None and habit.makes_new else None
        known = None if asked is None else self._known.get(asked)
        try:
            with in_kernel_invocation_manager(self._fake_mode):
                if known is not None:
                    result = torch.empty_strided(known[0], known[1], dtype=known[2], device="meta")
                elif like is None:
                    result = op(*args, **kwargs)
                    if asked is not None and type(result) is torch.Tensor:
                        self._known[asked] = (result.shape, result.stride(), result.dtype)
                elif isinstance(like, tuple):
                    result = torch.empty(like[1], dtype=like[0].dtype, device="meta")
                elif like.is_contiguous():
                    result = torch.empty(like.shape, dtype=like.dtype, device="meta")
                else:
                    result = torch.empty_like(like)
        except (RuntimeError, NotImplementedError, ValueError, TypeError, IndexError):
            return op(*args, **kwargs)  # the fake mode may know better; if not, its error is the one that counts
        return self._fakes.wrap(result, device)


def _described(value: Any) -> Any:
    """Writes down what the shape of an operation's result follows from; None where that can't be told."""
    if isinstance(value, torch.Tensor):
        return (value.shape, value.stride(), value.dtype)
    if value is None or isinstance(value, _WRITTEN):
        return (type(value), value)  # 1, 1.0 and True are equal
    if isinstance(value, _NESTED):
        items = [_described(item) for item in (value.values() if isinstance(value, dict) else value)]
        return None if None in items else (type(value), *items)
    return None


def _literal(tensor: torch.Tensor) -> Any:
    """Returns the value of a tensor that was written down in the program (``torch.tensor(16)``), if it is small."""
    if type(tensor) is not torch.Tensor or tensor.is_meta or tensor.numel() > _LITERAL:
        return None
    with _disable_current_modes():
        return tensor.tolist()


_LITERAL = 64
"""Elements up to which a written-down tensor is compared by value."""
_NESTED = (list, tuple, dict)
_WRITTEN = (bool, int, float, str, torch.dtype)
_PLAIN_TENSORS = (torch.Tensor, nn.Parameter)
_NEEDS_DATA = frozenset({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape})


@attrs.frozen(eq=False)
class _Habit:
    """How an operation is handled.

    Attributes:
        passed_on: Whether it is run without being reported.
        decomposes: Whether it is run as the operations that it is made of, where it is made of some.
        shape_only: Whether it has a rule, moves nothing between devices, and needs no values to know its output's
            shape.
        writes_first: Whether it writes its result into its first argument.
        makes_new: Whether it writes nothing, and what it returns shares no memory with its arguments.
        likeness: What its rule says about its output's shape, if anything.
    """

    passed_on: bool
    decomposes: bool
    shape_only: bool
    writes_first: bool
    makes_new: bool
    likeness: Likeness | None

    @classmethod
    def of(cls, op: Any, rules: RuleTable) -> _Habit:
        if op.namespace == "prim" or op is torch.ops.aten.detach.default:
            return cls(True, decomposes=False, shape_only=False, writes_first=False, makes_new=False, likeness=None)
        ruled = rules.has(op)
        arguments = op._schema.arguments
        moves = any(argument.name in ("device", "generator") for argument in arguments)
        alias = arguments[0].alias_info if arguments else None
        return cls(
            passed_on=False,
            decomposes=not ruled and bool(op._can_decompose()),
            shape_only=ruled and not moves and not _NEEDS_DATA & set(op.tags),
            writes_first=alias is not None and alias.is_write,
            makes_new=not any(entry.alias_info for entry in (*arguments, *op._schema.returns)),
            likeness=rules.likeness(op),
        )


def _common_device(arguments: Mapping[str, Any]) -> torch.device | None:
    """Returns the device that all tensors among the arguments share if there are any and all are fake, else None."""
    device = None
    for value in arguments.values():
        if isinstance(value, torch.Tensor):
            tensors = [value]
        elif isinstance(value, _NESTED):
            tensors = tensors_of(value)
        else:
            continue
        for tensor in tensors:
            if type(tensor) is not FakeTensor or (device is not None and tensor.device != device):
                return None
            device = tensor.device
    return device


class Shadow:
    """A copy of a model whose parameters hold no data (or share the model's), to run forwards on.

    Args:
        model: The model; it is not touched.
        fake: True for fake tensors; False for real ones that share the parameters' storage.
        hollows: For a real shadow of a model whose tensors on the meta device have their values elsewhere.

    Attributes:
        module: The copy.
        valued: Whether the model has values: none of its parameters is on the meta device.
        hollows: What stands for tensors on the meta device; None where they stay as they are.
        names: Identity of each of its parameters and buffers to the canonical name.
        modules: Its modules by dotted path.
        notes: What the report has to say about how the copy was made, and about its runs.
        known_results: Shape, strides and dtype of what operations returned on fakes, by operation and arguments.
        stack: The dotted paths of the modules that are running, innermost last.
        modes: Which modules asked for their mode in the last run; there once `watch` was called.
    """

    def __init__(self, model: nn.Module, *, fake: bool, hollows: Hollows | None = None) -> None:
        self.hollows = hollows
        self.valued = not any(parameter.is_meta for parameter in model.parameters())
        self.fake_mode = FakeTensorMode(allow_non_fake_inputs=True) if fake else None
        self.fakes = None if self.fake_mode is None else Fakes(self.fake_mode)
        self.notes: list[str] = []
        self.known_results: dict[Any, tuple[torch.Size, tuple[int, ...], torch.dtype]] = {}
        self.stack: list[str] = []
        self._recorder: _Recorder | None = None
        self._home = device_for(model)
        memo = self._stand_ins(model)
        try:
            self.module = deep_twin(model, dict(memo))
        except Exception as error:
            self.module = shallow_twin(model, memo)
            self.notes.append(
                f"the model can't be deep-copied ({type(error).__name__}: {error}); traced on a shallow copy"
            )
        self.names: dict[int, str] = {}
        self.modules: dict[str, nn.Module] = {}
        self.modes: ModeWatch
        self._regime: Regime
        self._marks: Marks
        self._pristine: Marks

    def _stand_ins(self, model: nn.Module) -> dict[int, Any]:
        modules = list(modules_in(model).values())
        memo: dict[int, Any] = {}
        for module in modules:
            for tensor in module._parameters.values():
                if tensor is not None and id(tensor) not in memo:
                    if self.hollows is not None and tensor.is_meta:
                        memo[id(tensor)] = self.hollows.make(tensor, parameter=True)
                    else:
                        memo[id(tensor)] = self.as_parameter(self.stand_in(tensor, share=True))
        for module in modules:
            for buffer in module._buffers.values():
                if buffer is not None and id(buffer) not in memo:
                    hollow = self.hollows if buffer.is_meta else None
                    memo[id(buffer)] = hollow.make(buffer, parameter=False) if hollow else self.stand_in(buffer)
        for module in modules:
            for value in vars(module).values():
                if isinstance(value, torch.Tensor) and id(value) not in memo:
                    memo[id(value)] = value.detach() if self.fake_mode else value.detach().clone()
        return memo

    def stand_in(self, tensor: torch.Tensor, *, share: bool = False) -> torch.Tensor:
        """Makes the tensor that stands for a tensor of the model or of the inputs."""
        if self.fake_mode is None or self.fakes is None:
            return tensor.detach() if share else tensor.detach().clone()
        if type(tensor) not in _PLAIN_TENSORS or tensor.layout is not torch.strided:
            return self.fake_mode.from_tensor(tensor.detach())
        meta = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        return self.fakes.make(meta, self._home if tensor.is_meta else tensor.device)

    def as_parameter(self, tensor: torch.Tensor) -> torch.Tensor:
        """Makes a stand-in count as a parameter."""
        if self.fake_mode is None:
            return nn.Parameter(tensor, requires_grad=False)
        tensor._is_param = True  # what nn.Parameter does, less a detach through the mode
        return tensor

    def cut(self, tensor: torch.Tensor, shape: Sequence[int], positions: Callable[[], Positions]) -> torch.Tensor:
        """Makes the contiguous stand-in of a tensor that loses something: its kept values where the shadow is real."""
        if self.fakes is None:  # native code trusts its input: random weights may lead it anywhere
            return select_positions(tensor, positions()).contiguous()
        return self.fakes.make(torch.empty(shape, dtype=tensor.dtype, device="meta"), tensor.device)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns every parameter and buffer that is there now, under its canonical name."""
        return tensors_in(self.modules)

    def watch(self, opaque: Callable[[nn.Module], tuple[str, Opaque] | None]) -> None:
        """Notes the state that runs return to, and starts following which module is running.

        Call it once, when the shadow's modules are final and before the first run.

        Args:
            opaque: Tells of a module whether it isn't to be looked into: under which class that was declared, and what.
        """
        self.modules = modules_in(self.module)
        self.names = {id(tensor): name for name, tensor in self.tensors().items()}
        passed: set[object] = set()
        for name, module in self.modules.items():
            declared = opaque(module)
            if declared is None:
                vars(module)["forward"] = _followed(module.forward, name, self.stack)
            else:
                if self.hollows is not None:
                    self.hollows.settle(module, self.names)
                vars(module)["forward"] = self._closed(Closed(module, *declared, passed), name, module.forward)
        self.modes = ModeWatch(self.modules)
        self._regime = Regime(self.module, self.fake_mode is not None, logging.getLogger(FakeTensorMode.__module__))
        self._pristine = self._marks = Marks(self.module)

    def _closed(self, module: Closed, path: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Wraps the forward of a module that isn't looked into; what such a module calls isn't recorded either."""

        def closed(*args: Any, **kwargs: Any) -> Any:
            recorder, self._recorder = self._recorder, None
            if recorder is None:
                return forward(*args, **kwargs)
            try:
                return recorder.closed(module, path, args, kwargs)
            finally:
                self._recorder = recorder

        closed.__wrapped__ = forward  # type: ignore[attr-defined]  # inspect.signature reads the original's
        return closed

    def reset(self) -> None:
        """Undoes whatever editing the shadow did to its modules since the last `commit`; every run ends with it."""
        self._marks.restore()

    def commit(self) -> None:
        """Makes the present state the one that `reset` returns to."""
        self._marks = Marks(self.module)

    def rewind(self) -> None:
        """Returns to the state that was committed first: the modules as recorded."""
        self._marks = self._pristine
        self.reset()

    def run(
        self,
        example: Example,
        sink: Sink,
        rules: RuleTable,
        *,
        training: bool | None,
        prepare: Mapping[tuple[str, str], Any] | None = None,
    ) -> Any:
        """Runs one forward in the fixed regime, reporting every operation to the sink.

        Args:
            example: The inputs; tensors among them are exchanged for stand-ins.
            sink: Receives the operations.
            rules: Operations without a rule are decomposed where possible.
            training: The mode to run in; None leaves each module as the user set it.
            prepare: (module path, attribute) to a value that it has during this run only.

        Returns:
            The outputs of the model.
        """
        for (path, attribute), value in (prepare or {}).items():
            setattr(self.module.get_submodule(path), attribute, value)
        if training is not None:
            self.module.train(training)
        self.modes.start()
        self.stack.clear()
        with self._regime():
            args, kwargs = pytree.tree_map_only(torch.Tensor, self.stand_in, (example.args, example.kwargs))
            sink.start(self.tensors(), (args, kwargs))
            try:
                with torch.inference_mode(), self.fake_mode or contextlib.nullcontext():
                    with _Recorder(sink, rules, self) as self._recorder:
                        return example.runner(self.module, args, kwargs)
            finally:
                self.modes.finish()
                self.reset()


def _followed(forward: Callable[..., Any], name: str, stack: list[str]) -> Callable[..., Any]:
    """Wraps a module's forward so that the stack tells that it is running (hooks would cost several times as much)."""

    def followed(*args: Any, **kwargs: Any) -> Any:
        stack.append(name)
        try:
            return forward(*args, **kwargs)
        finally:
            stack.pop()

    followed.__wrapped__ = forward  # type: ignore[attr-defined]  # inspect.signature reads the original's
    return followed


@functools.cache
def _schema(op: Any) -> tuple[str, tuple[tuple[str, Any], ...]]:
    name = op._schema.name + (f".{op._overloadname}" if op._overloadname != "default" else "")
    return name, tuple((argument.name, argument.default_value) for argument in op._schema.arguments)


def operation_name(op: Any) -> str:
    """Returns the qualified name of an operation with its overload, ``"aten::add.Tensor"``."""
    if isinstance(op, ModuleOp):
        return op.name
    return _schema(op)[0]


def bind_arguments(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Names the arguments of an operation by its schema, defaults filled in."""
    if isinstance(op, ModuleOp):
        return dict(kwargs)
    bound: dict[str, Any] = dict(_schema(op)[1])
    for (name, _), value in zip(_schema(op)[1], args, strict=False):
        bound[name] = value
    bound.update(kwargs)
    return bound


def memory_of(tensor: torch.Tensor) -> int:
    """Identifies the memory of a tensor that is alive: equal for a tensor and its views. A tensor without memory of
    its own (a sparse one) is like no other."""
    if not torch._C._has_storage(tensor):
        return -id(tensor)
    return int(tensor.untyped_storage()._cdata)


def tensors_of(value: Any) -> list[torch.Tensor]:
    """Lists the tensors in a value: a tensor, or any nesting of tuples, lists and dicts."""
    if isinstance(value, torch.Tensor):
        return [value]
    found: list[torch.Tensor] = []
    if isinstance(value, _NESTED):
        for item in value.values() if isinstance(value, dict) else value:
            if isinstance(item, torch.Tensor):
                found.append(item)
            elif isinstance(item, _NESTED):
                found.extend(tensors_of(item))
    return found
