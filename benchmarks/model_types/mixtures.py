"""Mixtures of experts among the model types of transformers, with so many experts that half of them may leave."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

EXPERTS, GROUPS = 10, 2
"""Experts of a layer, a size that nothing else in these models has; and groups of them where a type has some."""
FIELDS = re.compile(r"(moe_)?num_(local_)?experts|n_routed_experts")
"""Fields of configurations that count the experts."""
GROUP_FIELDS = ("n_group", "num_expert_group")
CHOICE = re.compile(r"topk|one_hot|argmax|\.sort\(")
IMPLEMENTATIONS = ("eager", "grouped_mm", "batched_mm")
"""Values of ``config._experts_implementation``."""

CHANGES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "gemma4": {
            "text_config.enable_moe_block": True, "text_config.num_experts": EXPERTS,
            "text_config.top_k_experts": 2, "text_config.moe_intermediate_size": 32,
        },
        "gemma4_text": {
            "enable_moe_block": True, "num_experts": EXPERTS, "top_k_experts": 2, "moe_intermediate_size": 32,
        },
        "hunyuan_v1_moe": {"num_experts": EXPERTS, "moe_topk": 2},
        "flint": {"mlp_only_layers": []},
        "doge": {"is_moe": True, "num_experts": EXPERTS * EXPERTS},
        "nllb-moe": {"encoder_sparse_step": 1, "decoder_sparse_step": 1},
        "switch_transformers": {"num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 2},
        "ernie4_5_moe": {"moe_layer_start_index": 0, "moe_layer_end_index": -1},
        "afmoe": {"num_dense_layers": 0},
        "jamba": {"expert_layer_period": 1, "expert_layer_offset": 0},
        "llama4_text": {"moe_layers": [0, 1]},
    }
)  # fmt: skip
"""Fields that make a type a mixture, or let it have two layers with experts."""


def source(name: str) -> str:
    """The source text of a type's file ``modeling_*.py``; empty where there is none."""
    folder = importlib.import_module("transformers.models.auto.configuration_auto").model_type_to_module_name(name)
    found = importlib.util.find_spec(f"transformers.models.{folder}")
    places = (
        [Path(place) / f"modeling_{folder}.py" for place in (found.submodule_search_locations or ())] if found else []
    )
    return places[0].read_text() if places and places[0].exists() else ""


def is_mixture(name: str) -> bool:
    """Whether the file of a type speaks of experts and chooses something."""
    text = source(name)
    return bool(re.search(r"\b(E|e)xperts?\b", text) and CHOICE.search(text))


def implementations(name: str) -> tuple[str, ...]:
    """The implementations of experts that a type has; one, without a name, where it has its own only."""
    return IMPLEMENTATIONS if "use_experts_implementation" in source(name) else ("",)


def enlarge(config: dict[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a configuration, as a dict, with more experts, in groups where the type has groups by default.

    Args:
        config: The shrunk configuration.
        usual: The configuration as the type has it by default.
    """
    found = dict(config)
    for field, value in config.items():
        before = usual.get(field)
        if isinstance(value, Mapping) and field.endswith("config"):
            found[field] = enlarge(dict(value), before if isinstance(before, Mapping) else {})
        elif FIELDS.fullmatch(field) and isinstance(value, int) and value > 1:
            found[field] = EXPERTS
        elif field in GROUP_FIELDS and isinstance(before, int) and before > 1:
            found[field] = GROUPS
        elif field == "first_k_dense_replace" and value:
            found[field] = 0
        elif field == "mlp_layer_types" and isinstance(value, list | tuple) and "sparse" in value:
            found[field] = ["sparse"] * len(value)
    return found
