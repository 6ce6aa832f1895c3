"""Where other tools fail: small models, each with the groups that must be found in it, named and sized."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import prunekit as pk
from prunekit import plugin
from prunekit_plugins.importance import RandomImportance

PICTURE = (2, 3, 8, 8)


class UNet(nn.Module):
    """Skips are joined to what comes back up; GroupNorm needs its groups."""

    inputs: ClassVar = torch.randn(PICTURE)
    groups: ClassVar = {"down": 8, "middle#norm_groups": 4, "middle": 3, "up": 6}

    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, 2, 1)
        self.norm, self.up = nn.GroupNorm(4, 12), nn.ConvTranspose2d(12, 6, 2, 2)
        self.out = nn.Conv2d(8 + 6, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = self.down(x)
        return self.out(torch.cat([skip, self.up(self.norm(self.middle(skip)).relu())], 1))


class Volume(nn.Module):
    """A 3-D U-Net's block: InstanceNorm treats each channel by itself."""

    inputs: ClassVar = torch.randn(2, 1, 4, 4, 4)
    groups: ClassVar = {"first": 6, "second": 8}

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv3d(1, 6, 3, padding=1), nn.InstanceNorm3d(6, affine=True)
        self.second = nn.Conv3d(6, 8, 1)
        self.out = nn.Conv3d(6 + 8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.first(x)).relu()
        return self.out(torch.cat([x, self.second(x)], 1))


class CrossStage(nn.Module):
    """YOLO: halves of a convolution go different ways and meet again; several outputs."""

    inputs: ClassVar = torch.randn(PICTURE)
    groups: ClassVar = {"stem": 6, "branch": 6}

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 12, 1), nn.Conv2d(6, 6, 3, padding=1)
        self.boxes, self.classes = nn.Conv2d(18, 4, 1), nn.Conv2d(18, 7, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        first, second = self.stem(x).chunk(2, 1)
        joined = torch.cat([first, second, self.branch(second)], 1)
        return {"boxes": self.boxes(joined), "classes": self.classes(joined)}


class Shuffle(nn.Module):
    """ShuffleNet: channels change places between two grouped convolutions."""

    inputs: ClassVar = torch.randn(PICTURE)
    groups: ClassVar = {"first#conv_groups": 2, "first": 6, "second": 4}

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 1)
        self.second = nn.Conv2d(12, 8, 3, groups=2)
        self.out = nn.Conv2d(8, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.first(x)).unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
        return self.out(x)


class Upscale(nn.Module):
    """PixelShuffle: four channels of one unit become one of a larger picture."""

    inputs: ClassVar = torch.randn(PICTURE)
    groups: ClassVar = {"first": 5}

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shuffle, self.out = nn.Conv2d(3, 20, 1), nn.PixelShuffle(2), nn.Conv2d(5, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.shuffle(self.first(x)).relu())


class Gates(nn.Module):
    """Squeeze-and-excitation by channel, then CBAM's gate of one channel over places."""

    inputs: ClassVar = torch.randn(PICTURE)
    groups: ClassVar = {"conv": 8, "squeeze": 4}

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.squeeze, self.excite = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.places, self.out = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(8, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        x = x * self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.out(x * self.places(x.mean(1, keepdim=True)).sigmoid())


class Gated(nn.Module):
    """GLU by the function, SwiGLU by two layers."""

    inputs: ClassVar = torch.randn(2, 8)
    groups: ClassVar = {"up": 6, "gate": 10}

    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate, self.value, self.down = (
            nn.Linear(8, 12),
            nn.Linear(6, 10),
            nn.Linear(6, 10),
            nn.Linear(10, 3),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.glu(self.up(x))
        return self.down(F.silu(self.gate(x)) * self.value(x))


class Normed(nn.Module):
    """``weight_norm`` computes the weight anew in every forward."""

    inputs: ClassVar = torch.randn(2, 6)
    groups: ClassVar = {"first.parametrizations.weight.original1": 8}

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.utils.parametrizations.weight_norm(nn.Linear(6, 8))
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.first(x).relu())


class Spectral(nn.Module):
    """``spectral_norm`` divides by a value of the whole matrix."""

    inputs: ClassVar = torch.randn(2, 6)
    groups: ClassVar = {"first.parametrizations.weight.original": 8}

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 8))
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.first(x).relu())


class LowRank(nn.Module):
    """LoRA: a frozen layer and a thin detour are added."""

    inputs: ClassVar = torch.randn(2, 6)
    groups: ClassVar = {"base#stream": 8, "a": 4}

    def __init__(self) -> None:
        super().__init__()
        self.base, self.a, self.b, self.out = (
            nn.Linear(6, 8),
            nn.Linear(6, 4, bias=False),
            nn.Linear(4, 8),
            nn.Linear(8, 3),
        )
        self.base.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.base(x) + 0.5 * self.b(self.a(x)))


class Adapted(nn.Module):
    """LoRA as peft writes it: adapters by name, with a factor each, around a frozen layer."""

    inputs: ClassVar = torch.randn(2, 6)
    groups: ClassVar = {"base_layer#stream": 8, "lora_A.default": 4}

    def __init__(self) -> None:
        super().__init__()
        self.base_layer, self.out = nn.Linear(6, 8).requires_grad_(False), nn.Linear(8, 3)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(6, 4, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(4, 8, bias=False)})
        self.scaling = {"default": 2.0}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = self.base_layer(x)
        for name in self.lora_A:
            result = result + self.lora_B[name](self.lora_A[name](x)) * self.scaling[name]
        return self.out(result.relu())


class Tied(nn.Module):
    """An autoencoder whose decoder is the encoder's weight, transposed."""

    inputs: ClassVar = torch.randn(2, 6)
    groups: ClassVar = {"first": 8}

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(self.first(x).tanh(), self.first.weight.t())


class Twice(nn.Module):
    """One trunk, called for two inputs given by name."""

    inputs: ClassVar = {"left": torch.randn(2, 6), "right": torch.randn(2, 6)}
    groups: ClassVar = {"trunk": 8, "mixed": 10}

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.mixed, self.out = nn.Linear(6, 8), nn.Linear(16, 10), nn.Linear(10, 3)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
        both = torch.cat([self.trunk(left).relu(), self.trunk(right).relu()], -1)
        return {"scores": self.out(self.mixed(both))}


class Shifted(nn.Module):
    """Swin: windows are rolled and cut out of the picture; heads are cut out of a packed layer."""

    inputs: ClassVar = torch.randn(2, 4, 4, 8)
    groups: ClassVar = {"stem": 12, "qkv#heads": 2, "qkv#head_dim": 6}

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv, self.out = nn.Linear(8, 12), nn.Linear(12, 36), nn.Linear(12, 5)
        self.heads = 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).roll((-1, -1), (1, 2))
        x = x.unflatten(1, (2, 2)).unflatten(3, (2, 2)).permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(0, 2)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Correlated(nn.Module):
    """RAFT: all pairs of two feature maps, looked up with ``grid_sample``."""

    inputs: ClassVar = (torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4))
    groups: ClassVar = {"features": 8, "reader": 6}

    def __init__(self) -> None:
        super().__init__()
        self.features, self.reader, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(1, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        pairs = torch.einsum("bchw,bcij->bhwij", self.features(left), self.features(right))
        grid = torch.linspace(-1, 1, 18, dtype=left.dtype).view(1, 3, 3, 2).expand(32, 3, 3, 2)
        return self.out(self.reader(F.grid_sample(pairs.reshape(32, 1, 4, 4), grid, align_corners=True)))


class Routed(nn.Module):
    """A mixture of experts: the router's rows number the experts, whose width is a group beside them."""

    inputs: ClassVar = torch.randn(6, 8)
    groups: ClassVar = {"stem": 12, "up": 10, "up#experts": 4}

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.router = nn.Linear(8, 12), nn.Linear(12, 4)
        self.up, self.down = nn.Parameter(torch.randn(4, 12, 10)), nn.Parameter(torch.randn(4, 10, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        weights, chosen = self.router(x).softmax(-1).topk(2)
        dense = torch.zeros(6, 4, dtype=x.dtype).scatter(1, chosen, weights)
        each = torch.einsum("nd,edh->enh", x, self.up).relu() @ self.down
        return torch.einsum("ne,eno->no", dense, each)


class Checkpointed(nn.Module):
    """Recomputed in the backward pass."""

    inputs: ClassVar = torch.randn(2, 6)
    groups: ClassVar = {"first": 8, "second": 10}

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(6, 8), nn.Linear(8, 10), nn.Linear(10, 3)

    def block(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).relu()).relu()

    def forward(self, x: torch.Tensor) -> Any:
        return self.out(checkpoint(self.block, x, use_reentrant=False))


class Recomputed(Checkpointed):
    """Checkpointed where gradients are switched on by the forward itself."""

    def forward(self, x: torch.Tensor) -> Any:
        with torch.enable_grad():
            return self.out(checkpoint(self.block, x, use_reentrant=False))


class Squashed(nn.Module):
    """An activation with its own backward is looked through."""

    inputs: ClassVar = torch.randn(2, 6)
    groups: ClassVar = {"first": 8}

    class Swish(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(x)
            return x * x.sigmoid()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            (x,) = ctx.saved_tensors
            gate = x.sigmoid()
            return gradient * (gate + x * gate * (1 - gate))

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.Swish.apply(self.first(x)))


class Turned(nn.Module):
    """Rotary positions as complex numbers, einsum with an ellipsis: pairs of dims leave together."""

    inputs: ClassVar = torch.randn(2, 5, 6)
    groups: ClassVar = {"q#heads": 2, "q": 4, "v": 8}

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(16, 3))
        self.heads, self.dim = 2, 8
        self.register_buffer("turns", torch.polar(torch.ones(5, 4), torch.randn(5, 4)))

    def turn(self, x: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(x.reshape(len(x), 5, self.heads, -1, 2))
        return torch.view_as_real(pairs * self.turns[:, None]).flatten(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (layer(x).view(len(x), 5, self.heads, -1) for layer in (self.q, self.k, self.v))
        scores = torch.einsum("...qhd,...khd->...hqk", self.turn(q), self.turn(k)) / q.shape[-1] ** 0.5
        return self.out(torch.einsum("...hqk,...khd->...qhd", scores.softmax(-1), v).flatten(2))


class CrossCovariance(nn.Module):
    """XCiT: attention between the dims of a head, on normalised queries and keys."""

    inputs: ClassVar = torch.randn(2, 5, 6)
    groups: ClassVar = {"qkv#heads": 2, "qkv#head_dim": 8}

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = 2, nn.Linear(6, 48), nn.Linear(16, 3)
        self.temperature = nn.Parameter(torch.ones(2, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 4, 1)
        weights = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * self.temperature).softmax(-1)
        return self.out((weights @ v).permute(0, 3, 1, 2).reshape(batch, tokens, -1))


class LinearAttention(nn.Module):
    """Keys meet values first."""

    inputs: ClassVar = torch.randn(2, 5, 6)
    groups: ClassVar = {"q#heads": 2, "q#head_dim": 8, "v#head_dim": 8}

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(16, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (layer(x).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        norm = (q * k.sum(-2, keepdim=True)).sum(-1, keepdim=True)
        return self.out((q @ (k.mT @ v) / norm).transpose(1, 2).flatten(2))


class Pooled(nn.Module):
    """PVT: keys and values come from a smaller picture."""

    inputs: ClassVar = torch.randn(2, 16, 6)
    groups: ClassVar = {"q#heads": 2, "q#head_dim": 8, "pool": 10}

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.pool, self.out = (
            nn.Linear(6, 16),
            nn.Linear(10, 32),
            nn.Conv2d(6, 10, 2, 2),
            nn.Linear(16, 3),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = self.q(x).unflatten(-1, (2, -1)).transpose(1, 2)
        small = self.pool(x.mT.unflatten(2, (4, 4))).flatten(2).mT
        k, v = self.kv(small).unflatten(-1, (2, 2, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Multiplied(nn.Module):
    """FastViT: depthwise convolutions that make two channels of each; a channel goes with both."""

    inputs: ClassVar = torch.randn(PICTURE)
    groups: ClassVar = {"first": 6, "second#copies": 2}

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 12, 3, padding=1, groups=6)
        self.third, self.out = nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.Conv2d(12, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.third(self.second(self.first(x)).relu()))


class Blocked(nn.Module):
    """NesT: heads stand before the blocks, and the width is divided by their number; widths are heads x dims."""

    inputs: ClassVar = torch.randn(2, 3, 4, 12)
    groups: ClassVar = {"stem#stream": 12, "qkv#heads": 3, "qkv#head_dim": 4}

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv, self.mix, self.out = (nn.Linear(12, n) for n in (12, 36, 12, 5))
        self.heads = 3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        batch, blocks, places, width = x.shape
        qkv = self.qkv(x).reshape(batch, blocks, places, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(3, 0, 4, 1, 2, 5).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).permute(0, 2, 3, 4, 1).reshape(batch, blocks, places, width)
        return self.out(x + self.mix(mixed)).mean(1)


class Aggregated(nn.Module):
    """CoaT: tokens of several scales are weighed by a convolution of size one, along the width."""

    inputs: ClassVar = torch.randn(2, 2, 6)
    groups: ClassVar = {"first": 8}

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)
        self.weigh = nn.Conv1d(4, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.weigh(torch.cat([self.first(x), self.second(x)], 1))[:, 0])


class Packed(nn.Module):
    """Experts as one grouped product over rows sorted by expert; they and their width are free."""

    inputs: ClassVar = torch.randn(10, 8)
    groups: ClassVar = {"stem": 16, "up": 32, "router#experts": 4}

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.router = nn.Linear(8, 16), nn.Linear(16, 4)
        self.up, self.down = nn.Parameter(torch.randn(4, 16, 32)), nn.Parameter(torch.randn(4, 32, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        weight, expert = self.router(x).softmax(-1).max(-1)
        order = expert.argsort()
        ends = torch.bincount(expert, minlength=4).cumsum(0).to(torch.int32)
        up, down = self.up.to(torch.bfloat16), self.down.to(torch.bfloat16)
        hidden = torch._grouped_mm(x[order].to(torch.bfloat16), up, offs=ends).relu()
        mixed = torch._grouped_mm(hidden, down, offs=ends).to(x.dtype)
        return torch.zeros_like(mixed).index_copy(0, order, mixed) * weight[:, None]


class Sequences(nn.Module):
    """Two layers of a bidirectional LSTM."""

    inputs: ClassVar = torch.randn(2, 3, 6)
    groups: ClassVar = {"embed": 5, "rnn.weight_ih_l0#stream": 8}

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 5)
        self.rnn = nn.LSTM(5, 8, 2, batch_first=True, bidirectional=True)
        self.out = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.rnn(self.embed(x))[0])


class Steps(nn.Module):
    """A loop over cells: what a cell hands on is what it is given in the next step."""

    inputs: ClassVar = torch.randn(2, 3, 6)
    groups: ClassVar = {"embed": 5, "first.weight_ih#stream": 8, "second.weight_ih#stream": 10}

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(6, 5), nn.Linear(10, 3)
        self.first, self.second = nn.RNNCell(5, 8), nn.LSTMCell(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = second = None
        for step in self.embed(x).unbind(1):
            first = self.first(step, first)
            second = self.second(first, second)
        return self.out(second[0])


MODELS = (
    UNet,
    Volume,
    CrossStage,
    Shuffle,
    Upscale,
    Gates,
    Gated,
    Normed,
    LowRank,
    Tied,
    Twice,
    Shifted,
    Correlated,
    Routed,
    Checkpointed,
    Recomputed,
    Squashed,
    Spectral,
    Adapted,
    Turned,
    CrossCovariance,
    LinearAttention,
    Pooled,
    Multiplied,
    Blocked,
    Aggregated,
    Packed,
    Sequences,
    Steps,
)


@pytest.fixture(params=MODELS, ids=lambda kind: kind.__name__)
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return request.param().eval()


def run(model: nn.Module) -> list[torch.Tensor]:
    inputs: Any = model.inputs
    if isinstance(inputs, dict):
        output = model(**inputs)
    else:
        output = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    return list(output.values()) if isinstance(output, Mapping) else [output]


def test_the_expected_groups_are_found(model: nn.Module) -> None:
    graph = pk.DependencyGraph().build_dependency(model, model.inputs)
    assert {name: group.size for name, group in graph.analysis.groups.items()} == model.groups
    assert not graph.report().not_understood


def test_half_of_each_goes_and_the_rest_is_the_same_program(model: nn.Module) -> None:
    original, before = copy.deepcopy(model), [tensor.shape for tensor in run(model)]
    result = pk.prune(model, model.inputs, importance=RandomImportance())
    inner = {name for name in model.groups if not name.endswith(("_groups", "heads", "copies", "experts"))}
    assert set(result.report.pruned) == inner
    check = pk.check_exact(original, model, result.plan, model.inputs)
    assert check.error < 1e-5, str(check)
    assert check.outputs == len(before)
    model.train()
    outputs = run(model)
    assert [tensor.shape for tensor in outputs] == before
    sum(tensor.sum() for tensor in outputs).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters() if p.requires_grad)


def test_tied_weights_stay_tied() -> None:
    model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 20, bias=False))
    model[2].weight = model[0].weight
    words = torch.randint(0, 20, (2, 5))
    pk.prune(model, words)
    assert model[2].weight is model[0].weight
    assert model[0].weight.shape == (20, 4)


def test_frozen_weights_are_pruned_and_stay_frozen() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).requires_grad_(False)
    pk.prune(model, torch.randn(2, 6))
    assert model[0].weight.shape == (4, 6)
    assert not any(p.requires_grad for p in model.parameters())


def test_a_classifier_keeps_its_classes_at_any_ratio() -> None:
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 7))
    pk.prune(model, torch.randn(2, 6), ratio=0.9)
    assert (model[0].out_features, model[2].out_features) == (2, 7)


def test_a_pruned_model_is_saved_and_loaded_into_a_fresh_one(tmp_path: Any) -> None:
    def build() -> nn.Module:
        torch.manual_seed(1)
        return Shifted().eval()

    model = build()
    plan = pk.prune(model, Shifted.inputs).plan
    pk.save(model, tmp_path / "small.safetensors", plan=plan)
    loaded = pk.load(build(), tmp_path / "small.safetensors")
    assert torch.equal(run(loaded)[0], run(model)[0])


def test_limits_hold_within_one_step() -> None:
    model = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 3))
    pk.prune(model, torch.randn(2, 6), ratio=0.9, max_pruning_ratio=0.5, round_to=8)
    assert (model[0].out_features, model[2].out_features) == (32, 24)


def test_half_precision_and_compiled_models_are_pruned() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).to(torch.bfloat16)
    pk.prune(torch.compile(model), torch.randn(2, 6, dtype=torch.bfloat16))
    assert model[0].weight.shape == (4, 6)
    assert model[0].weight.dtype is torch.bfloat16


def test_a_compiled_part_of_a_model_is_pruned() -> None:
    inner = nn.Sequential(nn.Linear(4, 16), nn.Dropout(), nn.Linear(16, 12))
    model = nn.Sequential(torch.compile(inner, backend="eager"), nn.ReLU(), nn.Linear(12, 3)).eval()  # type: ignore[arg-type]
    x = torch.randn(2, 4)
    expected = model(x)
    assert expected.shape == (2, 3)
    original = nn.Sequential(copy.deepcopy(inner), nn.ReLU(), copy.deepcopy(model[2])).eval()
    assert not isinstance(model[0], nn.Sequential)
    plan = pk.prune(model, x).plan
    assert (inner[0].out_features, inner[2].out_features) == (8, 6)
    torch.testing.assert_close(original(x), expected)
    for name, positions in plan.all_positions(plan.parameters).items():
        tensor = original.get_parameter(name.replace("0._orig_mod", "0"))
        for dim, kept in positions.items():
            gone = torch.ones(tensor.shape[dim], dtype=torch.bool).index_fill(0, kept, False)
            tensor.data.index_fill_(dim, gone.nonzero().flatten(), 0)
    torch.testing.assert_close(model(x), original(x))


def test_a_split_written_as_numbers_is_given_back_with_the_operation() -> None:
    class Numbered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.out = nn.Linear(6, 12), nn.Linear(12, 10), nn.Linear(10, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a, b = self.first(x).split((6, 6), -1)
            return self.out(self.second(torch.cat([b, a], -1)))

    model = Numbered()
    result = pk.prune(model, torch.randn(2, 6))
    assert model.first.out_features == 12
    assert model.second.out_features == 5
    assert "aten::split_with_sizes" in result.report.left["first"]


@torch.library.custom_op("prunekit_tests::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@twice.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def test_custom_operations_are_named_without_a_rule_and_pruned_with_one() -> None:
    class Custom(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.first, self.out = nn.Linear(6, 10), nn.Linear(10, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(twice(self.first(self.stem(x))))

    torch.manual_seed(0)
    model, x = Custom(), torch.randn(2, 6)
    result = pk.prune(model, x)
    assert model.first.weight.shape == (8, 5)
    assert result.report.not_understood == ("prunekit_tests::twice in the model: no rule for this operation",)

    class Plugin:
        @plugin.hookimpl
        def prunekit_op_rules(self) -> Mapping[str, plugin.Rule]:
            return {"prunekit_tests::twice": lambda call: list(call["x"].axes)}

    model = Custom()
    original = copy.deepcopy(model)
    registry = pk.Registry(extra={"custom": Plugin()})
    result = pk.prune(model, x, registry=registry)
    assert model.first.weight.shape == (4, 5)
    assert pk.check_exact(original, model, result.plan, x, registry=registry)


def test_the_check_sees_a_wrong_cut_under_weight_norm() -> None:
    torch.manual_seed(0)
    model = Normed().eval()
    original = copy.deepcopy(model)
    plan = pk.prune(model, Normed.inputs, importance=RandomImportance()).plan
    assert pk.check_exact(original, model, plan, Normed.inputs)
    direction = model.first.parametrizations.weight.original1.data
    direction.copy_(direction.roll(1, 0))
    assert not pk.check_exact(original, model, plan, Normed.inputs)
