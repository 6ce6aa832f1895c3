"""Sizes that a program computes from each other in several blocks at once: one stream, and a head width in each."""

import copy

import pytest
import torch
from torch import Tensor, nn

import prunekit as pk

IDS = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(1))
BLOCKS = 3


class Mixer(nn.Module):
    """Attention whose heads are joined to the width of its input: ``heads * head_dim`` has to be the stream's width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
        return x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.mixers = nn.ModuleList(Mixer(32, 4) for _ in range(BLOCKS))
        self.head = nn.Linear(32, 7)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for mixer in self.mixers:
            x = mixer(x)
        return self.head(x[:, -1])


def tower() -> Tower:
    torch.manual_seed(0)
    return Tower().double().eval()


@pytest.mark.parametrize("least", range(BLOCKS))
def test_one_head_width_that_should_shrink_takes_the_stream_and_those_of_all_blocks_along(least: int) -> None:
    model = tower()
    stated = {f"mixers.{least}.qkv": 0.5}
    pruner = pk.BasePruner(model, IDS, "magnitude", pruning_ratio=0.0, pruning_ratio_dict=stated)
    plan = pruner.plan()
    widths = {f"mixers.{block}.qkv#head_dim" for block in range(BLOCKS)}
    assert [tie & widths for tie in pruner.graph.knowledge.ties] == [widths]
    assert not pruner.graph.knowledge.restored
    # the fraction that they have together: one of the widths of 8 was cut to 4, out of 3 x 8 + 32
    sizes = {cut.group.rpartition("#")[2]: len(cut.kept) for cut in plan.cuts}
    assert sizes == {"head_dim": 7, "stream": 28}
    smaller = copy.deepcopy(model)
    pruner.graph.apply(plan)
    assert pk.check_exact(smaller, model, plan, IDS)


def test_a_target_that_is_shared_out_by_calibration_is_met_where_sizes_are_in_step() -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        model = Tower().double().eval()
        with torch.no_grad():
            model.mixers[-1].out.weight.mul_(0.05)  # so that its heads are the first to shrink
        original, dense = copy.deepcopy(model), sum(weight.numel() for weight in model.parameters())
        batches = [torch.randint(0, 50, (8, 9)) for _ in range(4)]
        result = pk.prune(model, IDS, target={"params": 0.6}, calibration=batches, compensation=None)
        left = sum(weight.numel() for weight in model.parameters()) / dense
        assert 0.35 < left <= 0.6, seed
        assert pk.check_exact(original, model, result.plan, IDS), seed
        width = model.embed.embedding_dim
        assert all(mixer.qkv.weight.shape == (3 * width, width) for mixer in model.mixers), seed
