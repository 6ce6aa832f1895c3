"""Statistics of experts on several processes."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

import prunekit as pk
from prunekit_plugins import distributed
from prunekit_plugins.importance import ExpertFrequencyImportance, REAPImportance
from tests.core.test_experts import WIDTH, Looped
from tests.distributed import toys


def joined(world: int) -> None:
    """What is known of the experts of a mixture, joined, is what one process finds in all data."""
    rank = dist.get_rank()
    model = toys.weights(Looped).eval()
    with torch.no_grad():
        model.router.bias[0] = -1e4  # nobody reaches it
    tokens = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(5)).to(toys.DEVICE)
    tokens[:32] = tokens[0]  # the first half reaches few experts

    def gather(part: torch.Tensor) -> pk.Statistics:
        return pk.calibrate(model, part.split(8), parts=("routing", "contributions", "products", "rerouting"))

    whole, shares = gather(tokens), [gather(tokens[r * 64 // world : (r + 1) * 64 // world]) for r in range(world)]
    found = distributed.reduce_calibration(shares[rank])
    (name,) = whole.experts
    expected, own = whole.experts[name], found.experts[name]
    parts = [share.experts[name] for share in shares]
    assert (len(parts[0].unreached) > 1, len(expected.unreached)) == (world > 1, 1)
    assert (own.tokens, own.examples, own.top_k) == (expected.tokens, expected.examples, expected.top_k)
    assert torch.equal(own.routed, expected.routed)
    assert own.energy == pytest.approx(expected.energy)
    for part in ("weighted", "error", "products"):
        torch.testing.assert_close(getattr(own, part), getattr(expected, part))
    torch.testing.assert_close(own.damage, sum(part.damage for part in parts))  # of projections of their own
    assert own.effect == pytest.approx(sum(part.effect for part in parts))
    assert [note for note in found.notes if "never reached" in note] == list(expected.notes(name))
    group = pk.Graph.of(model, tokens[:4]).whole_group(name)
    for criterion in (ExpertFrequencyImportance, REAPImportance):
        torch.testing.assert_close(criterion(found)(group), criterion(whole)(group))
        assert criterion(found).unknown(group) == [0]
