"""What a GGUF file of a decoder holds: the name of an architecture, numbers, and tensors by llama.cpp's names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from prunekit_plugins.export.comparison import ExportError, library
from prunekit_plugins.export.decoder import Block, Decoder
from prunekit_plugins.export.gguf.tokenizer import Vocabulary

IDLE = 32
"""Neurons that take the place of a feed-forward that is gone: all zero."""
NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Module in a layer to llama.cpp's name."""
OUTSIDE = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
PAIRS = ("self_attn.q_proj", "self_attn.k_proj")
"""Modules whose rows llama.cpp wants in pairs that rotate together, for `PAIRED` architectures."""
PAIRED = ("llama", "deci")
DIFFERING = ("deci", "openelm")
"""Architectures with sizes of their own for each layer."""
PACKED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
"""Modules that are one in ``openelm``."""


def architecture_of(decoder: Decoder) -> str:
    """Returns llama.cpp's architecture for a decoder.

    ``deci`` takes a Llama whose layers differ, ``openelm`` a Qwen3 whose head is the embedding, if all layers have
    attention. ``qwen2`` takes queries only that are as wide as the layers; ``llama`` takes biases, too.

    Raises:
        ExportError: There is none.
    """
    biases = [name for name in decoder.tensors if name.endswith(".bias")]
    if decoder.uniform:
        if decoder.slowing is not None and decoder.family != "llama":
            raise _refused("its rotary positions are scaled", "--to onnx takes every model")
        square = decoder.blocks[0].heads * decoder.head_dim == decoder.hidden
        return "llama" if decoder.family == "qwen2" and not square else decoder.family
    if decoder.family == "llama" and not biases:
        return "deci"
    attends = all(block.heads for block in decoder.blocks)
    if decoder.family == "qwen3" and decoder.tied and attends and decoder.slowing is None and not biases:
        return "openelm"
    raise _refused(
        f"{decoder.differing()}; llama.cpp takes layers that differ of Llama without biases, and of Qwen3 with "
        "attention in all of them whose head is the embedding",
        'prune(..., serve="gguf") gives all layers the same sizes',
    )


def _refused(why: str, hint: str) -> ExportError:
    return ExportError("The model can't be exported to GGUF; nothing was written.", where="layers", why=why, hint=hint)


def write_file(decoder: Decoder, vocabulary: Vocabulary, path: Path, name: str) -> None:
    """Writes a decoder and its tokenizer.

    Args:
        decoder: What `decoder_of` read.
        vocabulary: What `read_vocabulary` read.
        path: The file.
        name: Name of the model, in the file.

    Raises:
        ExportError: llama.cpp has no architecture for it, or a tensor no place in it.
    """
    architecture = architecture_of(decoder)
    tensors = list(_tensors(decoder, architecture))
    gguf: Any = library("gguf", "gguf")
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_name(name)
    _add_sizes(writer, decoder, architecture)
    _add_vocabulary(writer, vocabulary)
    for key, tensor in tensors:
        _add_tensor(gguf, writer, key, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_sizes(writer: Any, decoder: Decoder, architecture: str) -> None:
    blocks = decoder.blocks
    heads, kv_heads, neurons = (
        [block.heads for block in blocks],
        [block.kv_heads for block in blocks],
        [_written_neurons(block) for block in blocks],
    )
    single = architecture not in DIFFERING
    writer.add_block_count(len(blocks))
    writer.add_context_length(decoder.context)
    writer.add_embedding_length(decoder.hidden)
    writer.add_head_count(heads[0] if single else heads)
    writer.add_head_count_kv(kv_heads[0] if single else kv_heads)
    writer.add_feed_forward_length(neurons[0] if single else neurons)
    writer.add_layer_norm_rms_eps(decoder.epsilon)
    writer.add_key_length(decoder.head_dim)
    writer.add_value_length(decoder.head_dim)
    writer.add_rope_dimension_count(decoder.head_dim)
    writer.add_rope_freq_base(decoder.base)
    writer.add_vocab_size(decoder.vocabulary)


def _written_neurons(block: Block) -> int:
    """Neurons in the file: a layer of ``deci`` without a feed-forward would lose its attention, too."""
    return block.neurons or (IDLE if block.heads else 0)


def _add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("llama" if vocabulary.scores else "gpt2")
    writer.add_tokenizer_pre(vocabulary.split or "default")
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types(list(vocabulary.types))
    if vocabulary.scores:
        writer.add_token_scores(list(vocabulary.scores))
        writer.add_add_space_prefix(True)
    else:
        writer.add_token_merges(list(vocabulary.merges))
    for name, number in vocabulary.special.items():
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(vocabulary.begins)
    writer.add_add_eos_token(vocabulary.ends)
    if vocabulary.template:
        writer.add_chat_template(vocabulary.template)


def _tensors(decoder: Decoder, architecture: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the tensors of a file; a tensor of the model that has no place in it is an error."""
    if decoder.slowing is not None:
        yield "rope_freqs.weight", decoder.slowing
    for key, tensor in decoder.tensors.items():
        if key in OUTSIDE:
            yield OUTSIDE[key], tensor
        elif key == "lm_head.weight":
            if not decoder.tied:
                yield "output.weight", tensor
        elif architecture != "openelm" or not key.removesuffix(".weight").endswith(PACKED):
            yield _in_layer(decoder, architecture, key, tensor)
    for place in range(len(decoder.blocks)) if architecture == "openelm" else ():
        parts = [decoder.tensors[f"model.layers.{place}.{module}.weight"] for module in PACKED]
        yield f"blk.{place}.attn_qkv.weight", torch.cat(parts)
    for place, block in enumerate(decoder.blocks):
        if block.heads and not block.neurons:
            yield from _idle(decoder, place)


def _in_layer(decoder: Decoder, architecture: str, key: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
    prefix, _, rest = key.removeprefix("model.layers.").partition(".")
    module, _, kind = rest.rpartition(".")
    if not prefix.isdigit() or module not in NAMES:
        raise _refused(f"{key} has no place in llama.cpp's {architecture}", "--to onnx takes every model")
    if module in PAIRS and architecture in PAIRED:
        tensor = in_pairs(tensor, decoder.head_dim)
    return f"blk.{prefix}.{NAMES[module]}.{kind}", tensor


def in_pairs(tensor: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Orders the rows of each head so that those that rotate together, ``i`` and ``i + head_dim / 2``, are neighbours.

    Args:
        tensor: Weight ``[heads * head_dim, hidden]`` or bias ``[heads * head_dim]``.
        head_dim: Rows of a head.
    """
    pairs: torch.Tensor = tensor.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2)
    return pairs.reshape(tensor.shape)


def _idle(decoder: Decoder, place: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields a feed-forward of neurons that add nothing."""
    like = next(iter(decoder.tensors.values()))
    yield f"blk.{place}.ffn_norm.weight", like.new_ones(decoder.hidden)
    for name in ("ffn_gate", "ffn_up"):
        yield f"blk.{place}.{name}.weight", like.new_zeros(IDLE, decoder.hidden)
    yield f"blk.{place}.ffn_down.weight", like.new_zeros(decoder.hidden, IDLE)


def _add_tensor(gguf: Any, writer: Any, key: str, tensor: torch.Tensor) -> None:
    """Adds a tensor in its own dtype; vectors in single precision, as llama.cpp wants them."""
    values = tensor.cpu().contiguous()
    if values.dim() == 1 or values.dtype is torch.float32:
        writer.add_tensor(key, values.float().numpy())
    elif values.dtype is torch.float16:
        writer.add_tensor(key, values.numpy())
    else:
        raw = values.view(torch.uint8).numpy()
        writer.add_tensor(key, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
