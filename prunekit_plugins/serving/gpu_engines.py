"""Engines that serve folders on GPUs: vLLM, SGLang, TensorRT-LLM. They load what the stock class loads."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
from torch import nn

from prunekit.plugin import ArgumentError, Graph, Kind, Plan, Registry, ServingEngine, ServingProfile, UnitGroup
from prunekit_plugins.serving.engines import load_test

OPTIONS = ("tensor_parallel", "group")
DEALT = "The heads can't be dealt out to so many GPUs."
READ = "by vLLM's loader and reports of early 2026; not run here"


def sharded_profile(
    model: nn.Module,
    example_inputs: Any,
    registry: Registry | None = None,
    *,
    engine: str,
    tensor_parallel: int = 1,
    group: int = 1,
) -> ServingProfile:
    """What an engine asks for that splits layers over GPUs: what the stock class asks for, in sizes that can be split.

    Feed-forwards are split over the GPUs, and each part of a weight that is quantised is cut into groups along the dim
    that is summed over: sizes are multiples of both numbers together. Heads stay, unless the call lets whole heads
    go: those that are left must be such that they can be dealt out. Vocabularies are padded by the engines.

    Args:
        model: A ``transformers.PreTrainedModel``, not pruned.
        example_inputs: Its example inputs.
        registry: Where plugins are found; None for the default registry.
        engine: Name of the profile.
        tensor_parallel: Over how many GPUs each layer is split.
        group: How many weights share a scale, along the dim that is summed over: 32 or 128; 1 for none.

    Raises:
        ArgumentError: An option is no positive number, the heads can't be dealt out, or the model is none of
            transformers'.
    """
    from prunekit_plugins.integrations.config_limits import USUAL_MULTIPLE
    from prunekit_plugins.integrations.serving import configured_profile

    for name, value in (("tensor_parallel", tensor_parallel), ("group", group)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ArgumentError(f"{name} must be a positive whole number.", where=engine, why=f"got {value!r}")
    step = tensor_parallel * group
    profile = configured_profile(
        model, example_inputs, registry, engine=engine, multiple=math.lcm(USUAL_MULTIPLE, step)
    )
    config: Any = getattr(model, "config").get_text_config()  # noqa: B009  # of transformers, which has no types
    _check_heads(config, engine, tensor_parallel)
    notes = (*profile.notes, *_odd_sizes(config, tensor_parallel, group))
    check = functools.partial(_check_left, engine=engine, tensor_parallel=tensor_parallel)
    return attrs.evolve(profile, round_to=math.lcm(profile.round_to, step), notes=notes, check=check)


def _can_be_dealt_out(heads: int, pairs: int, tensor_parallel: int) -> bool:
    """Tells whether query heads, and heads of keys and values, can be split over GPUs."""
    return heads % tensor_parallel == 0 and (pairs % tensor_parallel == 0 or tensor_parallel % pairs == 0)


def _check_left(graph: Graph, plan: Plan, *, engine: str, tensor_parallel: int) -> None:
    """Raises `ArgumentError` where the heads that a plan leaves can't be dealt out."""
    kept = plan.kept

    def left(group: UnitGroup) -> int:
        return len(kept.get(group.name, range(group.size)))

    groups = graph.groups()
    wrong = []
    for group in groups:
        if group.kind is Kind.HEADS and group.name in kept:
            modules = {member.module for member in group.members}
            shared = [one for one in groups if one.kind is Kind.QUERIES_PER_HEAD]
            each = [left(one) for one in shared if modules & {member.module for member in one.members}]
            heads = left(group) * math.prod(each)
            if not _can_be_dealt_out(heads, left(group), tensor_parallel):
                layer = group.name.partition("#")[0]
                paired = bool(each) or len({member.module for member in group.producers()}) > 1  # or all share one
                shared_by = f" and {left(group)} heads of keys and values" if paired else ""
                wrong.append(f"{layer} keeps {heads} query heads{shared_by}")
    if wrong:
        raise ArgumentError(
            DEALT,
            where=f"{engine}, tensor_parallel={tensor_parallel}",
            why="; ".join(wrong[:4]) + (f"; and {len(wrong) - 4} more" if wrong[4:] else ""),
            hint="another head_pruning_ratio, or a degree that divides what is left; prune_num_heads=False keeps all",
        )


def _check_heads(config: Any, engine: str, tensor_parallel: int) -> None:
    heads = getattr(config, "num_attention_heads", None) or 1
    pairs = getattr(config, "num_key_value_heads", None) or heads
    if not _can_be_dealt_out(heads, pairs, tensor_parallel):
        raise ArgumentError(
            DEALT,
            where=f"{engine}, tensor_parallel={tensor_parallel}",
            why=f"the model has {heads} query heads and {pairs} heads of keys and values",
            hint="a degree that divides the query heads, and divides or is divided by the others",
        )


def _odd_sizes(config: Any, tensor_parallel: int, group: int) -> Iterator[str]:
    """Says which sizes the engine couldn't split if they stayed."""
    for name, step in (("hidden_size", group), ("intermediate_size", tensor_parallel * group)):
        size = getattr(config, name, None)
        if isinstance(size, int) and size % step:
            yield f"{name}={size} is no multiple of {step}, which the engine asks for: it has to get smaller"


def stock_test(engine: str) -> Callable[[Path], object | None]:
    """Makes the load test of an engine that isn't run: the folder is loaded by the stock class and compared."""

    def run(folder: Path) -> object | None:
        found = load_test("hf")(folder)
        return None if found is None else f"not run in {engine}; the stock class of transformers loads it: {found}"

    return run


def engine_of(name: str, title: str) -> ServingEngine:
    """Makes the profile of an engine."""
    profile = functools.partial(sharded_profile, engine=name)
    return ServingEngine(profile, f"{title}, {READ}", stock_test(title), OPTIONS)


VLLM = engine_of("vllm", "vLLM")
SGLANG = engine_of("sglang", "SGLang")
TENSORRT_LLM = engine_of("tensorrt-llm", "TensorRT-LLM")
