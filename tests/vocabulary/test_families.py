"""Architectures of transformers that do more with ids than to look them up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import prunekit as pk

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

IDS = 80
KEEP = [0, 1, 2, *range(3, 80, 3), 70]
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {**SMALL, "num_key_value_heads": 2, "max_position_embeddings": 64, "vocab_size": IDS}
PICTURE = {**SMALL, "num_hidden_layers": 1, "image_size": 16}
STACKS = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
STACKS |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": IDS}
ROWS = torch.tensor([[0, 3, 6, 9, 12, 15], [0, 48, 45, 3, 6, 70]])
BOTH = {"input_ids": ROWS, "decoder_input_ids": ROWS[:, :4]}
PIXELS = torch.randn(1, 3, 16, 16)
Case = tuple[str, Callable[[Any], Any], dict[str, torch.Tensor]]


def of(**fields: Any) -> Callable[[Any], Any]:
    return lambda kind: kind.config_class(**fields)


def llava(kind: Any) -> Any:
    vision, text = transformers.CLIPVisionConfig(**PICTURE, patch_size=8), transformers.LlamaConfig(**TEXT)
    return kind.config_class(vision_config=vision, text_config=text, image_token_index=75, image_token_id=75)


CASES: Mapping[str, Case] = {
    "pictures in place of ids": (
        "LlavaForConditionalGeneration",
        llava,
        {"input_ids": torch.tensor([[3, 6, 75, 75, 75, 75, 9, 12]]), "pixel_values": PIXELS},
    ),
    "pictures attended to by their ids": (
        "Gemma3ForConditionalGeneration",
        of(
            text_config={**TEXT, "head_dim": 8},
            vision_config={**PICTURE, "patch_size": 4},
            mm_tokens_per_image=4,
            image_token_index=75,
            boi_token_index=73,
            eoi_token_index=74,
        ),
        {
            "input_ids": torch.tensor([[3, 73, 75, 75, 75, 75, 74, 12]]),
            "pixel_values": PIXELS,
            "token_type_ids": torch.tensor([[0, 0, 1, 1, 1, 1, 0, 0]]),
        },
    ),
    "texts beside pictures": (
        "CLIPModel",
        of(
            text_config={**SMALL, "vocab_size": IDS, "eos_token_id": 79, "bos_token_id": 78, "pad_token_id": 1},
            vision_config={**PICTURE, "patch_size": 8},
            projection_dim=16,
        ),
        {"input_ids": torch.tensor([[78, 3, 6, 9, 79, 79]]), "pixel_values": PIXELS},
    ),
    "ids in the decoder only": (
        "WhisperForConditionalGeneration",
        of(
            **STACKS,
            num_mel_bins=8,
            max_source_positions=20,
            max_target_positions=30,
            pad_token_id=1,
            bos_token_id=2,
            eos_token_id=3,
            decoder_start_token_id=70,
            suppress_tokens=[4, 6],
            begin_suppress_tokens=None,
        ),
        {"input_features": torch.randn(1, 8, 40), "decoder_input_ids": torch.tensor([[70, 3, 6, 9]])},
    ),
    "padding at the end of the ids": (
        "MarianMTModel",
        of(**STACKS, pad_token_id=79, decoder_start_token_id=79, eos_token_id=0, forced_eos_token_id=0),
        BOTH,
    ),
    "positions that padding shifts": ("M2M100ForConditionalGeneration", of(**STACKS), BOTH),
    "masked ids that are scaled": (
        "EsmForMaskedLM",
        of(**SMALL, vocab_size=IDS, mask_token_id=70, pad_token_id=1, token_dropout=True, max_position_embeddings=64),
        {"input_ids": ROWS},
    ),
    "a state space": (
        "MambaForCausalLM",
        of(vocab_size=IDS, hidden_size=32, num_hidden_layers=2, state_size=4),
        {"input_ids": ROWS},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_architectures_give_what_they_gave(case: str, tmp_path: Path) -> None:
    name, config, inputs = CASES[case]
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    model = kind(config(kind)).eval()
    with torch.no_grad():
        before = model(**inputs)
        result = pk.prune_vocabulary(model, KEEP, inputs)
        new = {
            key: result.ids.of(value) if key in ("input_ids", "decoder_input_ids") else value
            for key, value in inputs.items()
        }
        model.save_pretrained(str(tmp_path))
        stock = kind.from_pretrained(str(tmp_path)).eval()
        for other in (model, stock):
            after = other(**new)
            for key, value in before.items():
                if isinstance(value, torch.Tensor):
                    expected = value[..., list(result.ids.kept)] if key in result.outputs else value
                    assert torch.allclose(after[key], expected, atol=1e-5), key
    assert result.tables
    assert len(result) < 40
