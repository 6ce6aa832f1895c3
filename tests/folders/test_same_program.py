"""Whether two models without weights run the same program, where only real tensors can run it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

import prunekit as pk
from prunekit_plugins.integrations.config_limits import same_program


class Picky(nn.Module):
    """Refuses tensors without data, as grouped products do before torch 2.15; its head is its embedding."""

    def __init__(self, width: int, offset: float = 1.0) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(4, width, bias=False), nn.Linear(4, width, bias=False)
        self.register_buffer("offset", torch.full((1,), offset, device="cpu"))
        self.tie_weights()

    def tie_weights(self) -> None:
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if isinstance(x, FakeTensor) or self.embed.weight.is_meta:
            raise RuntimeError("no kernel for it")
        return (self.embed(x) + self.offset) * self.head(x)


def empty(width: int, offset: float = 1.0) -> nn.Module:
    model = Picky(width, offset).eval()
    model.embed.weight = nn.Parameter(model.embed.weight.to("meta"))
    model.tie_weights()
    return model


def test_models_are_given_memory_where_only_real_tensors_have_a_kernel() -> None:
    x = torch.ones(2, 4)
    with pytest.raises(pk.RecordingError, match="no kernel for it"):
        pk.Graph.of(empty(6), x)
    first = empty(6)
    assert same_program(first, empty(6), x)
    assert first.head.weight is first.embed.weight
    assert not same_program(empty(6), empty(8), x)
    assert not same_program(empty(6), empty(6, offset=2.0), x)
