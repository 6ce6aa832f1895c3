"""The models of the zoo: families, each with its names and a way to build one with random weights.

The families of `ecosystems` need an environment of their own, see ``ecosystems/requirements.txt``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import attrs
import ecosystems
import model_types
import torch
import zoo_awkward
import zoo_timm
import zoo_transformers
from torch import nn


@attrs.frozen
class Example:
    """A model with an input.

    Attributes:
        model: The model, with random weights.
        inputs: A tensor, a tuple of positional inputs, or a dict of keyword inputs.
        train: What a training step calls instead of ``model(inputs)``; returns losses.
        free_outputs: Whether the number of outputs follows their values (boxes above a threshold).
        refused: Part of the reason with which the model is rightly refused, empty if it should be pruned.
    """

    model: nn.Module
    inputs: Any
    train: Callable[[nn.Module], Any] | None = None
    free_outputs: bool = False
    refused: str = ""


@attrs.frozen
class Family:
    """Models of one library.

    Attributes:
        names: Lists them.
        build: Builds one by its name.
    """

    names: Callable[[], list[str]]
    build: Callable[[str], Example]


# -- torchvision

DETECTION = ("rcnn", "retinanet", "fcos", "ssd")
PROPOSALS, DETECTIONS = 40, 20
"""Regions that a detector of two stages looks at, and objects that it finds."""
SIZES: Mapping[str, int] = {
    "inception_v3": 299,  # the auxiliary head needs this much to run in train mode
    "googlenet": 96,
    "vit_": 224,
    "maxvit_t": 224,
}
SEGMENTATION = ("deeplabv3", "fcn", "lraspp")
VIDEO: Mapping[str, tuple[int, int]] = {  # prefix to frames and picture size
    "mc3": (4, 64),
    "r2plus1d": (4, 64),
    "r3d": (4, 64),
    "s3d": (16, 224),
    "mvit": (16, 224),
    "swin3d": (4, 64),
}


def torchvision_names() -> list[str]:
    models: list[str] = importlib.import_module("torchvision.models").list_models()
    return models


def torchvision_build(name: str) -> Example:
    models = importlib.import_module("torchvision.models")
    options: dict[str, Any] = {"weights": None}
    if name.startswith((*SEGMENTATION, "fasterrcnn", "maskrcnn", "keypointrcnn", "retinanet", "fcos", "ssd")):
        options["weights_backbone"] = None
    if name.startswith("quantized_"):
        options["quantize"] = False  # ready to be quantized, in float: packed weights have no gradients and no slices
    plain = name.removeprefix("quantized_")
    if plain in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    if name == "vit_h_14":
        options["image_size"] = 224
    model = models.get_model(name, **options)
    if any(part in name for part in DETECTION):
        return _detection(name, model)
    if name.startswith("raft"):
        raft = importlib.import_module("torchvision.models.optical_flow.raft")
        grid = raft.make_coords_grid
        if not hasattr(grid, "usual"):  # so that it runs in float64 as well
            raft.make_coords_grid = lambda *args, **named: grid(*args, **named).to(torch.get_default_dtype())
            raft.make_coords_grid.usual = grid
        return Example(model, (torch.rand(1, 3, 128, 128), torch.rand(1, 3, 128, 128)))
    for prefix, (frames, size) in VIDEO.items():
        if name.startswith(prefix):
            return Example(model, torch.randn(2 if size < 100 else 1, 3, frames, size, size))
    size = next((size for prefix, size in SIZES.items() if plain.startswith(prefix)), 64)
    return Example(model, torch.randn(2, 3, size, size))


def _detection(name: str, model: nn.Module) -> Example:
    """Detectors take a list of pictures; in training, also what is to be found in them."""
    size = 320 if name.startswith("ssd") else 128
    picture = torch.rand(3, size, size)
    for part in model.modules():  # the picture is scaled to this, and larger ones only cost time
        if type(part).__name__ == "GeneralizedRCNNTransform" and not name.startswith("ssd"):
            part.min_size, part.max_size = (size,), size
        if hasattr(part, "score_thresh"):  # random weights are sure of nothing, and outputs without a box show nothing
            part.score_thresh = 0.0
        if hasattr(part, "detections_per_img"):
            part.detections_per_img = DETECTIONS
        if name.startswith("ssdlite") and isinstance(part, nn.Conv2d):  # starts with weights that hardly move a box
            nn.init.kaiming_normal_(part.weight)
        if type(part).__name__ == "RegionProposalNetwork":
            part._pre_nms_top_n = part._post_nms_top_n = {"training": PROPOSALS, "testing": PROPOSALS}
    target: dict[str, torch.Tensor] = {
        "boxes": torch.tensor([[10.0, 20.0, 90.0, 100.0]]),
        "labels": torch.tensor([1]),
        "masks": torch.ones(1, size, size, dtype=torch.uint8),
        "keypoints": torch.tensor([[[30.0, 40.0, 1.0]] * 17]),
    }
    return Example(model, ([picture],), lambda m: m([picture, picture], [target, target]), free_outputs=True)


def awake(example: Example) -> Example:
    """Gives values to the parameters that start as constants: behind a zero, no fault can be seen."""
    model = example.model
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        running = name.endswith(("running_mean", "running_var"))
        several = tensor.numel() > 1 or (tensor.numel() == 1 and not tensor.any())  # a gain that starts at zero
        if tensor.is_floating_point() and several and (running or isinstance(tensor, nn.Parameter)):
            with torch.no_grad():
                if tensor.min() == tensor.max():  # a mean that is large beside small activations would silence them
                    tensor.add_(0.01 * torch.randn_like(tensor) if "mean" in name else 0.1 * torch.rand_like(tensor))
    return example


def _awake(model: nn.Module, inputs: Any, options: Mapping[str, Any] = MappingProxyType({})) -> Example:
    return awake(Example(model, inputs, **options))


USUAL: Mapping[str, Family] = {
    "torchvision": Family(torchvision_names, torchvision_build),
    "timm": Family(zoo_timm.names, lambda name: Example(*zoo_timm.build(name))),
    "transformers": Family(zoo_transformers.names, lambda name: Example(*zoo_transformers.build(name))),
    **{
        family: Family(lambda m=models: list(m), lambda name, m=models: Example(*m[name]()))  # type: ignore[misc]
        for family, models in zoo_awkward.MODELS.items()
    },
}
"""What ``--family all`` stands for."""

MODEL_TYPES = Family(model_types.names, lambda name: _awake(*model_types.build(name)))
ECOSYSTEMS: Mapping[str, Family] = {
    package: Family(lambda m=models: list(m), lambda name, m=models: _awake(*m[name]()))  # type: ignore[misc]
    for package, models in ecosystems.MODELS.items()
}
FAMILIES: Mapping[str, Family] = {**USUAL, "model_types": MODEL_TYPES, **ECOSYSTEMS}
