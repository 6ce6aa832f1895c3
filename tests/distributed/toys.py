"""Models for several processes, and the ways in which they are sharded."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from prunekit import plugin

DEVICE = torch.device("cpu")
IMAGES = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(8) % 5


def move(device: torch.device) -> None:
    """Makes all models and data of this process lie on another device."""
    global DEVICE, IMAGES, LABELS
    DEVICE, IMAGES, LABELS = device, IMAGES.to(device), LABELS.to(device)


class Mixed(nn.Module):
    """Convolutions with BatchNorm, attention that is exchanged, attention that is rescaled, and odd sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.down = nn.Conv2d(12, 20, 2, stride=2, bias=False)
        self.block = nn.TransformerEncoderLayer(20, 2, 30, dropout=0.0, batch_first=True)
        self.qkv = nn.Linear(20, 30)
        self.head = nn.Linear(10, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.down(torch.relu(self.norm(self.stem(x)))).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.block(x)).unflatten(-1, (3, 1, -1)).permute(2, 0, 3, 1, 4)
        return self.head(nn.functional.scaled_dot_product_attention(q, k, v).squeeze(1).mean(1))


class Perceptron(nn.Module):
    """Two layers for tensor parallelism."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(x)))


def weights(model: type[nn.Module] = Mixed) -> nn.Module:
    """A model with the same weights on every process, in train mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = model()
        for parameter in made.parameters():
            nn.init.normal_(parameter, std=0.3)
    return made.to(DEVICE)


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return Mixed()


def shard(model: nn.Module) -> None:
    """As a user would: each large part by itself, then the rest."""
    fully_shard(model.down)
    fully_shard(model.block)
    fully_shard(model)


def parallel(model: nn.Module) -> None:
    mesh = init_device_mesh(DEVICE.type, (torch.distributed.get_world_size(),))
    parallelize_module(model, mesh, {"first": ColwiseParallel(), "last": RowwiseParallel()})


def fill(model: nn.Module, source: nn.Module) -> None:
    """Materialises a sharded meta model with the values of a plain one."""
    model.to_empty(device=DEVICE)
    targets, values = plugin.named_tensors(model), plugin.named_tensors(source)
    for name, target in targets.items():
        value: Any = values[name].detach()
        if plugin.is_sharded(target):
            value = distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None).to_local()
            target.to_local().detach().copy_(value)
        else:
            target.data.copy_(value)


def full(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: plugin.whole_tensor(tensor).clone() for name, tensor in plugin.named_tensors(model).items()}


def backward(model: nn.Module, inputs: torch.Tensor | None = None, labels: torch.Tensor | None = None) -> torch.Tensor:
    inputs, labels = IMAGES if inputs is None else inputs, LABELS if labels is None else labels
    loss = nn.functional.cross_entropy(model(inputs), labels)
    loss.backward()
    return loss.detach()
