"""Proving the costs of caches on a small model that returns one, as the kit's own network does not."""

from __future__ import annotations

import torch
from torch import nn

from prunekit_core.graph.graph import Graph
from prunekit_core.groups.costs import compiled_cost
from prunekit_core.plugins.registry import Registry

_TOKENS = 5


class Remembering(nn.Module):
    """A layer that returns the values of all tokens for its next call."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.out = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor, cache: list[torch.Tensor] | None = None) -> dict[str, object]:
        """Sums the values of all tokens so far."""
        values = self.value(x)
        if cache is not None:
            values = torch.cat([cache[0], values], 1)
        return {"out": self.out(values.cumsum(1)[:, -x.shape[1] :]), "cache": [values]}


def check_cache(registry: Registry) -> None:
    """Checks that the cache is counted by its bytes, before a cut and after it.

    Raises:
        AssertionError: It isn't.
    """
    x = torch.zeros(2, _TOKENS, 4, device="cpu")
    graph = Graph.of(Remembering().to("cpu"), x, free_outputs=["cache"], registry=registry)
    (group,) = graph.analysis.groups
    for kept in (6, 2):
        cache = 4.0 * 2 * _TOKENS * kept
        whole = cache + 4 * (4 * kept + kept + kept * 4 + 4)
        found = [compiled_cost(registry, name, graph.analysis)({group: kept}) for name in ("kv_cache", "kv_memory")]
        assert found == [cache, whole], f"with {kept} units the cache and its model take {found}, not {[cache, whole]}"
