"""Experts in a GGUF file: how many there are, how wide they are, and how a router weighs them."""

from __future__ import annotations

from typing import Any

from prunekit_plugins.export.comparison import library
from prunekit_plugins.export.decoder import Block, Decoder
from prunekit_plugins.export.gguf.families import Form


def mixture_of(decoder: Decoder) -> tuple[int, Block | None]:
    """Returns the place of the first layer with experts and its sizes; None where there is none."""
    found = ((place, block) for place, block in enumerate(decoder.blocks) if block.experts)
    return next(found, (len(decoder.blocks), None))


def add_experts(writer: Any, decoder: Decoder, form: Form) -> None:
    """Adds the numbers of experts, if there are any, to a file that is written by gguf's ``GGUFWriter``."""
    model: Any = decoder.model
    place, block = mixture_of(decoder)
    if block is None:
        return
    writer.add_expert_count(block.experts)
    writer.add_expert_used_count(model.config.num_experts_per_tok)
    writer.add_expert_feed_forward_length(block.neurons)
    if form.gating:
        writer.add_leading_dense_block_count(place)
        writer.add_expert_shared_count(-(-block.shared // block.neurons))
        _add_router(writer, model.model.layers[place].mlp.gate, form)


def _add_router(writer: Any, router: Any, form: Form) -> None:
    kinds: Any = library("gguf", "gguf").ExpertGatingFuncType
    writer.add_expert_gating_func(kinds[form.gating])
    writer.add_expert_weights_norm(bool(getattr(router, "norm_topk_prob", False)))
    writer.add_expert_weights_scale(float(router.routed_scaling_factor))
    grouped = getattr(router, "topk_method", "grouped") != "greedy" and (router.num_group or 1) > 1
    if grouped:
        writer.add_expert_group_count(router.num_group)
        writer.add_expert_group_used_count(router.topk_group)
