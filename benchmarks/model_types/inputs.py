"""Inputs for any model of transformers, by its configuration and by what its forward takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from model_types.shrink import VOCABULARY

LENGTH = 12


def text_of(config: Any) -> Any:
    return config.get_text_config()


def picture_of(config: Any) -> Any:
    for name in ("vision_config", "image_config", "backbone_config", "encoder", "vision_model_config"):
        part = getattr(config, name, None)
        if part is not None and hasattr(part, "to_dict"):
            return part
    return config


def side(config: Any, usual: int = 32) -> tuple[int, int]:
    size = getattr(picture_of(config), "image_size", None) or getattr(config, "image_size", None) or usual
    if isinstance(size, Mapping):
        size = (size["height"], size["width"])
    return (size, size) if isinstance(size, int) else tuple(size)[:2]  # type: ignore[return-value]


def channels(config: Any) -> int:
    part = picture_of(config)
    for name in ("num_channels", "in_channels", "in_chans", "image_channels"):
        found = getattr(part, name, None)
        if isinstance(found, int):
            return found
    return 3


def words(config: Any) -> torch.Tensor:
    size = getattr(text_of(config), "vocab_size", None) or VOCABULARY
    return torch.randint(8, min(size, VOCABULARY) - 12, (2, LENGTH))


def picture(config: Any) -> torch.Tensor:
    return torch.randn(2, channels(config), *side(config))


def frames(config: Any) -> torch.Tensor:
    part = picture_of(config)
    count = getattr(part, "num_frames", None) or getattr(part, "frames_per_clip", None) or 4
    return torch.randn(1, count, channels(config), *side(config))


def bins(config: Any) -> int:
    for part in (config, *(getattr(config, name, None) for name in ("audio_config", "encoder_config", "encoder"))):
        for name in ("num_mel_bins", "input_feat_per_channel", "feature_size", "input_channels", "input_dim", "n_mels"):
            found = getattr(part, name, None)
            if isinstance(found, int) and found > 1:
                return found
    return 16


def spectrum(config: Any) -> torch.Tensor:
    """Mel bands over time; Whisper's kin have the bands first, the others the time."""
    encoder = next((getattr(config, n) for n in ("audio_config", "encoder_config") if hasattr(config, n)), config)
    places = getattr(encoder, "max_source_positions", None)
    if places and hasattr(encoder, "num_mel_bins"):
        return torch.randn(2, bins(config), 2 * places)
    return torch.randn(2, 64, bins(config))


def wave(config: Any) -> torch.Tensor:
    return torch.randn(2, 2000)


def boxes(config: Any) -> torch.Tensor:
    corners = torch.randint(0, 20, (2, LENGTH, 2))
    return torch.cat([corners, corners + torch.randint(1, 20, (2, LENGTH, 2))], dim=-1)


MAKERS: Mapping[str, Callable[[Any], Any]] = {
    "input_ids": words,
    "decoder_input_ids": lambda config: words(config)[:, :7],
    "pixel_values": picture,
    "pixel_values_videos": frames,
    "input_features": spectrum,
    "input_values": wave,
    "bbox": boxes,
    "attention_mask": lambda config: torch.ones(2, LENGTH, dtype=torch.long),
    "token_type_ids": lambda config: torch.zeros(2, LENGTH, dtype=torch.long),
    "inputs_embeds": lambda config: torch.randn(2, LENGTH, text_of(config).hidden_size),
    "hidden_states": lambda config: torch.randn(2, LENGTH, text_of(config).hidden_size),
    "past_values": lambda config: torch.rand(
        2,
        config.context_length + max([0, *getattr(config, "lags_sequence", [])]),
        max(1, getattr(config, "num_input_channels", 1)),
    ),
}


def wanted(model: Any, config: Any) -> list[str]:
    """Names of the inputs that a model can't do without, and of a picture beside words."""
    takes = inspect.signature(model.forward).parameters
    main = model.main_input_name
    names = [main] if main in takes else []
    free = [inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD]
    names += [n for n, p in takes.items() if p.default is p.empty and p.kind not in free]
    if "pixel_values" in takes and main == "input_ids":
        names.append("pixel_values")
    if main == "pixel_values" and "input_ids" in takes:
        names.append("input_ids")
    if config.is_encoder_decoder and "decoder_input_ids" in takes:
        names.append("decoder_input_ids")
    if "input_features" in takes and main == "input_ids":
        names.append("input_features")
    return list(dict.fromkeys(names))


MARKS = (
    "image_token_id",
    "image_token_index",
    "audio_token_id",
    "audio_token_index",
    "video_token_id",
    "speech_token_id",
)
"""Where a configuration keeps the number of the token that stands for a feature of a picture or a sound."""

MASKS = ("input_features_mask", "feature_attention_mask", "pixel_attention_mask", "audio_attention_mask")


def beside(given: dict[str, Any], words: torch.Tensor, mark: int) -> dict[str, Any]:
    """What goes along with words whose number has changed."""
    found = {}
    if "attention_mask" in given:
        found["attention_mask"] = torch.ones_like(words)
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in given:
            found[name] = (words == mark).long()
    return found


def grid(config: Any, *, tall: int = 4) -> dict[str, torch.Tensor]:
    """A picture in patches, with how many there are along each dim."""
    part = picture_of(config)
    patch = getattr(part, "patch_size", 8)
    patch = patch if isinstance(patch, int) else patch[0]
    temporal = getattr(part, "temporal_patch_size", None) or 1
    temporal = temporal if isinstance(temporal, int) else temporal[0]
    return {
        "pixel_values": torch.randn(2 * tall * tall, channels(config) * temporal * patch * patch),
        "image_grid_thw": torch.tensor([[1, tall, tall]] * 2),
    }


def variants(model: Any, config: Any) -> list[dict[str, Any]]:
    """Every input that is wanted, in the shapes that models take them in, the usual one first."""
    takes = inspect.signature(model.forward).parameters
    names = wanted(model, config)
    usual = {name: MAKERS[name](config) for name in names if name in MAKERS}
    missing = [name for name in names if name not in MAKERS and name not in MASKS]
    if missing:
        raise KeyError(f"nothing is known about the inputs {missing}")
    found = [usual]
    if "pixel_values" in usual:
        one = usual["pixel_values"]
        found.append({**usual, "pixel_values": one[:, None]})
        found.append(
            {
                **usual,
                "pixel_values": frames(config),
                **({"input_ids": usual["input_ids"][:1]} if "input_ids" in usual else {}),
            }
        )
        found.append({**usual, "pixel_values": one.repeat_interleave(1, 0)[:, None].repeat(1, 2, 1, 1, 1)})
        if "image_sizes" in takes:
            sizes = torch.tensor([list(side(config))] * 2)
            found = [{**given, "image_sizes": sizes} for given in found] + found
            found.append({**usual, "pixel_values": one[:, None].repeat(1, 3, 1, 1, 1), "image_sizes": sizes})
        for key in ("image_grid_thw", "grid_thw", "image_grid_hw"):
            if key in takes:
                patches = grid(config)
                shape = patches.pop("image_grid_thw")
                given = {**usual, **patches, key: shape if key != "image_grid_hw" else shape[:, 1:]}
                size = int((patches["pixel_values"].shape[1] // channels(config)) ** 0.5)
                if size * size * channels(config) == patches["pixel_values"].shape[1]:  # some take them as pictures
                    squares = patches["pixel_values"].view(-1, channels(config), size, size)
                    found = [{**given, "pixel_values": squares}, {**given, "pixel_values": squares[None]}, *found]
                found.insert(0, given)
    if "input_values" in usual:
        one = usual["input_values"]
        found += [{**usual, "input_values": value} for value in (one[:, None], torch.randn(2, 64, bins(config)))]
    if "input_features" in usual:
        one = usual["input_features"]
        for value in (one.transpose(1, 2), one[:, None], one.transpose(1, 2)[:, None]):
            found.append({**usual, "input_features": value})
    masked = []
    for given in found:
        masks = {}
        sound = given.get("input_features")
        for name in MASKS:
            if name in takes and name != "pixel_attention_mask" and sound is not None:
                for length in {sound.shape[-1], sound.shape[-2]}:
                    masked.append({**given, name: torch.ones(2, length, dtype=torch.long)})
        if "mm_token_type_ids" in takes and "input_ids" in given:
            masks["mm_token_type_ids"] = torch.zeros_like(given["input_ids"])
        if masks:
            masked.append({**given, **masks})
    return [*masked, *found] if "mm_token_type_ids" in takes else [*found, *masked]
