"""Counting multiply-accumulates and parameters."""

from __future__ import annotations

from typing import Any

from torch import nn

from prunekit.plugin import DependencyGraph, Sizer
from prunekit_plugins.budgets.counts import FORMULAS, Shapes
from prunekit_plugins.compat.torch_pruning.unavailable import UnavailableError

_HOOKS = (
    "bn_flops_counter_hook",
    "conv_flops_counter_hook",
    "CUSTOM_MODULES_MAPPING",
    "MODULES_MAPPING",
    "linear_flops_counter_hook",
)


def count_ops_and_params(model: nn.Module, example_inputs: Any, layer_wise: bool = False) -> tuple[Any, ...]:
    """Counts the multiply-accumulates of one forward, and the parameters.

    Products that are added up count, wherever they run: linear layers, matrix products, einsum, convolutions,
    attention. Norms, activations, pooling and biases don't. The model isn't run, and no hooks are left in it.

    Args:
        model: The model; the mode it is in is the mode that counts.
        example_inputs: A tensor, a tuple or list of positional inputs, or a dict of keyword inputs.
        layer_wise: Whether to count every module by itself.

    Returns:
        ``(macs, parameters)``, a float and an int; with ``layer_wise`` also two dicts by module, where a module counts
        what runs inside it.

    Raises:
        RecordingError: The forward pass raised.
    """
    graph = DependencyGraph().build_dependency(model, example_inputs, modes=(None,))
    recording, sizer = graph.analysis.recordings[0], Sizer({})
    per_path: dict[str, float] = {}
    for operation in recording.trace.operations:
        formula = FORMULAS.get(operation.name.split(".")[0])
        if formula is not None:
            macs = formula(Shapes(recording, operation, sizer))
            per_path[operation.module] = per_path.get(operation.module, 0.0) + macs
    total, parameters = sum(per_path.values(), 0.0), get_model_parameters_number(model)
    if not layer_wise:
        return total, parameters
    paths: dict[nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(module, []).append(path)
    own = {
        module: sum(
            macs
            for place, macs in per_path.items()
            if any(not path or place == path or place.startswith(path + ".") for path in names)
        )
        for module, names in paths.items()
    }
    return total, parameters, own, {module: get_model_parameters_number(module) for module in paths}


def get_model_parameters_number(model: nn.Module) -> int:
    """Counts the elements of all parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def __getattr__(name: str) -> Any:
    if name in _HOOKS or name.endswith(("_counter_hook", "_hook_function", "_flops_count")):
        raise _NoHooksError(
            f"op_counter.{name} is not available in prunekit.",
            why="operations are counted as they are recorded, whatever module runs them: there are no hooks",
            hint="call count_ops_and_params; a module of your own needs no entry",
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _NoHooksError(UnavailableError, AttributeError):
    """Also an AttributeError, so that ``hasattr`` answers."""
