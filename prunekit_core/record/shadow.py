"""The shadow: a copy of a model to run forwards on, reporting every operation.

What is relied on of PyTorch, besides what `torch_private` says:

- a dispatch mode sees every operation once, and under ``torch.inference_mode()`` composite ones arrive whole;
- ``OpOverload.decompose`` runs a composite operation as the operations it is made of;
- a fake mode computes shapes without data, and raises where a value would be needed;
- a module runs what its instance attribute ``forward`` holds;
- a mode with ``supports_higher_order_operators`` sees a `HigherOrderOperator` (``torch.cond``) before it runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import types
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from prunekit_core.modules.closures import Closures
from prunekit_core.modules.copying import ModuleCopy
from prunekit_core.modules.entries import set_at
from prunekit_core.modules.snapshot import ObjectSnapshot, Snapshot
from prunekit_core.modules.surgery import exchange_module, put_values, select_positions
from prunekit_core.modules.training_flag import ModeWatch, set_mode
from prunekit_core.modules.tree import ModelTree, modules_in, named_tensors, tensors_in
from prunekit_core.plugins.blame import Blame
from prunekit_core.plugins.opaque import Closed, Opaque
from prunekit_core.program.calls import bind_arguments, check_no_callables
from prunekit_core.program.examples import Example
from prunekit_core.program.outputs import run_out
from prunekit_core.program.rules import RuleTable
from prunekit_core.record.caches import Made
from prunekit_core.record.fakes import META, Fakes, needs_values
from prunekit_core.record.functions import Exits, Unchecked
from prunekit_core.record.handling import Handling
from prunekit_core.record.inputs import RunInputs
from prunekit_core.record.listener import Listener
from prunekit_core.record.random_numbers import RandomNumbers
from prunekit_core.record.run_settings import RunSettings, entered
from prunekit_core.record.shared_memory import SharedMemory
from prunekit_core.record.valueless import Valueless, device_for
from prunekit_core.torch_private.dispatch import Mode, no_modes, uncompiled
from prunekit_core.torch_private.fake_tensors import LOGGER, FakeTensor, fake_mode
from prunekit_core.torch_private.objects import count_as_parameter
from prunekit_core.torch_private.trees import pytree

Positions = Mapping[int, torch.Tensor]
"""Per dim that shrinks, the positions that stay."""


class _Recorder(Mode):
    supports_higher_order_operators = True  # to refuse them by name

    def __init__(
        self, listener: Listener, rules: RuleTable, shadow: Shadow, tensors: Mapping[str, torch.Tensor]
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.listener, self._rules, self._fake_mode = listener, rules, shadow.fake_mode
        self._stack, self._notes, self._faults = shadow.stack, shadow.notes, shadow.faults
        self._handlings: dict[int, Handling] = {}
        self._random_numbers = RandomNumbers()
        self._fakes, self._valueless, self._names = shadow.fakes, shadow.valueless, shadow.names
        self._originals, self._tensors, self._made = shadow.originals, tensors, shadow.made
        self._reached, self._shared_memory = shadow.reached, shadow.shared_memory

    def closed(self, module: Closed, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs a module that isn't looked into, and reports it as one operation."""
        with no_modes():
            arguments = module.bind(args, kwargs)
            try:
                if self._fake_mode is None:
                    with self._random_numbers.seeded():
                        result = self.listener.compute(module.op, (), arguments)
                else:
                    with self._fake_mode:
                        result = module.fake(args, kwargs)
                    with self._random_numbers.seeded():
                        why = module.try_out(arguments, result)
                    if why:
                        self._notes.append(f"the opaque layer {path} was not tried on made-up values: {why}")
            except Exception as error:
                if self._fake_mode is not None and not needs_values(error):
                    self._faults.append(module.fault(error))
                self.listener.failed(module.op, path, error)
                raise
            self.listener.operation(module.op, path, arguments, result)
        self._stack.append(path)
        try:
            return module.whole(result, args, kwargs)
        finally:
            self._stack.pop()

    @uncompiled
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._foreign(args) or (kwargs and self._foreign(kwargs.values())):
            args, kwargs = pytree.tree_map_only(torch.Tensor, self._own, (args, kwargs))
        if self._valueless is None or func.namespace == "prim":
            return self._dispatched(func, args, kwargs)
        with self._valueless.filled(func, args, kwargs, self._names) as (args, kwargs):
            return self._dispatched(func, args, kwargs)

    def _foreign(self, values: Any) -> bool:
        """Whether there are tensors of the model itself, or the shadow's first ones: closures, hooks or objects of the
        user's hold them."""
        for value in values:
            kind = type(value)
            if kind in _STOOD_FOR:
                if id(value) in self._originals and self._own(value) is not value:
                    self._reached.add(self._originals[id(value)][1])
                    return True
            elif kind in (list, tuple) and value and self._foreign(value):
                return True
        return False

    def _own(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns what stands for a tensor of the model; any other tensor itself."""
        known = self._originals.get(id(tensor))
        return self._tensors[known[1]] if known is not None and known[0]() is tensor else tensor

    def _dispatched(self, func: Any, args: Any, kwargs: Any) -> Any:
        handling = self._handlings.get(id(func))
        if handling is None:
            check_no_callables(func, self._stack)
            handling = self._handlings[id(func)] = Handling.of(func, self._rules)
        if handling.passed_on:
            result = (func if self._fakes is None else self._fakes.unreported(func))(*args, **kwargs)
            if func is torch.ops.aten.detach.default:
                self.listener.alias(args[0], result)
            return result
        if handling.decomposes:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        module = self._stack[-1] if self._stack else ""
        arguments = bind_arguments(func, args, kwargs)
        if func is torch.ops.aten.lift_fresh.default:
            arguments["fill_value"] = _literal(args[0])  # a number in the program, like that of aten::full
        if handling.writes:
            self._shared_memory.check(func, arguments, module)
        try:
            if self._fakes is None:
                own_numbers = self._random_numbers if handling.draws else contextlib.nullcontext()
                with own_numbers:
                    result = self.listener.compute(func, args, kwargs)
            else:
                result = self._fakes.result(func, handling.shape, arguments, args, kwargs)
        except Exception as error:
            self.listener.failed(func, module, error)
            raise
        if not handling.writes:
            if func is torch.ops.aten.lift_fresh.default or not any(result is arg for arg in args):
                self._made.add(result)
            else:  # it was there before
                result = self._made.passed(result)
            if handling.shape.makes_new:
                self._shared_memory.made(result)
        self.listener.operation(func, module, arguments, result)
        return result


def _literal(tensor: torch.Tensor) -> Any:
    """Returns the value of a tensor that was written down in the program (``torch.tensor(16)``): its fingerprint if it
    is large."""
    if type(tensor) is not torch.Tensor or tensor.is_meta:
        return None
    if tensor.numel() > _LITERAL:
        return fingerprint(tensor)
    with no_modes():
        return tensor.tolist()


def fingerprint(tensor: torch.Tensor) -> str | None:
    """Returns what tells the values of a tensor from other values; None where it has none that could be read."""
    fake = isinstance(tensor, FakeTensor) or tensor.is_meta or tensor.is_quantized
    if fake or tensor.layout is not torch.strided:
        return None
    with no_modes(), torch.inference_mode():
        values = tensor.detach().cpu().contiguous()
        held = ctypes.string_at(values.data_ptr(), values.numel() * values.element_size()) if values.numel() else b""
    digest = hashlib.blake2b(held, digest_size=16).hexdigest()
    return f"{tuple(tensor.shape)} {tensor.dtype} {digest}"


_LITERAL = 64
"""Elements up to which the value of a written-down tensor is known, so that it can be computed with."""
_PLAIN_TENSORS = (torch.Tensor, nn.Parameter)
_STOOD_FOR = (*_PLAIN_TENSORS, FakeTensor)


class Shadow:
    """A copy of a model whose parameters hold no data (or share the model's), to run forwards on.

    Args:
        model: The model; it is not touched.
        fake: True for fake tensors; False for real ones that share the parameters' storage.
        valueless: For a real shadow of a model whose tensors on the meta device have their values elsewhere.

    Attributes:
        module: The copy.
        valued: Whether the model has values: none of its parameters is on the meta device.
        valueless: What stands for tensors on the meta device; None where they stay as they are.
        originals: Identity of each parameter and buffer of the model, and of what first stood for it here, to a weak
            reference and the canonical name.
        names: Identity of each of its parameters and buffers to the canonical name.
        modules: Its modules by dotted path.
        copied: The objects other than modules and tensors that are copies, too.
        notes: What the report has to say about how the copy was made, and about its runs.
        faults: What layer types say wrongly about the outputs of layers that aren't looked into.
        stack: The dotted paths of the modules that are running, innermost last.
        made: What operations of its last run made.
        replays: How often its program was replayed with a cut.
        shared_memory: The memory of the model, which nothing may write to.
        reached: Names of the model's own tensors that runs met: a closure, a hook or a registry holds them.
        unchecked: Whether norms run without their check that a batch holds several values per channel, which says
            nothing about axes.
        gradients: Whether gradients are on, and operations seen below autograd, those of the backward among them; else
            composite operations arrive whole.
        modes: Which modules read their training flag in the last run; there once `watch` was called.
    """

    def __init__(self, model: nn.Module, *, fake: bool, valueless: Valueless | None = None) -> None:
        self.valueless = valueless
        self.fake_mode = fake_mode() if fake else None
        self.fakes = None if self.fake_mode is None else Fakes(self.fake_mode)
        self.notes: list[str] = []
        self.faults: list[str] = []
        self.unchecked = False
        self.gradients = False
        self.stack: list[str] = []
        self.made = Made()
        self.replays = 0
        self.reached: set[str] = set()
        self._recorder: _Recorder | None = None
        self._home = device_for(model)
        theirs = ModelTree(model)
        modules = list(theirs.modules.values())
        self.valued = not any(p.is_meta for m in modules for p in m._parameters.values() if p is not None)
        memo = self._stand_ins(modules)
        closures = Closures(modules, memo)
        module_copy = ModuleCopy(model, memo)
        self.module, self.copied = module_copy.module, module_copy.copied
        copy = ModelTree(self.module)
        self._firsts = copy.tensors  # objects in the shadow hold them while it runs smaller ones
        both = [*theirs.tensors.items(), *self._firsts.items()]
        self.originals = {id(tensor): (weakref.ref(tensor), name) for name, tensor in both}
        self.shared_memory = SharedMemory(self._firsts, theirs.tensors, valued=not fake)
        self._copies = {id(old): new for old, new in zip(modules, copy.modules.values(), strict=True)}
        closures.fill(self._copies)
        held = module_copy.held(copy.names, closures.holders)
        self._held = [name for name in self._firsts if name in held]
        self.notes.extend(closures.notes)
        self.notes.extend(self.shared_memory.shared())
        self._caches = closures.caches
        self.notes.extend(
            f"a {kind} in the model can't be deep-copied ({why}); it is shared with the copy that is recorded"
            for kind, why in module_copy.shared.items()
        )
        self.names: dict[int, str] = {}
        self.modules: dict[str, nn.Module] = {}
        self.modes: ModeWatch
        self._run_settings: RunSettings
        self._snapshot: Snapshot
        self._pristine: Snapshot
        self._inside: ObjectSnapshot

    def _stand_ins(self, modules: Sequence[nn.Module]) -> dict[int, Any]:
        memo: dict[int, Any] = {}
        for module in modules:
            for tensor in module._parameters.values():
                if tensor is not None and id(tensor) not in memo:
                    if self.valueless is not None and tensor.is_meta:
                        memo[id(tensor)] = self.valueless.make(tensor, parameter=True)
                    else:
                        memo[id(tensor)] = self.as_parameter(self.stand_in(tensor, share=True))
        for module in modules:
            for buffer in module._buffers.values():
                if buffer is not None and id(buffer) not in memo:
                    valueless = self.valueless if buffer.is_meta else None
                    memo[id(buffer)] = valueless.make(buffer, parameter=False) if valueless else self.stand_in(buffer)
        for module in modules:
            for value in vars(module).values():
                if isinstance(value, torch.Tensor) and id(value) not in memo:
                    memo[id(value)] = value.detach().clone()
        return memo

    def stand_in(self, tensor: torch.Tensor, *, share: bool = False) -> torch.Tensor:
        """Makes the tensor that stands for a tensor of the model or of the inputs."""
        if self.fake_mode is None or self.fakes is None:
            return tensor.detach() if share else tensor.detach().clone()
        if type(tensor) not in _PLAIN_TENSORS or tensor.layout is not torch.strided:
            return self.fake_mode.from_tensor(tensor.detach())
        meta = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=META)
        return self.fakes.make(meta, self._home if tensor.is_meta else tensor.device)

    def as_parameter(self, tensor: torch.Tensor) -> torch.Tensor:
        """Makes a stand-in count as a parameter."""
        if self.fake_mode is None:
            return nn.Parameter(tensor, requires_grad=False)
        return count_as_parameter(tensor)  # what nn.Parameter does, less a detach through the mode

    def flag_gradients(self, model: nn.Module) -> None:
        """Gives each parameter the flag that the model's has: programs ask whether one is frozen."""
        theirs, own = named_tensors(model), self.tensors()
        for name, tensor in theirs.items():
            if tensor.requires_grad and name in own:
                own[name].requires_grad_(True)

    def cut(self, tensor: torch.Tensor, shape: Sequence[int], positions: Callable[[], Positions]) -> torch.Tensor:
        """Makes the contiguous stand-in of a tensor that loses something: its kept values where the shadow is real."""
        if self.fakes is None:  # native code trusts its input: random weights may lead it anywhere
            return select_positions(tensor.detach(), positions()).contiguous()
        return self.fakes.make(torch.empty(shape, dtype=tensor.dtype, device=META), tensor.device)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns every parameter and buffer that is there now, under its canonical name."""
        return tensors_in(self.modules)

    def watch(self, opaque: Callable[[nn.Module], tuple[str, Opaque, Blame] | None]) -> None:
        """Notes the state that runs return to, and starts following which module is running.

        Call it once, when the shadow's modules are final and before the first run.

        Args:
            opaque: Tells of a module whether it isn't to be looked into: under which class that was declared, what, and
                whose layer type did.
        """
        self.modules = modules_in(self.module)
        self.names = {id(tensor): name for name, tensor in self.tensors().items()}
        passed: set[object] = set()
        own = {name: frozenset({"forward"} - vars(module).keys()) for name, module in self.modules.items()}
        for name, module in self.modules.items():
            declared = opaque(module)
            if declared is None:
                vars(module)["forward"] = _followed(module.forward, name, self.stack)
            else:
                if self.valueless is not None:
                    self.valueless.settle(module, self.names)
                vars(module)["forward"] = self._closed(Closed(module, *declared, passed), name, module.forward)
        self.modes = ModeWatch(self.modules, own)
        self._run_settings = RunSettings(self.modules.values(), logging.getLogger(LOGGER))
        self._pristine = self._snapshot = Snapshot(self.modules.values())
        self._inside = ObjectSnapshot(self.copied, self.modules.values())

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

    def _note_shared(self, shared: Mapping[str, str]) -> None:
        for kind, why in shared.items():
            note = f"an input of class {kind} can't be deep-copied ({why}): the model runs on the caller's own"
            if note not in self.notes:
                self.notes.append(note)

    def _leaves(self, tensor: torch.Tensor, way: str = "") -> None:
        if self._recorder is not None:  # else what runs isn't looked into
            listener = self._recorder.listener
            listener.leaves(tensor, way) if way else listener.reads(tensor)

    def let_go(self, returned: Iterable[torch.Tensor] = ()) -> list[str]:
        """Empties caches of the user's program of what the last run made; call it when the run's listener is gone.

        Args:
            returned: Tensors of the run that the caller goes on to use.

        Returns:
            See `Made.release`.
        """
        return self.made.release(lambda: [*returned, *self.tensors().values()])

    def reset(self) -> None:
        """Undoes whatever editing the shadow did to its modules since the last `commit`; every run ends with it."""
        self._snapshot.restore()
        self._inside.restore()

    def exchange(self, path: str, module: nn.Module) -> None:
        """Puts a module in the place of another one, until the state before that is returned to."""
        module.train(self.modules[path].training)
        vars(module)["forward"] = _followed(module.forward, path, self.stack)
        exchange_module(self.module, self.modules[path], module)

    def commit(self) -> None:
        """Makes the present state the one that `reset` returns to."""
        self._snapshot = Snapshot(self.modules.values())

    def rewind(self) -> None:
        """Returns to the state that was committed first: the modules as recorded."""
        self._snapshot = self._pristine
        self.reset()

    def run(
        self,
        example: Example,
        listener: Listener,
        rules: RuleTable,
        *,
        training: bool | None,
        prepare: Mapping[tuple[str, str], Any] | None = None,
    ) -> Any:
        """Runs one forward under `RunSettings`, reporting every operation to the listener.

        Args:
            example: The inputs; tensors among them are exchanged for stand-ins.
            listener: Receives the operations.
            rules: Operations without a rule are decomposed where possible.
            training: The mode to run in; None leaves each module as the user set it.
            prepare: (module path, attribute) to a value that it has during this run only.

        Returns:
            The outputs of the model.
        """
        for (path, attribute), value in (prepare or {}).items():
            set_at(self.modules[path], attribute, value)
        if training is not None:
            set_mode(self.modules.values(), training)
        self.shared_memory.start()
        for cache in self._caches:
            cache.cache_clear()
        self.modes.start()
        self.stack.clear()
        with self._run_settings():
            inputs = RunInputs(example, self.stand_in, self._copies)
            self._note_shared(inputs.shared)
            tensors = self.tensors()
            self.made.start([*tensors.values(), *pytree.tree_leaves(inputs.tensors)])
            listener.start(tensors, inputs.tensors)
            firsts = self._show(tensors)
            try:
                gradients = torch.enable_grad() if self.gradients else torch.inference_mode()
                checks = Unchecked() if self.unchecked else None
                self._recorder = _Recorder(listener, rules, self, tensors)
                exits = Exits(self._leaves, self._leaves, self.shared_memory)
                with entered(gradients, self.fake_mode, exits, checks, self._recorder):
                    outputs = run_out(example.runner(self.module, inputs.args, inputs.kwargs))
                    for tensor in tensors.values() if self.gradients else ():
                        tensor.grad = None  # what a backward in the forward left: of the parameter's size
                    listener.ended(outputs, self.modules)
                    return outputs
            finally:
                self._recorder = None
                for first, data in firsts:
                    put_values(first, data)
                self.modes.finish()
                self.reset()

    def settings(self) -> contextlib.AbstractContextManager[None]:
        """Sets what a run sets, for whoever runs operations of a run again; see `RunSettings`."""
        return self._run_settings()

    def _show(self, tensors: Mapping[str, torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Gives the first stand-ins, which objects that are no modules hold, the sizes of what replaces them.

        Returns the changed ones with the data that they had."""
        held = [(self._firsts[name], tensors.get(name)) for name in self._held]
        smaller = [(old, new) for old, new in held if new is not None and new is not old]
        changed = [(old, old.data) for old, _ in smaller]
        for old, new in smaller:
            put_values(old, new.data)
        return changed


def _followed(forward: Callable[..., Any], name: str, stack: list[str]) -> Callable[..., Any]:
    """Wraps a module's forward so that the stack tells that it is running (hooks would cost several times as much)."""

    def followed(*args: Any, **kwargs: Any) -> Any:
        stack.append(name)
        try:
            return forward(*args, **kwargs)
        finally:
            stack.pop()

    followed.__wrapped__ = forward  # type: ignore[attr-defined]  # inspect.signature reads the original's
    if not isinstance(forward, types.MethodType):
        return followed

    def method(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return followed(*args, **kwargs)

    method.__wrapped__ = forward.__func__  # type: ignore[attr-defined]
    method.__name__, method.__qualname__ = forward.__func__.__name__, forward.__func__.__qualname__
    return types.MethodType(method, forward.__self__)
