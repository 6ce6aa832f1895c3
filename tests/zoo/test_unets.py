"""U-Nets as diffusion models have them: GroupNorms over skips that are joined to a stream of another width."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunekit as pk


class Residual(nn.Module):
    """GroupNorm, convolution, GroupNorm, convolution, and a shortcut where the width changes."""

    def __init__(self, into: int, out: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, into), nn.Conv2d(into, out, 3, padding=1)
        self.time = nn.Linear(16, out)
        self.norm2, self.conv2 = nn.GroupNorm(groups, out), nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Conv2d(into, out, 1) if into != out else nn.Identity()

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        hidden = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(time))[:, :, None, None]
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(hidden)))


class Attention(nn.Module):
    """Attention over the places of a picture, with its own norm."""

    def __init__(self, width: int, groups: int, heads: int) -> None:
        super().__init__()
        self.norm, self.heads = nn.GroupNorm(groups, width), heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.to_out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, _, height, width = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = (
            layer(tokens).view(batch, height * width, self.heads, -1).transpose(1, 2)
            for layer in (self.to_q, self.to_k, self.to_v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, height * width, -1)
        return x + self.to_out(mixed).transpose(1, 2).reshape(batch, -1, height, width)


class UNet(nn.Module):
    """Stable Diffusion's skeleton: two blocks a level going down, three coming up, every output of a block a skip."""

    def __init__(self, widths: tuple[int, ...], groups: int, heads: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, widths[0], 3, padding=1)
        skips, now = [widths[0]], widths[0]
        self.down, self.lower = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            self.down.append(Residual(now, width, groups))
            skips.append(width)
            last = level == len(widths) - 1
            self.lower.append(nn.Identity() if last else nn.Conv2d(width, width, 3, 2, 1))
            if not last:
                skips.append(width)
            now = width
        self.middle, self.attention = Residual(now, now, groups), Attention(now, groups, heads)
        self.up, self.look = nn.ModuleList(), nn.ModuleList()
        for width in reversed(widths):
            for _ in range(2):
                self.up.append(Residual(now + skips.pop(), width, groups))
                self.look.append(Attention(width, groups, heads))
                now = width
        self.norm, self.head = nn.GroupNorm(groups, now), nn.Conv2d(now, 4, 3, padding=1)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        skips = [x]
        for level, (block, lower) in enumerate(zip(self.down, self.lower, strict=True)):
            x = block(x, time)
            skips.append(x)
            if level < len(self.down) - 1:
                x = lower(x)
                skips.append(x)
        x = self.attention(self.middle(x, time))
        for number, (block, look) in enumerate(zip(self.up, self.look, strict=True)):
            skip = skips.pop()
            if x.shape[-1] != skip.shape[-1]:
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = look(block(torch.cat([x, skip], 1), time))
            if number % 2 and number < len(self.up) - 1 and skips and skips[-1].shape[-1] != x.shape[-1]:
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.head(F.silu(self.norm(x)))


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, 4, 8, 8), torch.randn(2, 16)


@pytest.mark.parametrize(
    ("widths", "groups", "unit"),
    [((20, 40, 80), 4, 5), ((16, 32, 64), 8, 2), ((24, 48), 8, 3), ((20, 40), 2, 10), ((12, 24, 36), 4, 3)],
)
def test_the_stream_of_a_unet_goes_in_blocks(widths: tuple[int, ...], groups: int, unit: int) -> None:
    torch.manual_seed(0)
    model = UNet(widths, groups).eval()
    original = copy.deepcopy(model)
    result = pk.prune(model, inputs(), ratio=0.5)
    assert not result.report.not_understood
    kept = widths[0] // unit * (unit // 2)
    assert model.stem.out_channels == kept < widths[0]
    for name, module in model.named_modules():
        if isinstance(module, nn.GroupNorm):
            assert module.num_groups == groups, name
            assert module.num_channels == len(module.weight) < len(original.get_submodule(name).weight), name
    check = pk.check_exact(original, model, result.plan, inputs())
    assert check.exact, check
    with torch.no_grad():
        assert model(*inputs()).shape == original(*inputs()).shape


def test_what_stays_is_what_a_program_with_slices_computes() -> None:
    """Groups of 12 over 64 + 32: written out by hand with the kept channels of the original weights."""
    torch.manual_seed(0)

    class Seam(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(3, 32, 3, padding=1)
            self.norm, self.out = nn.GroupNorm(8, 96), nn.Conv2d(96, 5, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.norm(torch.cat([self.a(x), self.b(x)], 1)).relu())

    model = Seam()
    with torch.no_grad():
        model.norm.weight.normal_()
        model.norm.bias.normal_()
    old, x = copy.deepcopy(model), torch.randn(2, 3, 6, 6)
    graph = pk.DependencyGraph().build_dependency(model, x)
    (group,) = graph.groups()
    assert (group.name, group.size, group.kind) == ("a", 4, pk.Kind.CHANNELS)
    assert graph.explain("a").dims["a.weight[0]"] == "(16 x a[4])"
    assert graph.explain("norm").dims["norm.weight[0]"] == "((16 x a[4]) + (8 x a[4]))"
    pk.Group(graph, {"a": (1, 2)}, None).prune()  # units 1 and 2 leave
    keep = torch.tensor([p for p in range(96) if p % 4 in (0, 3)])
    with torch.no_grad():
        joined = torch.cat([old.a(x), old.b(x)], 1)[:, keep]
        expected = F.group_norm(joined, 8, old.norm.weight[keep], old.norm.bias[keep], old.norm.eps).relu()
        expected = F.conv2d(expected, old.out.weight[:, keep], old.out.bias)
        torch.testing.assert_close(model(x), expected)
    assert (model.norm.num_groups, model.norm.num_channels) == (8, 48)
    assert (model.a.out_channels, model.b.out_channels, model.out.in_channels) == (32, 16, 48)


class GroupedJoin(nn.Module):
    """A grouped convolution whose groups straddle the seam of a concat."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 1), nn.Conv2d(3, 8, 1)
        self.mid, self.out = nn.Conv2d(24, 16, 3, padding=1, groups=2), nn.Conv2d(16, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.mid(torch.cat([self.a(x), self.b(x)], 1)).relu())


class HeadsOverJoin(nn.Module):
    """Heads of width 12 over two joined projections, 32 + 16."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(8, 32), nn.Linear(8, 16), nn.Linear(48, 5)
        self.stem, self.k, self.v = nn.Linear(6, 8), nn.Linear(8, 48), nn.Linear(8, 48)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        queries = torch.cat([self.a(x), self.b(x)], -1)
        q, k, v = (t.unflatten(-1, (4, -1)).transpose(1, 2) for t in (queries, self.k(x), self.v(x)))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class OddHalves(nn.Module):
    """Three rows of 32 columns are flattened and halved: the cut lies in the middle of a row."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 32), nn.Linear(48, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, value = self.first(x).flatten(1).chunk(2, 1)
        return self.last(gate.sigmoid() * value)


@pytest.mark.parametrize(
    ("model", "x", "widths"),
    [
        (GroupedJoin, (2, 3, 6, 6), {"a": 8, "b": 4, "mid": 8}),
        (HeadsOverJoin, (2, 3, 6), {"a": 16, "b": 8, "k": 24, "v": 24, "stem": 4}),
        (OddHalves, (2, 3, 6), {"first": 16}),
    ],
)
def test_other_seams_go_in_blocks_as_well(model: type[nn.Module], x: tuple[int, ...], widths: dict[str, int]) -> None:
    torch.manual_seed(0)
    old, example = model(), torch.randn(x)
    new = copy.deepcopy(old)
    result = pk.prune(new, example)
    assert not result.report.not_understood
    assert {name: len(new.get_submodule(name).weight) for name in widths} == widths
    assert pk.check_exact(old, new, result.plan, example).exact
