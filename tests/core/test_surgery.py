"""Large tensors are cut in pieces: the same values, and never a second copy on the way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from prunekit.plugin import select_positions
from prunekit_core.modules import surgery


class Made(TorchDispatchMode):
    """Notes how many elements the results of index_select have."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.index_select.default:
            self.sizes.append(result.numel())
        return result


TENSORS = [
    torch.arange(20 * 30).reshape(20, 30).float(),
    torch.arange(20 * 30).reshape(30, 20).t(),
    torch.arange(8 * 6 * 5 * 5).reshape(8, 6, 5, 5).double().to(memory_format=torch.channels_last),
    torch.arange(7 * 9 * 11).reshape(7, 9, 11).half(),
]


def kept(size: int) -> torch.Tensor:
    return torch.tensor([place for place in range(size) if place % 4 != 1])


@pytest.mark.parametrize("piece", [1, 16, 100, 299])
@pytest.mark.parametrize("tensor", TENSORS, ids=lambda tensor: str(tuple(tensor.shape)))
def test_pieces_give_what_one_cut_gives(tensor: torch.Tensor, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for dims in [(0, 1), (1, tensor.dim() - 1), tuple(range(tensor.dim()))]:
        positions = {dim: kept(tensor.shape[dim]) for dim in dims}
        places = [kept(size) if dim in dims else torch.arange(size) for dim, size in enumerate(tensor.shape)]
        expected = tensor[torch.meshgrid(*places, indexing="ij")]
        with Made() as whole:
            assert torch.equal(select_positions(tensor, positions), expected)
        with monkeypatch.context() as patch:
            patch.setattr(surgery, "_PIECE", piece)
            with Made() as made:
                found = select_positions(tensor, positions)
        assert torch.equal(found, expected)
        assert found.dtype == tensor.dtype
        assert found.is_contiguous()
        assert len(set(dims)) == 1 or len(made.sizes) > len(whole.sizes)


def test_nothing_as_large_as_the_tensor_is_made_on_the_way() -> None:
    weight = nn.Parameter(torch.randn(1500, 1000))
    positions = {0: torch.arange(1490), 1: torch.arange(1, 1000)}
    with Made() as made:
        surgery.shrink_tensor(weight, positions)
    assert weight.shape == (1490, 999)
    assert max(made.sizes) < 0.4 * 1500 * 1000
