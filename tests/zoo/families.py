"""Small members of many families, built by name, in this process or in another one.

``python -m tests.zoo.families FOLDER`` loads every checkpoint in a folder into a fresh model and writes its outputs.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

import prunekit as pk
from tests import models

Family = tuple[Callable[[], nn.Module], Callable[[], Any]]


class Recurrent(nn.Module):
    """Two recurrent layers in both directions, and a classifier of the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.LSTM(6, 8, 2, bidirectional=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.layers(x)[0][-1])
        return result


def _image(size: int = 64) -> Callable[[], Any]:
    return lambda: torch.randn(2, 3, size, size)


def _tokens(**more: int) -> Callable[[], Any]:
    return lambda: {"input_ids": torch.randint(1, 40, (2, 7)), "use_cache": False, **more}


def _torchvision(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import torchvision

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # GoogLeNet announces another default of init_weights
            return torchvision.models.get_model(name, weights=None, num_classes=10, **options)

    return make


def _vision_transformer() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(64, 16, 2, 4, 32, 64, num_classes=10)


def _swin() -> nn.Module:
    from torchvision.models import SwinTransformer

    return SwinTransformer([4, 4], 16, [1, 1], [2, 4], [4, 4], num_classes=10)


def _convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(16, 32, 2), CNBlockConfig(32, None, 2)], num_classes=10)


def _densenet() -> nn.Module:
    from torchvision.models import DenseNet

    return DenseNet(8, (2, 2, 2), 16, num_classes=10)


def _transformers(name: str, **sizes: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        kind = getattr(transformers, name)
        made: nn.Module = kind(kind.config_class(vocab_size=50, **sizes))
        return made

    return make


_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
FAMILIES: dict[str, Family] = {
    "residual": (models.Residual, lambda: torch.randn(2, 3, 8, 8)),
    "chain": (lambda: models.Chain(6, 10, 12, 3), lambda: torch.randn(2, 6)),
    "encoder": (models.Encoder, lambda: torch.randn(2, 6, 10)),
    "lstm": (Recurrent, lambda: torch.randn(5, 2, 6)),
    "attention": (lambda: nn.TransformerEncoderLayer(16, 4, 24, batch_first=True), lambda: torch.randn(2, 5, 16)),
    "resnet": (_torchvision("resnet18"), _image()),
    "densenet": (_densenet, _image()),
    "googlenet": (_torchvision("googlenet", aux_logits=False, init_weights=False), _image()),
    "squeezenet": (_torchvision("squeezenet1_1"), _image()),
    "mobilenet_v2": (_torchvision("mobilenet_v2", width_mult=0.35), _image()),
    "mobilenet_v3": (_torchvision("mobilenet_v3_small"), _image()),
    "mnasnet": (_torchvision("mnasnet0_5"), _image()),
    "shufflenet": (_torchvision("shufflenet_v2_x0_5"), _image()),
    "regnet": (_torchvision("regnet_y_400mf"), _image()),
    "vit": (_vision_transformer, _image()),
    "swin": (_swin, _image()),
    "convnext": (_convnext, _image()),
    "bert": (
        _transformers("BertModel", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48),
        lambda: {"input_ids": torch.randint(1, 40, (2, 7))},
    ),
    "gpt2": (_transformers("GPT2LMHeadModel", n_embd=32, n_layer=2, n_head=4, n_positions=32), _tokens()),
    "llama": (_transformers("LlamaForCausalLM", **_LLAMA), _tokens()),
    "llama tied": (_transformers("LlamaForCausalLM", tie_word_embeddings=True, **_LLAMA), _tokens()),
}
"""Family to a function that builds a model with random weights, and one that makes inputs for it."""


def build(name: str, seed: int) -> tuple[nn.Module, Any]:
    """Builds a model with the weights of a seed, and inputs, which are the same for all seeds."""
    make, inputs = FAMILIES[name]
    torch.manual_seed(seed)
    model = make().eval()
    for parameter in model.parameters():  # norms, biases and heads that start at one value would hide a wrong one
        if parameter.numel() > 1 and parameter.min() == parameter.max():
            nn.init.normal_(parameter, 0.5, 0.2)
    torch.manual_seed(0)
    return model, inputs()


def outputs_of(model: nn.Module, inputs: Any) -> dict[str, torch.Tensor]:
    """Runs a model and returns the tensors in its output, numbered."""
    with torch.no_grad():
        found = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    flat = torch.utils._pytree.tree_leaves(dict(found) if hasattr(found, "keys") else found)
    return {str(number): leaf.contiguous() for number, leaf in enumerate(flat) if isinstance(leaf, torch.Tensor)}


def main(folder: Path) -> None:
    """Loads every checkpoint in a folder into a model with other weights, and writes what it computes beside it."""
    torch.set_num_threads(1)
    for place in sorted(folder.iterdir()):
        model, inputs = build(place.name, seed=1)
        found = outputs_of(pk.load(model, place), inputs)
        safetensors.torch.save_file(found, place / "outputs.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
