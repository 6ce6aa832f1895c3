"""The families that mlx-lm loads with the numbers of their own configuration, as data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prunekit_plugins.export import packed
from prunekit_plugins.export.fixed import DEEPSEEK_V3, GEMMA3, GPT_OSS, SILU
from prunekit_plugins.export.mlx import cuts
from prunekit_plugins.export.mlx.family import Change, MlxFamily

PLAIN = {**SILU, "attention_bias": (False,), "mlp_bias": (False,)}
SCALED = frozenset({"default", "linear", "llama3", "yarn"})
UNSCALED = frozenset({"default"})
SWITCH = ".mlp.switch_mlp"


def _head_dim(config: Any) -> Mapping[str, Any]:
    width = getattr(config, "head_dim", None)
    return {"head_dim": width or config.hidden_size // config.num_attention_heads}


def _phi3(config: Any) -> Iterator[str]:
    turned = config.rope_parameters.get("partial_rotary_factor", 1.0)
    if turned != 1.0:
        yield f"{turned:.0%} of the dims of a head are rotated, not all"


def _qwen3_moe(config: Any) -> Mapping[str, Any]:
    return {"num_experts": config.num_experts}


def _pattern(config: Any) -> int:
    """Returns after how many layers one sees all tokens; 0 where they don't take turns so."""
    kinds = list(config.layer_types)
    period = kinds.index("full_attention") + 1 if "full_attention" in kinds else 0
    turns = [
        "full_attention" if (place + 1) % max(period, 1) == 0 else "sliding_attention" for place in range(len(kinds))
    ]
    return period if turns == kinds else 0


def _gemma3(config: Any) -> Mapping[str, Any]:
    near, far = (config.rope_parameters[f"{name}_attention"] for name in ("sliding", "full"))
    scaled = far.get("rope_type", "default") != "default"
    return {
        "sliding_window_pattern": _pattern(config),
        "rope_local_base_freq": near["rope_theta"],
        "rope_theta": far["rope_theta"],
        "rope_scaling": {name: value for name, value in far.items() if name != "rope_theta"} if scaled else None,
    }


def _gemma3_limits(config: Any) -> Iterator[str]:
    if not _pattern(config):
        yield "layers that see a window don't take turns with one that sees all tokens"
    elif config.rope_parameters["sliding_attention"].get("rope_type", "default") != "default":
        yield "the positions of layers that see a window are scaled"


def _gpt_oss(config: Any) -> Iterator[str]:
    missing = {"full_attention", "sliding_attention"} - set(config.layer_types)
    if missing:
        yield f"no layer has {' or '.join(sorted(missing))}"


def _deepseek(config: Any) -> Iterator[str]:
    if config.num_experts_per_tok == 1 and config.norm_topk_prob:
        yield "the weight of one expert for a token is normalised"


FAMILIES: Mapping[str, MlxFamily] = {
    "MistralForCausalLM": MlxFamily("mistral", SILU, SCALED, said=_head_dim),
    "Phi3ForCausalLM": MlxFamily(
        "llama",  # the same program; mlx-lm's own phi3 can't say how wide heads are
        SILU,
        SCALED,
        changes=(
            Change(
                ".qkv_proj.weight", (".q_proj.weight", ".k_proj.weight", ".v_proj.weight"), cuts.queries_keys_values
            ),
            Change(".gate_up_proj.weight", (".gate_proj.weight", ".up_proj.weight"), packed.halves),
        ),
        said=_head_dim,
        limits=_phi3,
    ),
    "SmolLM3ForCausalLM": MlxFamily("smollm3", PLAIN, SCALED, said=_head_dim),
    "Gemma3ForCausalLM": MlxFamily(
        "gemma3_text",
        {
            "hidden_activation": ("gelu_pytorch_tanh",),
            "attention_bias": (False,),
            **GEMMA3,
        },
        frozenset({"default", "linear"}),
        windows=True,
        changes=(
            Change("model.embed_tokens.weight", ("model.embed_tokens.weight",), cuts.embedded),
            Change("model.norm.weight", ("model.norm.weight",), cuts.normed),
        ),
        said=_gemma3,
        limits=_gemma3_limits,
    ),
    "Qwen3MoeForCausalLM": MlxFamily(
        "qwen3_moe", PLAIN, UNSCALED, changes=cuts.experts(".mlp.experts", SWITCH), said=_qwen3_moe
    ),
    "MixtralForCausalLM": MlxFamily(
        "mixtral",
        SILU,
        UNSCALED,
        square=True,
        changes=(
            *cuts.experts(".mlp.experts", ".block_sparse_moe.switch_mlp"),
            Change(".mlp.gate.weight", (".block_sparse_moe.gate.weight",), packed.whole),
        ),
    ),
    "GptOssForCausalLM": MlxFamily(
        "gpt_oss",
        {**SILU, "attention_bias": (True,), **GPT_OSS},
        SCALED,
        windows=True,
        tied=False,
        changes=(
            Change(".gate_up_proj", (".gate_proj.weight", ".up_proj.weight"), packed.every_other),
            Change(".gate_up_proj_bias", (".gate_proj.bias", ".up_proj.bias"), packed.every_other),
            Change(".experts.down_proj", (".experts.down_proj.weight",), packed.turned),
            Change(".experts.down_proj_bias", (".experts.down_proj.bias",), packed.whole),
        ),
        limits=_gpt_oss,
    ),
    "DeepseekV3ForCausalLM": MlxFamily(
        "deepseek_v3",
        {**SILU, **DEEPSEEK_V3},
        frozenset({"default", "yarn"}),
        tied=False,
        changes=cuts.experts(".mlp.experts", SWITCH),
        limits=_deepseek,
    ),
}
"""Class of transformers to its family."""
