"""Recording a forward pass: the operations that a shadow reports become a `Trace`."""

from __future__ import annotations

import gc
import inspect
import sys
import traceback
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.weak import WeakIdKeyDictionary

from prunekit_core.errors import PrunekitError, RecordingError, UnsupportedModelError
from prunekit_core.modules.attributes import attributes_of
from prunekit_core.modules.packed import check_no_packed_objects, check_unpacked
from prunekit_core.modules.sharding import is_sharded, shards_its_parameters
from prunekit_core.modules.tree import modules_in, tensors_in
from prunekit_core.program.calls import WRITTEN, operation_name, tensors_of
from prunekit_core.program.examples import Example
from prunekit_core.program.outputs import named_outputs
from prunekit_core.program.rules import RuleTable
from prunekit_core.program.trace import Operation, TensorRef, Trace, is_continuous
from prunekit_core.record.decisions import Answers, ChoiceMaker, Choices, decided
from prunekit_core.record.listener import Listener
from prunekit_core.record.shadow import Shadow, fingerprint
from prunekit_core.torch_private.memory import memory_of
from prunekit_core.torch_private.trees import pytree

_SCRIPTED = (torch.jit.ScriptModule, torch.jit.ScriptFunction)
_PLAIN = (nn.Parameter, torch.Tensor)
_LISTS = (list, tuple)


class TensorTable:
    """Remembers which tensor object is which `TensorRef`.

    Args:
        keep_alive: True keeps tensors alive (fakes weigh nothing); False watches them weakly.

    Attributes:
        keep_alive: As given.
    """

    def __init__(self, *, keep_alive: bool) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.dtypes: list[torch.dtype] = []
        self.keep_alive = keep_alive
        self._known: dict[int, tuple[TensorRef, torch.Tensor]] = {}
        self._weak: Any = WeakIdKeyDictionary()

    def get(self, tensor: torch.Tensor) -> TensorRef | None:
        """Returns the reference of a tensor that is known, else None."""
        if self.keep_alive:
            entry = self._known.get(id(tensor))
            return entry[0] if entry else None
        found: TensorRef | None = self._weak.get(tensor)
        return found

    def put(self, tensor: torch.Tensor, ref: TensorRef) -> None:
        """Makes a tensor known under a reference."""
        if self.keep_alive:
            self._known[id(tensor)] = (ref, tensor)
        else:
            self._weak[tensor] = ref

    def output(self, tensor: torch.Tensor) -> TensorRef:
        """Returns the reference of a tensor that an operation returned: a new one if it changed its shape in place."""
        known = self.get(tensor)
        if known is not None and self.shapes[known.index] != tuple(tensor.shape):
            self.forget(tensor)
        return self.ref(tensor)

    def forget(self, tensor: torch.Tensor) -> None:
        """Makes a tensor unknown."""
        if self.keep_alive:
            del self._known[id(tensor)]
        else:
            del self._weak[tensor]

    def held(self, among: Collection[int]) -> list[TensorRef]:
        """Lists the tensors that something outside of this table holds.

        Args:
            among: The indices of those that are asked about.
        """
        if self.keep_alive:  # by the table's own tuple, and by the argument of getrefcount
            alive = [entry[0] for entry in self._known.values() if sys.getrefcount(entry[1]) > 2]
        else:
            alive = list(self._weak.values())
        return [ref for ref in dict.fromkeys(alive) if ref.index in among]

    def ref(self, tensor: torch.Tensor) -> TensorRef:
        """Returns the reference of a tensor, making a new one for a tensor not seen before."""
        known = self.get(tensor)
        if known is None:
            known = TensorRef(len(self.shapes))
            self.shapes.append(tuple(tensor.shape))
            self.dtypes.append(tensor.dtype)
            self.put(tensor, known)
        return known


class TraceBuilder(Listener):
    """The listener that builds a `Trace`.

    Attributes:
        held: Whether something holds tensors that the forward made and didn't return.
    """

    def __init__(self, label: str, *, keep_alive: bool, choices: Choices | None = None) -> None:
        self.label = label
        self._maker = None if choices is None else ChoiceMaker(choices.made)
        self._assumed = choices is not None and choices.assumed
        self.table = TensorTable(keep_alive=keep_alive)
        self._operations: list[Operation] = []
        self._parameters: dict[str, TensorRef] = {}
        self._inputs: list[TensorRef] = []
        self._shares: dict[int, int] = {}
        self._decisions: dict[int, Answers] = {}
        self.held = False
        self._kept: dict[TensorRef, str] = {}
        self._escaped: dict[TensorRef, str] = {}
        self._stored: dict[TensorRef, str] = {}
        self._constants: dict[int, str] = {}
        self._read: set[int] = set()
        self._numbers: dict[int, int] = {}

    def start(self, tensors: Mapping[str, torch.Tensor], inputs: Any) -> None:
        """Makes parameters, buffers and inputs known."""
        self._parameters = {name: self.table.ref(tensor) for name, tensor in tensors.items()}
        self._inputs = [self.table.ref(leaf) for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, torch.Tensor)]

    def compute(self, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Runs an operation and remembers what it decides."""
        result = op(*args, **kwargs)
        if self._maker is not None:
            result = self._maker(op, args, kwargs, result)
        found = decided(op, args, kwargs, result)
        if found is not None:
            self._decisions[len(self._operations)] = found
        return result

    def operation(self, op: Any, module: str, arguments: Mapping[str, Any], outputs: Any) -> None:
        """Writes an operation down."""
        read: list[tuple[torch.Tensor, TensorRef]] = []
        referred = {name: self._refer(value, read) for name, value in arguments.items()}
        if "fill_value" in arguments:  # its value is an argument
            for _, ref in read:
                self._constants.pop(ref.index, None)
        returned = [outputs] if isinstance(outputs, torch.Tensor) else tensors_of(outputs)
        results = tuple([self.table.output(tensor) for tensor in returned])
        if type(outputs) is int:
            self._numbers[len(self._operations)] = outputs
        self._operations.append(Operation(len(self._operations), op, operation_name(op), module, referred, results))
        places = {memory_of(tensor): ref for tensor, ref in read}
        for tensor, ref in zip(returned, results, strict=True):
            source = places.get(memory_of(tensor))
            if source is not None and source.index < ref.index:  # what is written to and returned was there before
                self._shares[ref.index] = source.index

    def alias(self, source: torch.Tensor, result: torch.Tensor) -> None:
        """Takes the result for the same tensor."""
        self.table.put(result, self.table.ref(source))

    def leaves(self, tensor: torch.Tensor, way: str) -> None:
        """Notes a tensor whose values go on outside of PyTorch."""
        ref = self.table.get(tensor)
        if ref is not None:
            table = self._kept if is_continuous(tensor.dtype) else self._escaped
            table[ref] = f"its values leave PyTorch by {way}"
        if not is_continuous(tensor.dtype):
            self.reads(tensor)

    def reads(self, tensor: torch.Tensor) -> None:
        """Notes integers that become numbers of Python's."""
        ref = self.table.get(tensor)
        if ref is not None:
            self._read.add(ref.index)

    def _refer(self, value: Any, read: list[tuple[torch.Tensor, TensorRef]]) -> Any:
        """Writes an argument down, and adds the tensors in it to those that are read."""
        if type(value) in WRITTEN:
            return value
        if isinstance(value, torch.Tensor):
            known = self.table.get(value)
            ref = self.table.ref(value) if known is None else known
            values = fingerprint(value) if known is None else None
            if values is not None:
                self._constants[ref.index] = values
            read.append((value, ref))
            return ref
        if isinstance(value, _LISTS):
            return [self._refer(item, read) for item in value]
        return value

    def ended(self, outputs: Any, modules: Mapping[str, nn.Module]) -> None:
        """Looks for results that are no outputs, and that no operation reads, though something holds them."""
        given = {self.table.ref(tensor).index for _, tensor in named_outputs(outputs)}
        given.update(ref.index for ref in (*self._parameters.values(), *self._inputs))
        made = {ref.index for operation in self._operations for ref in operation.outputs} - given
        made = {index for index in made if is_continuous(self.table.dtypes[index])}
        held = self.table.held(made)
        if held:
            gc.collect(0)  # objects in a circle hold what nobody can read any more
            held = self.table.held(made)
        names = self._stored_as(modules) if held else {}
        read: set[int] = set()
        for operation in self._operations:
            read.update(ref.index for ref in operation.references() if ref not in operation.outputs)
        self.held = bool(held)
        for ref in held:
            name = names.get(ref.index)
            if ref.index not in read:
                where = "held by something" if name is None else f"stored as {name}"
                self._kept.setdefault(ref, f"no operation reads it, and it is {where}")
            elif name is not None:  # else it may as well be autograd that keeps it for a backward
                self._stored[ref] = f"stored as {name}"

    def _stored_as(self, modules: Mapping[str, nn.Module]) -> dict[int, str]:
        """Names the tensors that are attributes of modules, or in objects in those, by index."""
        return {
            ref.index: f"{path}.{name}" if path else name
            for path, module in modules.items()
            for name, tensor in named_outputs(
                {**module._buffers, **(attributes_of(module) or {}), "forward": None}  # the shadow's own
            )
            if (ref := self.table.get(tensor)) is not None
        }

    def finish(self, outputs: Any) -> Trace:
        """Closes the trace with the outputs of the model."""
        named = named_outputs(outputs)
        results = [self.table.ref(tensor) for _, tensor in named]
        return Trace(
            self.label,
            tuple(self._operations),
            tuple(self.table.shapes),
            tuple(self.table.dtypes),
            self._parameters,
            tuple(self._inputs),
            tuple(results),
            tuple(name for name, _ in named),
            self._shares,
            self._decisions,
            self._kept,
            self._stored,
            self._constants,
            self._escaped,
            self._assumed,
            frozenset(self._read),
            self._numbers,
        )


def unwrap(model: object) -> nn.Module:
    """Returns a model out of wrappers that only forward to it.

    Raises:
        UnsupportedModelError: The object is no module.
    """
    while isinstance(model, nn.Module):
        if isinstance(model, torch.jit.ScriptModule):
            break
        if "_orig_mod" in model._modules:
            model = model._modules["_orig_mod"]
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel | AveragedModel):
            model = model.module
        else:
            break
    if not isinstance(model, nn.Module):
        exported = isinstance(model, torch.export.ExportedProgram)
        raise UnsupportedModelError(
            "The model is not an nn.Module.",
            why=f"got {type(model).__name__}",
            hint="pass its .module(), which is one" if exported else "pass the module itself",
        )
    return model


def inventory(model: nn.Module) -> tuple[dict[str, nn.Module], dict[str, torch.Tensor]]:
    """Returns the modules of a model, and its parameters and buffers, by canonical name.

    Raises:
        UnsupportedModelError: A module is a ScriptModule, or a parameter is uninitialised, sharded or quantised.
    """
    modules = modules_in(model)
    if any(issubclass(kind, _SCRIPTED) for kind in {type(module) for module in modules.values()}):
        name, module = next((name, module) for name, module in modules.items() if isinstance(module, _SCRIPTED))
        raise UnsupportedModelError(
            "A ScriptModule can't be pruned.",
            where=name or type(module).__name__,
            why="its program is compiled; sizes in it can't be followed or changed",
            hint="prune the Python module it was made from, then script the result",
        )
    tensors = tensors_in(modules)
    flat = next((name for name, module in modules.items() if shards_its_parameters(module)), None)
    if flat is not None:
        raise _sharded(flat or type(model).__name__)
    unusual = {}
    for name, tensor in tensors.items():
        if type(tensor) in _PLAIN and not tensor.is_quantized:
            continue
        if nn.parameter.is_lazy(tensor):
            raise UnsupportedModelError(
                "The model has uninitialised lazy parameters.",
                where=name,
                hint="run one forward pass on real inputs first, so that every shape is known",
            )
        if is_sharded(tensor):
            raise _sharded(name)
        unusual[name] = tensor
    check_unpacked(unusual)
    return modules, tensors


def _sharded(where: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        "The model is sharded over several processes.",
        where=where,
        hint="analyse and cut it before it is sharded (on the meta device if it is large); what fully_shard has "
        "sharded is cut with apply_sharded",
    )


def check_recordable(model: object) -> nn.Module:
    """Returns the model itself, out of wrappers that only forward to it.

    Raises:
        UnsupportedModelError: The object is no module, a ScriptModule, or has parameters that are uninitialised,
            sharded, quantised, or loaded while it runs.
    """
    found = unwrap(model)
    modules, _ = inventory(found)
    check_no_packed_objects(modules)
    for name, module in modules.items():
        forward = vars(module).get("forward")
        empty = [leaf for leaf, tensor in module._parameters.items() if tensor is not None and tensor.is_meta]
        if forward is not None and not inspect.ismethod(forward) and empty:
            raise UnsupportedModelError(
                "The model's weights are loaded while it runs.",
                where=f"{name}.{empty[0]}" if name else empty[0],
                why="it is on the meta device, and what runs isn't the module's own forward, as after accelerate's "
                "cpu_offload, disk_offload or device_map",
                hint="build the model on the meta device without offloading, and name its files: weights=...",
            )
    return found


def record(shadow: Shadow, example: Example, rules: RuleTable, *, label: str, training: bool | None) -> Trace:
    """Records one forward of a shadow.

    Raises:
        RecordingError: The forward raised; its own exception is the cause.
    """
    trace, error = try_to_record(shadow, example, rules, label=label, training=training)
    if error is not None:
        raise error
    return trace


def _let_go(shadow: Shadow, error: BaseException | None) -> None:
    """Empties caches of the user's program of what a run made, once nothing of the recording's own holds it."""
    if error is not None and error.__cause__ is not None:
        traceback.clear_frames(error.__cause__.__traceback__)
    places = shadow.let_go()
    if places and error is None:
        shadow.notes.append(f"the forward keeps tensors of a recording outside of the model: {', '.join(places)}")


def try_to_record(
    shadow: Shadow,
    example: Example,
    rules: RuleTable,
    *,
    label: str,
    training: bool | None,
    choices: Choices | None = None,
) -> tuple[Trace, RecordingError | None]:
    """Records one forward of a shadow, as far as it goes.

    Args:
        shadow: The shadow.
        example: What it runs on.
        rules: The op rules.
        label: What the recording is called.
        training: The mode.
        choices: Choices that are made in the program's place.

    Returns:
        The trace, and None; where the forward raised, the trace up to there and an error of which that is the cause.
    """
    found = _tried(shadow, example, rules, label, training, choices)
    while shadow.shared_memory.take_over():  # it writes to parameters: now they are the shadow's own
        _let_go(shadow, found[1])
        found = _tried(shadow, example, rules, label, training, choices)
    _let_go(shadow, found[1])
    return found


def _tried(
    shadow: Shadow, example: Example, rules: RuleTable, label: str, training: bool | None, choices: Choices | None
) -> tuple[Trace, RecordingError | None]:
    builder = TraceBuilder(label, keep_alive=shadow.fake_mode is not None, choices=choices)
    where = f"{label} mode"
    try:
        outputs = shadow.run(example, builder, rules, training=training)
    except RecordingError as refusal:  # what else the model can do is recorded all the same
        return builder.finish(None), refusal
    except PrunekitError:
        raise
    except Exception as error:
        shapes = [
            tuple(leaf.shape) for leaf in pytree.tree_leaves((example.args, example.kwargs)) if torch.is_tensor(leaf)
        ]
        failure = RecordingError(
            "The model's forward pass raised on the example inputs.",
            where=f"{where}, inputs of shape {shapes}",
            why=f"{type(error).__name__}: {str(error)[:400]}",
            hint="call the model on the same example inputs and make that run first",
        )
        failure.__cause__ = error
        return builder.finish(None), failure
    trace = builder.finish(outputs)
    if trace.results or builder.held:
        return trace, None
    return trace, RecordingError(
        "There is no tensor among the outputs of the model.",
        where=f"{where}, an output of type {type(outputs).__name__}",
        why="nothing says what the model has to go on computing, so everything could be removed from it",
        hint="return tensors, in containers or objects, or pass a forward_fn or an output_transform that does",
    )
