"""Running a model on what it has returned: a first call, and calls that are given its cache as decoding does.

With a cache, one call is half of the program. What a model returns for an argument of its own forward is handed on:
``cache`` or ``past_key_values`` of transformers, or whatever a user's forward returns and takes.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import nn

from prunekit_core.program.examples import Runner, run_model
from prunekit_core.program.outputs import named_outputs

SWITCH = "cache"
"""What is in the name of an argument that switches caches on: ``use_cache``."""
TARGET = "decoder_"
"""How the arguments of the part that decodes begin where a model has an encoder as well."""
COVERING = "attention_mask"
"""The argument that says something of all tokens, those in the cache included."""

Key = str | int
"""Where a model's outputs hold something: a key, the name of a field, or a position."""


class Later(enum.Enum):
    """What a later call is given."""

    SAME = "same"
    """The inputs of the first call once more, as what comes next."""
    LAST = "last"
    """Only the last position of each."""


@attrs.frozen
class Decoding:
    """How a model is run with its own cache.

    Attributes:
        switches: Arguments that are set to True, so that it returns one.
        handed: Where the outputs hold what is handed on, with the argument that takes it.
        later: The calls after the first one.
    """

    switches: tuple[str, ...]
    handed: tuple[tuple[Key, str], ...]
    later: tuple[Later, ...]

    def inputs(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the arguments of the first call."""
        return {**given, **dict.fromkeys(self.switches, True)}

    def run(self, model: nn.Module, given: Mapping[str, Any], outputs: Any = None) -> list[Any]:
        """Calls a model several times.

        Args:
            model: The model.
            given: What the user calls it with, by name.
            outputs: Those of the first call; None to make it.

        Returns:
            The outputs of each call without what was handed on.
        """
        inputs = self.inputs(given)
        outputs = model(**inputs) if outputs is None else outputs
        found = [without(outputs, self.handed)]
        covered = inputs
        for later in self.later:
            added = inputs if later is Later.SAME else last_position(inputs)
            covered = covering(covered, added)
            cache = {argument: held(outputs, key) for key, argument in self.handed}
            outputs = model(**{**added, **covered, **cache})
            found.append(without(outputs, self.handed))
        return found


@attrs.frozen(eq=False)
class DecodingRunner:
    """A `Runner` that decodes after the model has been run as its user runs it.

    Attributes:
        runner: How the user runs it.
        decoding: How it decodes.
    """

    runner: Runner
    decoding: Decoding

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Returns the outputs of all calls."""
        given = call_of(self.runner, model, args, kwargs)
        return None if given is None else self.decoding.run(model, given)


@attrs.frozen(eq=False)
class FirstCall:
    """A `Runner` whose outputs lack what is handed on.

    Attributes:
        runner: The runner.
        handed: See `Decoding`.
    """

    runner: Runner
    handed: tuple[tuple[Key, str], ...]

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Returns the outputs of the runner without it."""
        return without(self.runner(model, args, kwargs), self.handed)


def call_of(runner: Runner, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the arguments, by name, that a runner calls a model with; those of the last call if it makes several.

    Returns:
        None where it doesn't call the model, or with arguments that have no name.
    """
    if runner is run_model:
        return _by_name(model, args, kwargs)
    calls: list[dict[str, Any] | None] = []
    forward, own = model.forward, vars(model).get("forward")

    def noted(*args: Any, **kwargs: Any) -> Any:
        calls.append(_by_name(model, args, kwargs))
        return forward(*args, **kwargs)

    noted.__wrapped__ = forward  # type: ignore[attr-defined]  # inspect.signature reads the original's
    vars(model)["forward"] = noted
    try:
        runner(model, args, kwargs)
    finally:
        if own is None:
            del vars(model)["forward"]
        else:
            vars(model)["forward"] = own
    return calls[-1] if calls else None


def _by_name(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = [name for name, parameter in parameters_of(model.forward).items() if parameter.kind in kinds]
    return None if len(args) > len(names) else {**dict(zip(names, args, strict=False)), **kwargs}


def parameters_of(forward: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Returns the parameters of a forward; none where it has no signature."""
    try:
        return inspect.signature(forward).parameters
    except (TypeError, ValueError):  # a builtin
        return {}


def entries(outputs: Any) -> Iterator[tuple[Key, Any]]:
    """Yields what the outputs of a model hold: values of a mapping or dataclass, items of a tuple or list."""
    if isinstance(outputs, Mapping):
        yield from outputs.items()
    elif dataclasses.is_dataclass(outputs) and not isinstance(outputs, type):
        yield from ((field.name, getattr(outputs, field.name)) for field in dataclasses.fields(outputs))
    elif isinstance(outputs, tuple | list):
        yield from zip(getattr(outputs, "_fields", range(len(outputs))), outputs, strict=True)


def held(outputs: Any, key: Key) -> Any:
    """Returns what outputs hold at a place; None where they have no such place."""
    return dict(entries(outputs)).get(key)


def without(outputs: Any, handed: Sequence[tuple[Key, str]]) -> Any:
    """Returns outputs without what is handed on, under the same key paths."""
    keys = {key for key, _ in handed}
    left = {key: None if key in keys else value for key, value in entries(outputs)}
    if "" in left:  # with what an output_transform made of them
        left[""] = without(left[""], handed)
    if type(outputs) in (tuple, list):
        return list(left.values())
    return left or outputs


def caches(outputs: Any) -> list[tuple[Key, Any]]:
    """Lists what may be a cache among outputs: no tensor itself, but with tensors in it."""
    return [
        (key, value)
        for key, value in entries(outputs)
        if value is not None and not isinstance(value, torch.Tensor) and named_outputs(value)
    ]


def last_position(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns inputs of one position: the last one along dim 1 of the tensors that have as many as the first one."""
    moving = _moving(inputs)
    lengths = [inputs[name].shape[1] for name in moving]
    return {
        name: value[:, -1:] if name in moving and value.shape[1] == lengths[0] else value
        for name, value in inputs.items()
    }


def _moving(inputs: Mapping[str, Any]) -> list[str]:
    """Names the tensors that hold something of each token, where an encoder has its own: those for the decoder."""
    tensors = [name for name, value in inputs.items() if isinstance(value, torch.Tensor) and value.dim() >= 2]
    decoder = [name for name in tensors if name.startswith(TARGET)]
    return [name for name in decoder or tensors if not name.endswith(COVERING)]


def covering(before: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the masks over all tokens so far and those that are added, of which each is like the last one."""
    decoder = any(name.startswith(TARGET) for name in added)
    name = f"{TARGET}{COVERING}" if decoder else COVERING
    mask, moving = before.get(name), _moving(added)
    if not isinstance(mask, torch.Tensor) or mask.dim() != 2 or not moving:
        return {}
    more = mask[:, -1:].expand(-1, added[moving[0]].shape[1])
    return {name: torch.cat([mask, more], 1)}
