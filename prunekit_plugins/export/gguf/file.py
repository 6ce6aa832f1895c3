"""What a GGUF file of a decoder holds: the name of an architecture, numbers, and tensors by llama.cpp's names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from prunekit_plugins.export.comparison import library
from prunekit_plugins.export.decoder import Decoder
from prunekit_plugins.export.gguf.families import form_of
from prunekit_plugins.export.gguf.limits import check_limits
from prunekit_plugins.export.gguf.numbers import add_numbers
from prunekit_plugins.export.gguf.tensors import tensors_of
from prunekit_plugins.export.gguf.tokenizer import Vocabulary


def write_file(decoder: Decoder, vocabulary: Vocabulary, path: Path, name: str) -> None:
    """Writes a decoder and its tokenizer.

    Args:
        decoder: What `decoder_of` read.
        vocabulary: What `read_vocabulary` read.
        path: The file.
        name: Name of the model, in the file.

    Raises:
        ExportError: llama.cpp has no architecture for it, computes something else in it, or a tensor no place there.
    """
    form = form_of(decoder)
    check_limits(decoder, form)
    tensors = list(tensors_of(decoder, form))
    gguf: Any = library("gguf", "gguf")
    writer = gguf.GGUFWriter(str(path), form.architecture)
    writer.add_name(name)
    add_numbers(writer, decoder, form)
    _add_vocabulary(writer, vocabulary)
    for key, tensor in tensors:
        _add_tensor(gguf, writer, key, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


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
