"""Folders of small language models with a tokenizer that is trained here, whole and pruned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

import prunekit as pk
from tests.vocabulary.training import byte_level

IDS = {"input_ids": torch.tensor([[5, 9, 4, 33, 21, 8]])}
SIZES: dict[str, Any] = {
    "vocab_size": 910,  # eight rows more than the tokenizer has tokens
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.1,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 900,
}


def whole(place: Path, kind: str = "llama", **sizes: Any) -> Path:
    """Writes a model of random weights, of a type of configuration, with a tokenizer."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **{**SIZES, **sizes})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in (*model.named_parameters(), *model.named_buffers()):
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(str(place))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=byte_level(), eos_token="<|endoftext|>")
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(str(place))
    return place


def pruned(source: Path, place: Path, **options: Any) -> Path:
    """Prunes the model in a folder into another folder."""
    model = pk.load_folder(source)
    plan = pk.prune(model, IDS, **{"ratio": 0.4, "serve": "transformers", **options}).plan
    pk.save_folder(model, place, plan=plan, source=source)
    return place
