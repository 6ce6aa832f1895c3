"""Rotary positions in a GGUF file: the frequencies of a base, and three ways in which llama.cpp slows them down."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from prunekit_plugins.export.comparison import library
from prunekit_plugins.export.decoder import Decoder, Rotary, Yarn, rotary_of
from prunekit_plugins.export.gguf.families import Form, refused

WHERE = "model.rotary_emb"
FAST, SLOW = 32.0, 1.0
"""Turns between which YaRN's ramp lies: few architectures read others from a file."""


def local_positions(decoder: Decoder, form: Form) -> Rotary | None:
    """Returns the positions of layers with windows; None where these have none of their own."""
    return rotary_of(decoder.model, "GGUF", "sliding_attention") if form.local and any(decoder.windows) else None


def check_positions(decoder: Decoder, form: Form) -> None:
    """Makes sure that llama.cpp rotates as a model does.

    Args:
        decoder: The decoder.
        form: llama.cpp's architecture for it.

    Raises:
        ExportError: It rotates by other angles.
    """
    rotary, local = decoder.rotary, local_positions(decoder, form)
    if local is not None and (local.slowing is not None or rotary.yarn is not None):
        raise refused("positions of layers with windows are scaled, or YaRN's are those of the others", where=WHERE)
    if rotary.yarn is not None:
        _check_yarn(decoder, rotary.yarn, form)
    elif rotary.factor is None and not form.slowed:
        raise refused(
            f"its rotary positions are scaled, each by a factor of its own, in {form.architecture}", where=WHERE
        )


def _check_yarn(decoder: Decoder, yarn: Yarn, form: Form) -> None:
    rotary, whole = decoder.rotary, 0.1 * math.log(yarn.factor) + 1.0
    usual = 1.0 if form.latent else whole
    if not math.isclose(yarn.magnitude, usual, rel_tol=1e-5):
        why = f"queries and keys are multiplied by {yarn.magnitude:.4g}; llama.cpp multiplies them by {usual:.4g}"
        raise refused(why, where=WHERE)
    if form.latent and not yarn.of_scores:
        why = f"scores aren't multiplied by mscale_all_dim's factor; llama.cpp multiplies them by {whole**2:.4g}"
        raise refused(why, where=WHERE)
    expected, found = yarn_slowing(rotary.dims, rotary.base, yarn), rotary.slowing
    error = float((found / expected - 1).abs().max()) if found is not None else math.inf
    if error > 1e-4:
        raise refused(
            f"frequencies differ by up to {100 * error:.2g} % from those that llama.cpp computes, with YaRN's ramp "
            f"between beta_fast = {FAST:.0f} and beta_slow = {SLOW:.0f}, its ends rounded to whole dims",
            'with "truncate": true and these two numbers in rope_parameters of its config.json the model computes so',
            where=WHERE,
        )


def yarn_slowing(dims: int, base: float, yarn: Yarn) -> torch.Tensor:
    """Computes what YaRN divides frequencies by, as llama.cpp does (Peng et al. 2023, https://arxiv.org/abs/2309.00071).

    Args:
        dims: How many dims of a head are rotated.
        base: Base of the frequencies.
        yarn: Its settings.

    Returns:
        ``[dims / 2]``, double: 1 for dims that turn more than `FAST` times in ``yarn.context`` positions,
        ``yarn.factor`` for those that turn less than `SLOW` times, and the harmonic mean between them.
    """

    def dim_of(turns: float) -> float:
        return dims * math.log(yarn.context / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = max(0, math.floor(dim_of(FAST))), min(dims - 1, math.ceil(dim_of(SLOW)))
    places = torch.arange(dims // 2, dtype=torch.float64, device="cpu")
    slow = ((places - low) / max(0.001, high - low)).clamp(0, 1)
    return 1.0 / (slow / yarn.factor + (1 - slow))


def add_positions(writer: Any, decoder: Decoder, form: Form) -> None:
    """Adds bases and scales of rotary positions to a file that is written by gguf's ``GGUFWriter``."""
    kinds: Any = library("gguf", "gguf").RopeScalingType
    rotary, local = decoder.rotary, local_positions(decoder, form)
    if local is not None:
        writer.add_rope_freq_base_swa(local.base)
    writer.add_rope_dimension_count(rotary.dims)
    writer.add_rope_freq_base(rotary.base)
    if rotary.long is not None:
        writer.add_rope_scaling_type(kinds.LONGROPE)
        writer.add_rope_scaling_orig_ctx_len(rotary.long.context)
        writer.add_rope_scaling_attn_factors(rotary.long.magnitude)
    elif rotary.yarn is not None:
        writer.add_rope_scaling_type(kinds.YARN)
        writer.add_rope_scaling_factor(rotary.yarn.factor)
        writer.add_rope_scaling_orig_ctx_len(rotary.yarn.context)
        if form.latent and rotary.yarn.of_scores:
            writer.add_rope_scaling_yarn_log_mul(0.1 * rotary.yarn.of_scores)
    elif rotary.factor not in (None, 1.0):
        writer.add_rope_scaling_type(kinds.LINEAR)
        writer.add_rope_scaling_factor(rotary.factor)


def slowing_tensors(rotary: Rotary) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields what single frequencies are divided by, if that is no one number and no YaRN."""
    if rotary.long is not None:
        yield "rope_factors_short.weight", rotary.long.short
        yield "rope_factors_long.weight", rotary.long.long
    if rotary.slowing is not None and rotary.yarn is None and rotary.factor is None:
        yield "rope_freqs.weight", rotary.slowing
