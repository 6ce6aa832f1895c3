"""What the general way of building a model type doesn't know: fields, classes, inputs, and types left out, with reasons."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

SERIES = {"prediction_length": 4, "context_length": 16, "lags_sequence": [1, 2, 3], "num_time_features": 2}

CHANGES: Mapping[str, Mapping[str, Any]] = {
    "autoformer": SERIES,
    "informer": SERIES,
    "time_series_transformer": SERIES,
    "esmc": {"num_key_value_heads": 4},
    "esm": {"vocab_size": 33, "pad_token_id": 1},
    "glm5_next": {"text_config.num_key_value_heads": 4},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "xlnet": {"d_head": 16},
    "mamba2": {"num_heads": 8},
    "efficientnet": {"hidden_dim": 2560},
    "align": {"vision_config.hidden_dim": 2560},
    "nemotron": {"num_key_value_heads": 2},
    "dbrx": {},
    "wav2vec2-bert": {"vocab_size": 96},
    "wav2vec2-conformer": {"vocab_size": 96},
    "xmod": {"default_language": "en_XX"},
    "granite_speech5_ctc": {"encoder_config.max_position_embeddings": 256},
    "timm_backbone": {"backbone": "resnet18"},
    "deepseek_v2": {"num_experts_per_tok": 2},
}
"""Fields of a configuration by path, where the general sizes don't fit together."""

CLASSES: Mapping[str, str] = {}
"""Classes other than the first with a head."""

OWN_INPUTS: Mapping[str, Callable[[Any], dict[str, Any]]] = {}

LEFT_OUT: Mapping[str, str] = {}
"""Types that can't be built here, and why."""
