"""What llama.cpp's architectures ask for, as data: a family of models differs from another here, and nowhere else."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping

import attrs

from prunekit_plugins.export.decoder import FAMILIES, Decoder, DecoderFamily
from prunekit_plugins.export.fixed import DEEPSEEK_V3, GEMMA3, GPT_OSS, Fixed
from prunekit_plugins.export.gguf.splits import EXPERTS, LATENT, PACKED, TURNED, Split
from prunekit_plugins.export.refusal import KEPT, not_exported

_ALL = {
    **FAMILIES,
    "MistralForCausalLM": DecoderFamily("mistral"),
    "Phi3ForCausalLM": DecoderFamily("phi3", long=True),
    "SmolLM3ForCausalLM": DecoderFamily("smollm3"),
    "Gemma3ForCausalLM": DecoderFamily("gemma3", activation="gelu_pytorch_tanh", windows=True, scaled=True),
    "Qwen3MoeForCausalLM": DecoderFamily("qwen3_moe"),
    "MixtralForCausalLM": DecoderFamily("mixtral"),
    "GptOssForCausalLM": DecoderFamily("gpt_oss", windows=True),
    "DeepseekV2ForCausalLM": DecoderFamily("deepseek_v2", scaled=True),
    "DeepseekV3ForCausalLM": DecoderFamily("deepseek_v3", scaled=True),
}
KNOWN: Mapping[str, DecoderFamily] = {name: attrs.evolve(family, yarn=True) for name, family in _ALL.items()}
"""Class of a model to its family: those that llama.cpp runs."""

refused = functools.partial(not_exported, "GGUF")
"""Makes the error; see `not_exported`."""


@attrs.frozen
class Form:
    """An architecture of llama.cpp.

    Attributes:
        architecture: llama.cpp's name.
        by_layer: Whether each layer has sizes of its own.
        paired: Whether rows of queries and keys are in pairs that rotate together.
        joined: Whether queries, keys and values are one matrix, where the model has three.
        slowed: Whether frequencies of rotary positions may be divided by constants of their own.
        square: Whether queries have to be as wide as the layers. Where they aren't, ``llama`` is another form of the
            same model.
        unrotated: Queries and keys of every so many layers, of the last one of them, aren't rotated; 0 for none.
        shifted: Whether the model's norms multiply by one more than their weights, and llama.cpp's by the weights.
        embedding: Whether rows of the embedding are multiplied by the root of their width.
        windows: Layers may have windows, all of one length, but for every so many, of which the last one has none: how
            many where the file doesn't say; 0 for no windows.
        local: Whether layers with windows have rotary positions of their own, of a base and nothing else.
        wide: Numbers of layers at which scores are divided by the root of ``hidden / heads``, not of ``head_dim``.
        latent: Whether attention is by a latent state.
        direct: Numbers of layers at which llama.cpp takes queries to come of the hidden state itself, not of a state.
        gating: How a router makes weights of scores, if a file says so: ``"SOFTMAX"``. The first layers may have no
            experts then, and those that have some may have shared ones.
        fixed: What it computes with, whatever a configuration says.
        splits: Name of a parameter in a layer to what comes of it.
    """

    architecture: str
    by_layer: bool = False
    paired: bool = False
    joined: bool = False
    slowed: bool = False
    square: bool = False
    unrotated: int = 0
    shifted: bool = False
    embedding: bool = False
    windows: int = 0
    local: bool = False
    wide: tuple[int, ...] = ()
    latent: bool = False
    direct: tuple[int, ...] = ()
    gating: str = ""
    fixed: Fixed = attrs.field(factory=dict)
    splits: Mapping[str, Split] = attrs.field(factory=dict)


LITE = (26, 27)
"""Numbers of layers by which llama.cpp knows DeepSeek-V2-Lite and its kin."""
LLAMA = Form("llama", paired=True, slowed=True, splits={**PACKED, **EXPERTS})
DECI = Form("deci", by_layer=True, paired=True, slowed=True)
OPENELM = Form("openelm", by_layer=True, joined=True)
FORMS: Mapping[str, Form] = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": Form("qwen2", square=True),
    "qwen3": Form("qwen3"),
    "phi3": Form("phi3", square=True),
    "smollm3": Form("smollm3", paired=True, unrotated=4),
    "qwen3_moe": Form("qwen3moe", splits=EXPERTS, fixed={"norm_topk_prob": (True,)}),
    "mixtral": LLAMA,
    "gpt_oss": Form("gpt-oss", windows=2, splits=TURNED, fixed=GPT_OSS),
    "deepseek_v2": Form(
        "deepseek2",
        latent=True,
        direct=LITE,
        gating="SOFTMAX",
        splits=LATENT,
        fixed={"topk_method": ("greedy",), "attention_bias": (False,)},
    ),
    "deepseek_v3": Form(
        "deepseek2",
        latent=True,
        direct=LITE,
        gating="SIGMOID",
        splits=LATENT,
        fixed={**DEEPSEEK_V3, "attention_bias": (False,)},
    ),
    "gemma3": Form(
        "gemma3",
        shifted=True,
        embedding=True,
        windows=6,
        local=True,
        wide=(62,),
        fixed=GEMMA3,
    ),
}
"""Family to the architecture for layers of the same sizes."""


def form_of(decoder: Decoder) -> Form:
    """Returns llama.cpp's architecture for a decoder.

    ``deci`` takes a Llama whose layers differ, ``openelm`` a Qwen3 whose head is the embedding, if all layers have
    attention. ``qwen2`` and ``phi3`` take queries only that are as wide as the layers; ``llama`` takes biases, too.

    Raises:
        ExportError: There is none.
    """
    form = FORMS[decoder.family]
    form = form if _uniform(decoder, form) else _differing(decoder)
    form = LLAMA if form.square and decoder.blocks[0].heads * decoder.head_dim != decoder.hidden else form
    if form is LLAMA and decoder.rotary.dims != decoder.head_dim:
        raise refused(
            f"{decoder.rotary.dims} dims of each head of {decoder.head_dim} are rotated, which llama.cpp takes of "
            "layers only that are as wide as their queries",
            KEPT,
        )
    if form is LLAMA and decoder.rotary.long is not None:
        raise refused(
            "its rotary positions are LongRoPE's, which llama.cpp takes of layers only that are as wide as their "
            "queries",
            KEPT,
        )
    return form


def _uniform(decoder: Decoder, form: Form) -> bool:
    """Whether layers have one size, or one without experts and one with them where the first ones may have none."""
    if not form.gating:
        return decoder.uniform
    blocks, attention = decoder.blocks, {attrs.evolve(b, neurons=1, experts=0, shared=0) for b in decoder.blocks}
    first = sum(1 for _ in itertools.takewhile(lambda block: not block.experts, blocks))
    parts = [set(blocks[:first]), set(blocks[first:])]
    complete = all(block.heads and block.neurons for block in blocks)
    return complete and len(attention) == 1 and len(parts[0]) <= 1 and len(parts[1]) == 1


def _differing(decoder: Decoder) -> Form:
    biases = any(name.endswith(".bias") for name in decoder.tensors)
    experts = any(block.experts for block in decoder.blocks)
    if FORMS[decoder.family] is LLAMA and not biases and not experts:
        return DECI
    attends = all(block.heads for block in decoder.blocks)
    if decoder.family == "qwen3" and decoder.tied and attends and decoder.rotary.slowing is None and not biases:
        return OPENELM
    raise refused(
        f"{decoder.differing()}; llama.cpp takes layers that differ of Llama without biases, and of Qwen3 with "
        "attention in all of them whose head is the embedding",
        'prune(..., serve="gguf") gives all layers the same sizes',
    )
