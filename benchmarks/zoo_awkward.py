"""Recurrent models, and models that are awkward on purpose: each small, with one thing that is known to go wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

Built = tuple[nn.Module, Any]


# -- recurrent


class Recurrent(nn.Module):
    """An embedding, a recurrent layer over it, and a classifier of every step and of the last state."""

    def __init__(self, kind: type[nn.RNNBase], *, packed: bool = False, **options: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 24)
        self.rnn = kind(24, 32, batch_first=True, **options)
        width = (options.get("proj_size") or 32) * (1 + options.get("bidirectional", False))
        self.steps, self.last, self.packed = nn.Linear(width, 7), nn.Linear(width, 5), packed

    def forward(self, words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x: torch.Tensor | PackedSequence = self.embed(words)
        if self.packed:
            x = pack_padded_sequence(self.embed(words), torch.tensor([6, 4, 3]), batch_first=True)
        x, _ = self.rnn(x)
        if isinstance(x, PackedSequence):
            x, _ = pad_packed_sequence(x, batch_first=True)
        return self.steps(x), self.last(x[:, -1])


class Cells(nn.Module):
    """A loop over cells, written out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.LSTMCell(8, 24), nn.GRUCell(24, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, c, g = x.new_zeros(len(x), self.first.hidden_size), x.new_zeros(len(x), self.first.hidden_size), None
        for step in range(x.shape[1]):
            h, c = self.first(x[:, step], (h, c))
            g = self.second(h, g)
        return self.out(g)


def recurrent() -> dict[str, Callable[[], Built]]:
    def words(kind: type[nn.RNNBase], **options: Any) -> Callable[[], Built]:
        return lambda: (Recurrent(kind, **options), torch.randint(0, 40, (3, 6)))

    made: dict[str, Callable[[], Built]] = {}
    for name, kind in (("lstm", nn.LSTM), ("gru", nn.GRU), ("rnn", nn.RNN)):
        made[name] = words(kind)
        made[f"{name}_stacked"] = words(kind, num_layers=3, dropout=0.1)
        made[f"{name}_bidirectional"] = words(kind, num_layers=2, bidirectional=True)
        made[f"{name}_packed"] = words(kind, packed=True)
        made[f"{name}_packed_bidirectional"] = words(kind, packed=True, bidirectional=True)
    made["lstm_projected"] = words(nn.LSTM, proj_size=12)
    made["lstm_projected_bidirectional"] = words(nn.LSTM, proj_size=12, num_layers=2, bidirectional=True)
    made["cells"] = lambda: (Cells(), torch.randn(3, 5, 8))
    return made


# -- awkward


def block(given: int, made: int, norm: nn.Module, dims: int = 2) -> nn.Sequential:
    conv = (nn.Conv2d, nn.Conv3d)[dims - 2]
    return nn.Sequential(conv(given, made, 3, padding=1, bias=False), norm, nn.SiLU())


class UNet(nn.Module):
    """Two levels down and up, skips by concatenation; 2-D with GroupNorm or 3-D with InstanceNorm."""

    def __init__(self, dims: int, width: int = 16) -> None:
        super().__init__()

        def norm(n: int) -> nn.Module:
            return nn.GroupNorm(4, n) if dims == 2 else nn.InstanceNorm3d(n, affine=True)

        up = (nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 2]
        self.one, self.two = block(3, width, norm(width), dims), block(width, 2 * width, norm(2 * width), dims)
        self.deep = block(2 * width, 4 * width, norm(4 * width), dims)
        self.pool = (F.max_pool2d, F.max_pool3d)[dims - 2]
        self.up_two, self.up_one = up(4 * width, 2 * width, 2, 2), up(2 * width, width, 2, 2)
        self.back_two = block(4 * width, 2 * width, norm(2 * width), dims)
        self.back_one = block(2 * width, width, norm(width), dims)
        self.out = (nn.Conv2d, nn.Conv3d)[dims - 2](width, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one = self.one(x)
        two = self.two(self.pool(one, 2))
        x = self.up_two(self.deep(self.pool(two, 2)))
        x = self.up_one(self.back_two(torch.cat([two, x], 1)))
        return self.out(self.back_one(torch.cat([one, x], 1)))


class CrossStage(nn.Module):
    """YOLO's neck: chunk, bottlenecks that are all concatenated, SPPF, three outputs of different sizes."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = block(3, width, nn.BatchNorm2d(width))
        self.split = nn.Conv2d(width, 2 * width, 1)
        self.steps = nn.ModuleList(block(width, width, nn.BatchNorm2d(width)) for _ in range(2))
        self.join = nn.Conv2d(4 * width, 2 * width, 1)
        self.squeeze, self.spread = nn.Conv2d(2 * width, width, 1), nn.Conv2d(4 * width, 2 * width, 1)
        self.down = nn.ModuleList(nn.Conv2d(2 * width, 2 * width, 3, 2, 1) for _ in range(2))
        self.boxes = nn.ModuleList(nn.Conv2d(2 * width, 8, 1) for _ in range(3))
        self.classes = nn.ModuleList(nn.Conv2d(2 * width, 6, 1) for _ in range(3))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        parts = list(self.split(self.stem(x)).chunk(2, 1))
        for step in self.steps:
            parts.append(parts[-1] + step(parts[-1]))
        pooled = [self.squeeze(self.join(torch.cat(parts, 1)))]
        for _ in range(3):
            pooled.append(F.max_pool2d(pooled[-1], 5, 1, 2))
        levels = [self.spread(torch.cat(pooled, 1))]
        for down in self.down:
            levels.append(down(levels[-1]))
        heads = zip(levels, self.boxes, self.classes, strict=True)
        return [torch.cat([box(level), kind(level)], 1) for level, box, kind in heads]


class Dense(nn.Module):
    """Concatenations of concatenations, with a transition that halves."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layers, width = nn.ModuleList(), 8
        for _ in range(4):
            self.layers.append(nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 6, 3, padding=1)))
            width += 6
        self.move = nn.Conv2d(width, width // 2, 1)
        self.out = nn.Linear(width + width // 2, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.out(torch.cat([x, self.move(x)], 1).mean((2, 3)))


class Shuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 24, 1), nn.Conv2d(24, 24, 3, padding=1, groups=4), nn.Conv2d(24, 5, 1)
        self.shuffle = nn.ChannelShuffle(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.shuffle(self.b(self.a(x))).relu())


class Upscale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.PixelUnshuffle(2), nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1),
            nn.PixelShuffle(2), nn.Conv2d(8, 3, 1), nn.Upsample(scale_factor=2, mode="bilinear"),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Gates(nn.Module):
    """Squeeze-and-excitation, then CBAM: channels by mean and maximum, places by one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.squeeze, self.excite = nn.Conv2d(3, 24, 3), nn.Conv2d(24, 6, 1), nn.Conv2d(6, 24, 1)
        self.shared = nn.Sequential(nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 24))
        self.places, self.out = nn.Conv2d(2, 1, 7, padding=3), nn.Conv2d(24, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        x = x * self.excite(self.squeeze(F.adaptive_avg_pool2d(x, 1)).relu()).sigmoid()
        x = x * (self.shared(x.mean((2, 3))) + self.shared(x.amax((2, 3)))).sigmoid()[:, :, None, None]
        joined = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return self.out(x * self.places(joined).sigmoid())


class Gated(nn.Module):
    """GLU, then SwiGLU packed in one layer, then SwiGLU of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.glu, self.packed, self.down = nn.Linear(8, 32), nn.Linear(16, 48), nn.Linear(24, 16)
        self.gate, self.up, self.out = nn.Linear(16, 20), nn.Linear(16, 20), nn.Linear(20, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.packed(F.glu(self.glu(x))).chunk(2, -1)
        x = self.down(F.silu(gate) * up)
        return self.out(F.silu(self.gate(x)) * self.up(x))


class Summed(nn.Module):
    """Attention in ``einsum``, with an ellipsis and a weight that no layer owns."""

    def __init__(self) -> None:
        super().__init__()
        self.wq, self.wk, self.wv = (nn.Parameter(torch.randn(4, 24, 8) * 0.2) for _ in range(3))
        self.wo = nn.Parameter(torch.randn(4, 8, 24) * 0.2)
        self.stem, self.out = nn.Linear(6, 24), nn.Linear(24, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        q, k, v = (torch.einsum("...nd,hde->...hne", x, w) for w in (self.wq, self.wk, self.wv))
        mixed = torch.einsum("...hnm,...hme->...hne", torch.einsum("...hne,...hme->...hnm", q, k).softmax(-1), v)
        return self.out(x + torch.einsum("...hne,hed->...nd", mixed, self.wo))


class WeightNormed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        self.a, self.b, self.out = norm(nn.Conv1d(4, 16, 3)), norm(nn.Conv1d(16, 12, 3)), nn.Conv1d(12, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.b(self.a(x).relu()).relu())


class LowRank(nn.Module):
    """LoRA on frozen layers."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.a, self.b = nn.Linear(8, 32), nn.Linear(8, 4, bias=False), nn.Linear(4, 32, bias=False)
        self.out = nn.Linear(32, 5)
        self.base.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out((self.base(x) + 2.0 * self.b(self.a(x))).relu())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(20, 16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        code = self.second(self.first(x).tanh()).tanh()
        return F.linear(F.linear(code, self.second.weight.t()).tanh(), self.first.weight.t())


class Twice(nn.Module):
    """One trunk for two inputs that come by name; the outputs have names as well."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16))
        self.mixed, self.out = nn.Linear(32, 12), nn.Linear(12, 3)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, Any]:
        a, b = self.trunk(left), self.trunk(right)
        return {"scores": self.out(self.mixed(torch.cat([a, b], -1)).relu()), "likeness": (a * b).sum(-1), "aux": None}


class Branching(nn.Module):
    """Control flow by a value, by the mode and by a size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.extra, self.aux, self.out = (nn.Linear(a, b) for a, b in ((6, 16), (16, 16), (16, 4), (16, 3)))

    def forward(self, x: torch.Tensor) -> Any:
        x = self.stem(x).relu()
        if x.shape[0] > 1:
            x = x + self.extra(x)
        if bool(x.abs().sum() > 1e9):
            x = x * 0
        return (self.out(x), self.aux(x)) if self.training else self.out(x)


class Recomputed(nn.Module):
    """Activation checkpointing, of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Linear(6, 16), nn.Linear(16, 3)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for index, part in enumerate(self.blocks):
            x = x + (checkpoint(part, x, use_reentrant=bool(index)) if self.training else part(x))
        return self.out(x)


class Noisy(nn.Module):
    """Dropout of every kind, and whole blocks that are left out at random in training."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 5)
        self.blocks = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(3))
        self.drop, self.whole, self.alpha = nn.Dropout(0.1), nn.Dropout2d(0.1), nn.AlphaDropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.whole(self.stem(x))
        for part in self.blocks:
            keep = (torch.rand(len(x), 1, 1, 1) < 0.9).to(x) / 0.9 if self.training else 1.0
            x = x + self.drop(part(x).relu()) * keep
        return self.out(self.alpha(x.mean((2, 3))))


class Rolled(nn.Module):
    """Flips, rolls, repeats, stacks, unfolds and folds a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(24, 12, 1), nn.Conv2d(12, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.stack([x, x.flip(-1), x.roll((1, 2), (2, 3))], 1).flatten(1, 2)
        x = self.mix(x)
        return self.out(F.fold(F.unfold(x, 3, padding=1), x.shape[-2:], 3, padding=1)[..., ::2, 1::2])


class Spectral(nn.Module):
    """FNet and an FNO layer: Fourier transforms over places, complex weights over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Linear(4, 12), nn.Linear(10, 3)
        self.weight = nn.Parameter(torch.randn(12, 10, 5, 2) * 0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spectrum = torch.fft.rfft(self.stem(x).transpose(1, 2), norm="ortho")
        mixed = torch.einsum("bim,iom->bom", spectrum[..., :5], torch.view_as_complex(self.weight))
        return self.out(torch.fft.irfft(mixed, n=x.shape[1], norm="ortho").transpose(1, 2))


class Routed(nn.Module):
    """A mixture of experts that gathers the tokens of each expert."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.router, self.out = nn.Linear(6, 16), nn.Linear(16, 4, bias=False), nn.Linear(16, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(16, 24), nn.SiLU(), nn.Linear(24, 16)) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        weights, chosen = self.router(x).softmax(-1).topk(2)
        mixed = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            share = (weights * (chosen == number)).sum(-1, keepdim=True)
            mixed = mixed + share * expert(x)
        return self.out(x + mixed)


class Attentions(nn.Module):
    """PyTorch's own transformer, encoder and decoder, with masks."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(6, 16), nn.Linear(16, 3)
        self.core = nn.Transformer(16, 4, 1, 1, 32, 0.1, batch_first=True)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        return self.out(self.core(self.embed(source), self.embed(target), tgt_mask=mask))


class Deformed(nn.Module):
    """Deformable convolution: offsets are made by a convolution and read positions."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.ops import DeformConv2d

        self.stem, self.offset, self.out = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 18, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.deform = DeformConv2d(12, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.out(self.deform(x, self.offset(x)).relu())


class Einops(nn.Module):
    """A mixer written with einops."""

    def __init__(self) -> None:
        super().__init__()
        from einops.layers.torch import Rearrange, Reduce

        self.layers = nn.Sequential(
            Rearrange("b c (h p) (w q) -> b (h w) (p q c)", p=4, q=4), nn.Linear(48, 24), nn.LayerNorm(24),
            Rearrange("b n (g d) -> b g n d", g=4), nn.Linear(6, 10), Rearrange("b g n d -> b n (g d)"), nn.GELU(),
            nn.Linear(40, 16), Reduce("b n c -> b c", "mean"), nn.Linear(16, 5),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def small(*, frozen: bool = False) -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.PReLU(16), nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 24, 1),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip
    for layer in list(model)[:5] if frozen else []:
        layer.requires_grad_(False)
    return model


def pictures(count: int = 2, size: int = 16) -> torch.Tensor:
    return torch.randn(count, 3, size, size)


def awkward() -> dict[str, Callable[[], Built]]:
    return {
        "unet_groupnorm": lambda: (UNet(2), pictures()),
        "unet_3d_instancenorm": lambda: (UNet(3), torch.randn(1, 3, 8, 8, 8)),
        "yolo_csp": lambda: (CrossStage(), pictures()),
        "densenet_like": lambda: (Dense(), pictures()),
        "channel_shuffle": lambda: (Shuffle(), pictures()),
        "pixel_shuffle": lambda: (Upscale(), pictures()),
        "se_cbam": lambda: (Gates(), pictures()),
        "glu_swiglu": lambda: (Gated(), torch.randn(3, 8)),
        "einsum": lambda: (Summed(), torch.randn(2, 5, 6)),
        "einops": lambda: (Einops(), pictures()),
        "weight_norm": lambda: (WeightNormed(), torch.randn(2, 4, 12)),
        "lora": lambda: (LowRank(), torch.randn(3, 8)),
        "tied_autoencoder": lambda: (Tied(), torch.randn(3, 20)),
        "shared_trunk": lambda: (Twice(), {"left": torch.randn(3, 6), "right": torch.randn(3, 6)}),
        "control_flow": lambda: (Branching(), torch.randn(3, 6)),
        "frozen": lambda: (small(frozen=True), pictures()),
        "half_precision": lambda: (small().bfloat16(), pictures().bfloat16()),
        "compiled": lambda: (torch.compile(small(), backend="eager"), pictures()),
        "checkpointed": lambda: (Recomputed(), torch.randn(3, 6)),
        "dropout_stochastic_depth": lambda: (Noisy(), pictures()),
        "roll_stack_fold": lambda: (Rolled(), pictures()),
        "fourier": lambda: (Spectral(), torch.randn(2, 12, 4)),
        "mixture_of_experts": lambda: (Routed(), torch.randn(9, 6)),
        "nn_transformer": lambda: (Attentions(), (torch.randn(2, 5, 6), torch.randn(2, 4, 6))),
        "deformable": lambda: (Deformed(), pictures()),
    }


MODELS: Mapping[str, Mapping[str, Callable[[], Built]]] = {"recurrent": recurrent(), "awkward": awkward()}
