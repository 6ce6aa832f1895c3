"""The models of the speed benchmark: torchvision's, and shapes of language models and of plain stacks, by name.

Everything here runs in two environments, prunekit's and Torch-Pruning's; neither tool is imported.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
import torch.nn.functional as F
from llama import Llama, Sizes
from torch import nn

CLASSES = 1000
DETECTORS = ("retinanet_resnet50_fpn", "maskrcnn_resnet50_fpn")


class BertLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output, self.norm1 = nn.Linear(width, width), nn.LayerNorm(width)
        self.up, self.down, self.norm2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width), nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        q, k, v = (
            layer(x).view(batch, tokens, self.num_heads, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, -1)
        x = self.norm1(x + self.output(mixed))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class Bert(nn.Module):
    """The shape of BERT-base: 12 layers, 768 wide, 12 heads, learned positions."""

    def __init__(self, layers: int = 12, width: int = 768, heads: int = 12) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(30_522, width), nn.Embedding(512, width)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(BertLayer(width, heads) for _ in range(layers))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.words(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device)))
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


class Stack(nn.Module):
    """Residual blocks of two layers: what is measured over depth and width."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(16, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)) for _ in range(depth)
        )
        self.last = nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(x)


def llama_of(layers: int) -> Llama:
    """A Llama with the proportions of the 8-billion one, small enough to have weights."""
    return Llama(Sizes(vocabulary=CLASSES, width=256, layers=layers, heads=8, kv_heads=2, hidden=896))


def build(name: str) -> tuple[nn.Module, Any]:
    """Builds a model with random weights, in eval mode, and its example inputs.

    Args:
        name: Of ``torchvision.models``, one of `DETECTORS`, ``bert_base``, ``llama_LAYERS``, or ``stack_DEPTHxWIDTH``.

    GoogLeNet and Inception come without auxiliary heads for both tools, as in Torch-Pruning's own example: it traces
    one forward, in eval mode, where those heads don't run.
    """
    torch.manual_seed(0)
    if name == "bert_base":
        return Bert().eval(), torch.randint(0, 30_522, (1, 32))
    if name.startswith("llama_"):
        return llama_of(int(name.partition("_")[2])).eval(), torch.randint(0, CLASSES, (1, 16))
    if name.startswith("stack_"):
        depth, width = map(int, name.partition("_")[2].split("x"))
        return Stack(depth, width).eval(), torch.randn(2, 16)
    models = importlib.import_module("torchvision.models")
    if name in DETECTORS:
        model = models.get_model(name, weights=None, weights_backbone=None, min_size=128, max_size=160)
        return model.eval(), ([torch.rand(3, 128, 160)],)
    options: dict[str, Any] = {"weights": None}
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": False}
    size = 299 if name == "inception_v3" else 224
    return getattr(models, name)(**options).eval(), torch.randn(1, 3, size, size)


def shapes(outputs: Any) -> Any:
    """The trailing sizes of a model's outputs; numbers of boxes don't count."""
    if isinstance(outputs, torch.Tensor):
        return tuple(outputs.shape[1:])
    if isinstance(outputs, dict):
        return {name: shapes(value) for name, value in outputs.items()}
    return [shapes(value) for value in outputs]


def run(model: nn.Module, inputs: Any) -> Any:
    with torch.no_grad():
        return model(*inputs) if isinstance(inputs, tuple) else model(inputs)
