"""Arguments held against the form that they have to have, before anything is traced."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar

import attrs

from prunekit_core.errors import ArgumentError, KeywordError, nearest

P = ParamSpec("P")
T = TypeVar("T")


@attrs.frozen
class Form:
    """What an argument has to be.

    Attributes:
        text: In words, to follow "NAME is".
        fits: Whether a value has this form; None always does.
        example: What to write.
    """

    text: str
    fits: Callable[[Any], bool]
    example: str


def _is_module(value: Any) -> bool:
    from torch import nn  # checks of a project's settings are made without it

    return isinstance(value, nn.Module)


def _is_listing(value: Any) -> bool:
    single = isinstance(value, str | type) or (_is_module(value) and not hasattr(type(value), "__iter__"))
    return isinstance(value, Iterable) and not single


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _trains(value: Any) -> bool:
    several = value if isinstance(value, list | tuple) else [value]
    return all(hasattr(one, "param_groups") for one in several)


def _are_modes(value: Any) -> bool:
    return _is_listing(value) and bool(value) and all(mode is None or isinstance(mode, bool) for mode in value)


def _are_types(value: Any) -> bool:
    return _is_listing(value) and all(isinstance(kind, type) for kind in value)


def _counts_of_layers(value: Any) -> bool:
    return isinstance(value, Mapping) and all(map(_is_module, value))


def _is_switch(value: Any) -> bool:
    return isinstance(value, int)  # True and False are, too


_LAYERS = Form("a list of layers: modules, types or dotted names", _is_listing, '["head"], [nn.Linear]')
_RATIOS = Form("a mapping of layers to ratios", _is_mapping, '{"layer1": 0.3, nn.Linear: 0.5}')
_COUNTS = Form("a mapping of layers (modules of the model) to numbers", _counts_of_layers, "{model.attention.qkv: 8}")
_SWITCH = Form("True or False", _is_switch, "True")
_CALLED = Form("called as it is documented", callable, "a function")

FORMS: Mapping[str, Form] = {
    "ignored_layers": _LAYERS,
    "root_module_types": Form("a list of module types", _are_types, "[nn.Linear, nn.Conv2d]"),
    "pruning_ratio_dict": _RATIOS,
    "head_pruning_ratio_dict": _RATIOS,
    "in_channel_groups": _COUNTS,
    "out_channel_groups": _COUNTS,
    "num_heads": _COUNTS,
    "customized_pruners": Form("a mapping of module types to pruning objects", _is_mapping, "{MyLayer: MyPruner()}"),
    "unwrapped_parameters": Form(
        "a mapping of parameters to dims, or a list of such pairs", _is_listing, "{model.scale: 0}"
    ),
    "momentum_copies": Form("a mapping of copies to their originals", _is_mapping, '{"teacher": "student"}'),
    "free_outputs": Form("a list of names of outputs", _is_listing, '["hidden_states"]'),
    "modes": Form("a list of training flags (None: as the modules are)", _are_modes, "[False, True]"),
    "verify": Form('"never", "auto" or "always"', lambda value: value in ("never", "auto", "always"), '"always"'),
    "global_pruning": _SWITCH,
    "isomorphic": _SWITCH,
    "uniform": _SWITCH,
    "prune_num_heads": _SWITCH,
    "prune_head_dims": _SWITCH,
    "reestimate_batchnorm": _SWITCH,
    "keep_names": _SWITCH,
    "forward_fn": _CALLED,
    "output_transform": _CALLED,
    "target": Form(
        "a mapping of costs to what should be left",
        _is_mapping,
        '{"macs": 0.5} for half of the multiply-accumulates; ratio=0.5 for half of the units',
    ),
    "optimizer": Form("an optimizer, or a list of them", _trains, "torch.optim.AdamW(model.parameters())"),
    "compensation": Form(
        "the name of a compensator, a compensator, or a list of them",
        lambda value: isinstance(value, str) or _is_listing(value) or callable(value),
        '"least_squares"',
    ),
    "registry": Form("a Registry", lambda value: hasattr(type(value), "named"), "prunekit.Registry()"),
}
"""The arguments that are checked by their form alone; others have values to be checked where they are used."""


def check_forms(arguments: Mapping[str, Any]) -> None:
    """Raises `ArgumentError` for the first argument that isn't None and hasn't the form that its name asks for."""
    for name, value in arguments.items():
        form = FORMS.get(name)
        if form is not None and value is not None and not form.fits(value):
            raise ArgumentError(
                f"{name} is {form.text}.", why=f"got {shown(value)}", hint=f"for example {form.example}"
            )


def forms_checked(function: Callable[P, T]) -> Callable[P, T]:
    """Decorates a function: its arguments are held against their forms before it runs."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        check_forms({**signature.bind(*args, **kwargs).arguments, **kwargs})
        return function(*args, **kwargs)

    return checked


def is_number(value: object) -> bool:
    """Tells whether a value is a finite number, which True and False aren't."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: object) -> bool:
    """Tells whether a value is a positive whole number, which True isn't."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def fields_from(value: type[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Picks from the keywords of a call those that are fields of an attrs class, to make one of its values."""
    return {field.name: given[field.name] for field in attrs.fields(value) if field.init and field.name in given}


def shown(value: Any) -> str:
    """Words a value that was given: its text if that is short, else its type."""
    return repr(value)[:120] if isinstance(value, str | int | float | list | tuple) else type(value).__name__


def keywords_of(*functions: Callable[..., Any]) -> tuple[str, ...]:
    """Lists the names by which some functions take arguments, leaving out those that stand for others."""
    found = [p for function in functions for p in inspect.signature(function).parameters.values()]
    return tuple(dict.fromkeys(p.name for p in found if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)))


def check_keywords(given: Iterable[str], known: Iterable[str], function: str) -> None:
    """Raises `KeywordError` for the first name that a function doesn't know, with the nearest ones that it does."""
    accepted = tuple(known)
    for name in given:
        if name not in accepted:
            raise KeywordError(f"{function} has no argument called {name!r}.", hint=nearest(name, accepted))
