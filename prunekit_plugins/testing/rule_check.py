"""Proving an op rule by execution: slice the inputs, run again, compare with slicing the output."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from prunekit_core.algebra.axes import Axis, Form, leaves, resolve
from prunekit_core.plugins.registry import Registry, default_registry
from prunekit_core.program.calls import tensors_of
from prunekit_core.program.op_call import Role, Verb
from prunekit_core.program.rules import RuleTable
from prunekit_core.program.trace import Operation, TensorRef
from prunekit_plugins.testing.failure import require, require_tensors
from prunekit_plugins.testing.reading import AxesRead, read_axes

Kept = Mapping[int, Sequence[int]]
"""Kept units by the identity of a leaf; an absent leaf keeps all."""


def check_rule(
    function: Callable[..., Any],
    tensors: Sequence[torch.Tensor],
    *,
    weights: Sequence[int] = (),
    registry: Registry | None = None,
    values: bool = True,
    tolerance: float = 0.0,
    seeds: Sequence[int] = (0, 1),
) -> AxesRead:
    """Proves by execution what the rules say about a function of some tensors.

    Units of the tensors are removed at random, each free run alone and all together; the operations run again on the
    smaller tensors, with the sizes among their arguments that the rules state, and must give the result on the whole
    tensors, sliced. Units that are contracted are zeroed for the latter. Runs that an operation mixes are removed in
    a further trial that compares shapes only.

    Args:
        function: As for `read_axes`. Every tensor that it uses must be among ``tensors``.
        tensors: As for `read_axes`. `sample` makes tensors that can be compared bit by bit.
        weights: As for `read_axes`.
        registry: As for `read_axes`.
        values: False compares shapes only, for operations whose result is random or uninitialised.
        tolerance: Largest difference allowed, relative to the largest value; 0 compares bit by bit.
        seeds: One trial with all runs together for each.

    Returns:
        What the rules said.

    Raises:
        AssertionError: An operation has no rule or wasn't understood, nothing is free, or the results differ.
    """
    require(callable(function), "check_rule", "a function of some tensors", function)
    require_tensors("check_rule", tensors)
    registry = registry or default_registry()
    read = read_axes(function, tensors, weights=weights, registry=registry)
    try:
        _check(read, registry.op_rules, tensors, values=values, tolerance=tolerance, seeds=seeds)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{_origins(read, registry)}") from error.__cause__
    return read


def _check(
    read: AxesRead,
    rules: RuleTable,
    tensors: Sequence[torch.Tensor],
    *,
    values: bool,
    tolerance: float,
    seeds: Sequence[int],
) -> None:
    assert not read.not_understood, f"{_names(read)}: not understood: {'; '.join(read.not_understood)}"
    free = {id(leaf): leaf for dims in read.inputs for axis in dims for leaf in leaves(axis) if _is_free(leaf)}
    assert free, f"{_names(read)}: no axis of the tensors is free, so the check proves nothing: {read}"
    mixed = read.used_whole(Verb.MIX) | read.used_whole(Verb.CHOOSE)
    exact = [leaf for key, leaf in free.items() if key not in mixed and values]
    for leaf in exact:  # without the first unit every other one moves
        _trial(read, rules, tensors, {id(leaf): range(1, leaf.size)}, values=True, tolerance=tolerance)
    for seed in seeds:
        if exact:
            _trial(read, rules, tensors, _choose(exact, seed), values=True, tolerance=tolerance)
        if len(exact) < len(free):
            _trial(read, rules, tensors, _choose(list(free.values()), seed), values=False, tolerance=tolerance)


def _origins(read: AxesRead, registry: Registry) -> str:
    """Says whose rules were used, with file and line."""
    ops = {operation.name: operation.op for operation in read.propagation.trace.operations}
    lines = []
    for name, op in ops.items():
        origin = registry.rule_origin(op)
        lines.append(f"  {name}: " + (f"rule of {origin.owner.name} in {origin.site}" if origin else "no rule"))
    return "\n".join(lines)


def _is_free(leaf: Axis) -> bool:
    return leaf.size > 1 and leaf.reason is None


def _names(read: AxesRead) -> str:
    return ", ".join(dict.fromkeys(operation.name for operation in read.propagation.trace.operations))


def _choose(chosen: Sequence[Axis], seed: int) -> Kept:
    """Draws kept units at random: at least two where there are more, since a dim of size one is another matter."""
    draw = random.Random(seed)
    counts = [draw.randint(min(2, leaf.size - 1), leaf.size - 1) for leaf in chosen]
    return {id(leaf): sorted(draw.sample(range(leaf.size), count)) for leaf, count in zip(chosen, counts, strict=True)}


def _positions(axis: Axis, kept: Kept) -> list[int]:
    root = resolve(axis)
    if root.form is Form.LEAF:
        return list(kept.get(id(root), range(root.size)))
    result = [0] if root.form is Form.PRODUCT else []
    offset = 0
    for part in root.parts:
        inner = _positions(part, kept)
        if root.form is Form.PRODUCT:
            result = [position * resolve(part).size + unit for position in result for unit in inner]
        else:
            result.extend(offset + unit for unit in inner)
            offset += resolve(part).size
    return result


def _sliced(tensor: torch.Tensor, dims: Sequence[Axis], kept: Kept) -> torch.Tensor:
    for dim, axis in enumerate(dims):
        tensor = tensor.index_select(dim, torch.tensor(_positions(axis, kept), dtype=torch.long, device=tensor.device))
    return tensor


def _masked(tensor: torch.Tensor, dims: Sequence[Axis], kept: Kept) -> torch.Tensor:
    result = tensor.clone()
    for dim, axis in enumerate(dims):
        gone = sorted(set(range(tensor.shape[dim])) - set(_positions(axis, kept)))
        result.index_fill_(dim, torch.tensor(gone, dtype=torch.long, device=tensor.device), 0)
    return result


def _trial(
    read: AxesRead,
    rules: RuleTable,
    tensors: Sequence[torch.Tensor],
    kept: Kept,
    *,
    values: bool,
    tolerance: float,
) -> None:
    small = _replay(read, rules, [_sliced(t, dims, kept) for t, dims in zip(tensors, read.inputs, strict=True)], kept)
    if not values:
        return
    consumed = {
        axis
        for tensor, dims in enumerate(read.inputs)
        for dim, axis in enumerate(dims)
        if read.role(tensor, dim) is Role.IN
    }
    summed = read.used_whole(Verb.CONTRACT) | read.used_whole(Verb.SUM)
    contracted = summed | {id(leaf) for axis in consumed for leaf in leaves(axis)}
    zeroed = {key: units for key, units in kept.items() if key in contracted}
    whole = _replay(read, rules, [_masked(t, dims, zeroed) for t, dims in zip(tensors, read.inputs, strict=True)], None)
    for position, (found, full, dims) in enumerate(zip(small, whole, read.outputs, strict=True)):
        expected = _sliced(full, dims, kept)
        where = f"{_names(read)}: output {position} of {read}: slicing the inputs to {_tell(read, kept)}"
        assert found.shape == expected.shape, f"{where} gives shape {tuple(found.shape)}, not {tuple(expected.shape)}"
        assert _agree(found, expected, tolerance), (
            f"{where} is not the same as slicing the output; they differ in {_differing(found, expected)}"
        )


def _tell(read: AxesRead, kept: Kept) -> str:
    return ", ".join(str(tuple(len(_positions(axis, kept)) for axis in dims)) for dims in read.inputs)


def _agree(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    if tolerance == 0 or not found.is_floating_point():
        return torch.equal(found.nan_to_num(nan=0.1), expected.nan_to_num(nan=0.1))
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    return torch.allclose(found, expected, rtol=0, atol=tolerance * scale, equal_nan=True)


def _differing(found: torch.Tensor, expected: torch.Tensor) -> str:
    wrong = (found != expected) & ~((found != found) & (expected != expected))
    first = wrong.nonzero()[0].tolist()
    here, there = found[tuple(first)], expected[tuple(first)]
    return f"{int(wrong.sum())} of {wrong.numel()} elements, first at {first}: {here}, not {there}"


def _replay(read: AxesRead, rules: RuleTable, tensors: Sequence[torch.Tensor], kept: Kept | None) -> list[torch.Tensor]:
    """Runs the operations of a trace on other tensors, with the predicted sizes where units were removed."""
    trace = read.propagation.trace
    known = {trace.parameters[f"x{position}"].index: tensor for position, tensor in enumerate(tensors)}
    later = (ref for operation in trace.operations for ref in operation.references())
    used = {*later, *trace.results}
    for operation in trace.operations:
        arguments = {name: _look_up(known, value) for name, value in operation.arguments.items()}
        shapes = [_shape(read, ref, kept or {}) for ref in operation.outputs]
        if kept is not None:
            arguments.update(_sizes(read, rules, operation, shapes, kept))
        schema = {argument.name: argument.kwarg_only for argument in operation.op._schema.arguments}
        try:
            with torch.no_grad():
                result = operation.op(
                    *(arguments[name] for name, only in schema.items() if not only),
                    **{name: arguments[name] for name, only in schema.items() if only},
                )
        except Exception as error:
            given = ", ".join(f"{name}={_brief(value)}" for name, value in arguments.items())
            raise AssertionError(f"{operation.name} raises on {given} ({read}): {error}") from error
        for ref, tensor, shape in zip(operation.outputs, tensors_of(result), shapes, strict=True):
            assert ref not in used or tuple(tensor.shape) == shape, (
                f"{operation.name} gives shape {tuple(tensor.shape)} where its rule predicts {shape}: {read}"
            )
            known[ref.index] = tensor
    return [known[ref.index] for ref in trace.results]


def _look_up(known: Mapping[int, torch.Tensor], value: Any) -> Any:
    if isinstance(value, TensorRef):
        assert value.index in known, "every tensor that the function uses must be passed to the check"
        return known[value.index]
    return [_look_up(known, item) for item in value] if isinstance(value, list) else value


def _brief(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, torch.Tensor) else str(value)


def _shape(read: AxesRead, ref: TensorRef, kept: Kept) -> tuple[int, ...]:
    return tuple(len(_positions(axis, kept)) for axis in read.propagation.tensors[ref.index])


def _sizes(
    read: AxesRead, rules: RuleTable, operation: Operation, shapes: Sequence[tuple[int, ...]], kept: Kept
) -> dict[str, Any]:
    """Returns the arguments that hold sizes: those that a rule states, and lists that show in the output's shape."""
    found: dict[str, Any] = {}
    rule = rules.find(operation.op)
    for name in rule.sizes if rule is not None else ():
        value = operation.arguments.get(name)
        if isinstance(value, list) and shapes:
            old = read.propagation.trace.shapes[operation.outputs[0].index]
            places = max(1, len(old) - len(value) + 1)
            if places > 1 and "dim" not in operation.arguments:
                continue
            start = operation.arguments.get("dim", 0) % places
            run = old[start : start + len(value)]
            if len(run) == len(value) and all(a in (b, -1) for a, b in zip(value, run, strict=True)):
                found[name] = list(shapes[0][start : start + len(value)])
    effects = read.propagation.effects
    expectations = effects.expectations.get(operation.index, ())
    for name in {expected.argument for expected in expectations}:
        found.pop(name, None)
    for expected in expectations:
        total = sum(len(_positions(piece, kept)) for piece in expected.pieces) + expected.offset
        if expected.position is None:
            found[expected.argument] = total
        else:
            listed = found.setdefault(expected.argument, list(operation.arguments[expected.argument]))
            listed[expected.position] = total
    temperature = effects.temperatures.get(operation.index)
    if temperature is not None:
        found[temperature.argument] = temperature.value
    return found
