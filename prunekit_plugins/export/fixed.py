"""Numbers of families that engines have in their programs: other ones that a configuration may say aren't computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Fixed = Mapping[str, tuple[Any, ...]]
"""Field of a configuration to the values that it may have; the first is what engines compute with."""

SILU: Fixed = {"hidden_act": ("silu",)}
GPT_OSS: Fixed = {"swiglu_alpha": (1.702,), "swiglu_limit": (7.0,)}
"""What gates are multiplied by, and the bound on what the feed-forwards of GPT-OSS hold."""
GEMMA3: Fixed = {
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "use_bidirectional_attention": (False, None),
}
"""Gemma 2's caps on scores and logits, which Gemma 3 has no more."""
DEEPSEEK_V3: Fixed = {"rope_interleave": (True,)}
"""Rotary positions in pairs that lie next to each other."""
