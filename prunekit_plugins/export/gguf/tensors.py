"""The tensors of a GGUF file: those of a decoder by llama.cpp's names, in the form in which it keeps them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from prunekit_plugins.export.comparison import library
from prunekit_plugins.export.decoder import Decoder
from prunekit_plugins.export.gguf.families import Form, refused
from prunekit_plugins.export.gguf.positions import slowing_tensors

SUFFIXES = (".weight", ".bias")
IDLE = 32
"""Neurons that take the place of a feed-forward that is gone: all zero."""
PAIRS = ("self_attn.q_proj", "self_attn.k_proj")
"""Modules whose rows are in pairs, where they are."""
QUERIES, JOINED = "self_attn.q_proj.weight", "self_attn.qkv_proj.weight"
APART = (QUERIES, "self_attn.k_proj.weight", "self_attn.v_proj.weight")
"""Parameters that are one, `JOINED`, where they are."""


def tensors_of(decoder: Decoder, form: Form) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the tensors of a file by name.

    Args:
        decoder: The decoder.
        form: llama.cpp's architecture for it.

    Raises:
        ExportError: A tensor of the model has no place in the file.
        ArgumentError: The library that knows llama.cpp's names is missing.
    """
    names = _Names(form.architecture, len(decoder.blocks))
    yield from slowing_tensors(decoder.rotary)
    for key, tensor in _parameters(decoder, form):
        yield names.of(key), _in_form(tensor, key, decoder, form)
    for place, block in enumerate(decoder.blocks):
        if block.heads and not block.neurons:
            yield from _idle(decoder, place)


def _parameters(decoder: Decoder, form: Form) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the parameters by transformers' names, those that are packed cut where llama.cpp has them apart."""
    for key, tensor in decoder.tensors.items():
        prefix, place, name = _located(key)
        if name in form.splits:
            split = form.splits[name]
            parts = split.cut(tensor, decoder, decoder.blocks[place])
            yield from zip((f"{prefix}{part}" for part in split.names), parts, strict=True)
        elif form.joined and name == QUERIES:
            yield f"{prefix}{JOINED}", torch.cat([decoder.tensors[f"{prefix}{part}"] for part in APART])
        elif not ((form.joined and name in APART) or (key == "lm_head.weight" and decoder.tied)):
            yield key, tensor


def _located(key: str) -> tuple[str, int, str]:
    """Returns the prefix of a layer, its place and the rest of a parameter's name; of others the name alone."""
    start, layers, rest = key.partition("model.layers.")
    place, _, name = rest.partition(".")
    return (f"{layers}{place}.", int(place), name) if layers and not start else ("", 0, key)


class _Names:
    """llama.cpp's names of the tensors of an architecture, out of gguf's own table."""

    def __init__(self, architecture: str, layers: int) -> None:
        gguf: Any = library("gguf", "gguf")
        kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
        self.architecture = architecture
        self.table = gguf.get_tensor_name_map(kinds[architecture], layers)

    def of(self, key: str) -> str:
        """Returns the name for a parameter of transformers.

        Raises:
            ExportError: The architecture has no such tensor.
        """
        found: str | None = self.table.get_name(key, try_suffixes=SUFFIXES)
        if found is None:
            raise refused(f"{key} has no place in llama.cpp's {self.architecture}")
        return found if found.endswith(SUFFIXES) else f"{found}.weight"


def _in_form(tensor: torch.Tensor, key: str, decoder: Decoder, form: Form) -> torch.Tensor:
    """Turns a parameter into what llama.cpp computes the same with."""
    module = key.rpartition(".")[0]
    if form.paired and module.endswith(PAIRS):
        return in_pairs(tensor, decoder.head_dim, decoder.rotary.dims)
    if form.shifted and module.endswith("norm"):
        shifted = tensor.float() + 1
        return shifted * _scale(decoder, form) if module.endswith("q_norm") else shifted
    return tensor


def _scale(decoder: Decoder, form: Form) -> float:
    """Returns what the model multiplies scores by, beside what llama.cpp does: of norms that queries have."""
    block = decoder.blocks[0]
    wide = len(decoder.blocks) in form.wide
    return block.scale * (decoder.hidden // block.heads / decoder.head_dim) ** 0.5 if wide else block.scale


def in_pairs(tensor: torch.Tensor, head_dim: int, dims: int) -> torch.Tensor:
    """Orders the rows of each head so that those that rotate together, ``i`` and ``i + dims / 2``, are neighbours.

    Args:
        tensor: Weight ``[heads * head_dim, hidden]`` or bias ``[heads * head_dim]``.
        head_dim: Rows of a head.
        dims: How many of them rotate, the first ones.
    """
    order = torch.arange(head_dim, device=tensor.device)
    order[:dims] = order[:dims].view(2, -1).T.flatten()
    heads: torch.Tensor = tensor.unflatten(0, (-1, head_dim))[:, order]
    return heads.reshape(tensor.shape)


def _idle(decoder: Decoder, place: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields a feed-forward of neurons that add nothing."""
    like = next(iter(decoder.tensors.values()))
    yield f"blk.{place}.ffn_norm.weight", like.new_ones(decoder.hidden)
    for name in ("ffn_gate", "ffn_up"):
        yield f"blk.{place}.{name}.weight", like.new_zeros(IDLE, decoder.hidden)
    yield f"blk.{place}.ffn_down.weight", like.new_zeros(decoder.hidden, IDLE)
