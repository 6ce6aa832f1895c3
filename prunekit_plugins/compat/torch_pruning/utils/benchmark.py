"""Measuring a model: latency, throughput, memory. On a GPU all queued work is waited for; on a CPU it is just timed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from prunekit.plugin import ArgumentError
from prunekit_plugins.compat.torch_pruning.unavailable import refuse
from prunekit_plugins.measure import evaluating, timed

RunFn = Callable[[nn.Module, Any], Any]


def measure_latency(
    model: nn.Module, example_inputs: Any, repeat: int = 300, warmup: int = 50, run_fn: RunFn | None = None
) -> tuple[float, float]:
    """Measures the time of one forward in eval mode, without gradients.

    Args:
        model: The model; its modes are restored.
        example_inputs: A tensor, a tuple or list of positional inputs, or a dict of keyword inputs.
        repeat: Number of forwards that are timed.
        warmup: Number of forwards before.
        run_fn: Called as ``run_fn(model, example_inputs)`` instead of the model.

    Returns:
        Mean and standard deviation in milliseconds.
    """
    times = _times(model, example_inputs, repeat, warmup, run_fn)
    return statistics.fmean(times) * 1000, statistics.pstdev(times) * 1000


def measure_fps(
    model: nn.Module, example_inputs: Any, repeat: int = 300, warmup: int = 50, run_fn: RunFn | None = None
) -> float:
    """Measures forwards per second; arguments as for `measure_latency`."""
    return 1 / statistics.fmean(_times(model, example_inputs, repeat, warmup, run_fn))


def measure_throughput(
    model: nn.Module, example_inputs: Any, repeat: int = 300, warmup: int = 50, run_fn: RunFn | None = None
) -> float:
    """Measures samples (along the first dim of the first input) per second; arguments as for `measure_latency`."""
    batch = len(next(_tensors(example_inputs)))
    return batch * measure_fps(model, example_inputs, repeat, warmup, run_fn)


def measure_memory(model: nn.Module, example_inputs: Any, device: Any = None, run_fn: RunFn | None = None) -> int:
    """Measures the peak of memory during one forward in eval mode, without gradients.

    Args:
        model: The model; its modes are restored.
        example_inputs: As for `measure_latency`.
        device: The GPU to look at; None for where the model is.
        run_fn: Called as ``run_fn(model, example_inputs)`` instead of the model.

    Returns:
        Bytes allocated at the peak.

    Raises:
        UnavailableError: The model isn't on a GPU.
    """
    place = torch.device(device) if device is not None else next((p.device for p in model.parameters()), None)
    if place is not None and place.type == "cuda":
        torch.cuda.reset_peak_memory_stats(place)
        _times(model, example_inputs, 1, 0, run_fn)
        return torch.cuda.max_memory_allocated(place)
    raise refuse(
        "measure_memory without a GPU",
        "only CUDA's allocator tells its peak; Torch-Pruning can't do it either",
        "move the model to a GPU; plan.preview() tells the bytes of parameters and buffers",
    )


def _times(model: nn.Module, inputs: Any, repeat: int, warmup: int, run_fn: RunFn | None) -> Sequence[float]:
    if repeat < 1 or warmup < 0:
        raise ArgumentError("repeat must be positive and warmup not negative.", why=f"got {repeat} and {warmup}")
    places = (tensor.device for tensor in (*model.parameters(), *_tensors(inputs)))
    place = next((place for place in places if place.type not in ("cpu", "meta")), None)
    with evaluating([model]):
        (timing,) = timed([lambda: _run(model, inputs, run_fn)], rounds=repeat, warm_up=warmup, device=place)
    return timing.seconds


def _run(model: nn.Module, inputs: Any, run_fn: RunFn | None) -> Any:
    if run_fn is not None:
        return run_fn(model, inputs)
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, list | tuple) else model(inputs)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)
