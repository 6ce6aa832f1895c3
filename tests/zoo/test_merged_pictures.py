"""Vision-language models: features of pictures are written over the embeddings of placeholder tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import prunekit as pk

PICTURE = 19


def expanded(ids: torch.Tensor, embeds: torch.Tensor) -> torch.Tensor:
    return (ids == PICTURE).unsqueeze(-1).expand_as(embeds)


def unsqueezed(ids: torch.Tensor, embeds: torch.Tensor) -> torch.Tensor:
    return (ids == PICTURE)[..., None]


def repeated(ids: torch.Tensor, embeds: torch.Tensor) -> torch.Tensor:
    return (ids == PICTURE)[..., None].repeat(1, 1, embeds.shape[-1]).to(embeds.device)


def masked_scatter(embeds: torch.Tensor, mask: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    return embeds.masked_scatter(mask, features.to(embeds.dtype))


def flat_source(embeds: torch.Tensor, mask: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    return embeds.masked_scatter(mask, features.reshape(-1))


def written(embeds: torch.Tensor, mask: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    embeds = embeds.clone()
    embeds[mask.expand_as(embeds)] = features.flatten()
    return embeds


def counted(embeds: torch.Tensor, mask: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """As transformers does: the numbers of elements are compared first, and the mask's first column is used again."""
    mask = mask.expand_as(embeds)
    if embeds[mask].numel() != features.numel():
        raise ValueError("features and placeholders don't match")
    merged = embeds.masked_scatter(mask, features)
    return merged + torch.where(mask[..., 0, None], 0.5, 0.25)


class Merged(nn.Module):
    def __init__(
        self,
        mask: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        merge: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> None:
        super().__init__()
        self.mask, self.merge = mask, merge
        self.embed, self.see = nn.Embedding(20, 32), nn.Linear(12, 32)
        self.up, self.down, self.drop = nn.Linear(32, 64), nn.Linear(64, 32), nn.Dropout(0.0)
        self.head = nn.Linear(32, 7)

    def forward(self, ids: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        embeds = self.embed(ids)
        embeds = self.merge(embeds, self.mask(ids, embeds), self.see(pixels))
        if self.training:
            embeds = embeds * 1.5
        return self.head(embeds + self.down(self.drop(self.up(embeds).relu())))


@pytest.mark.parametrize("merge", [masked_scatter, flat_source, written, counted])
@pytest.mark.parametrize("mask", [expanded, unsqueezed, repeated])
def test_the_stream_shrinks_where_the_mask_is_the_same_along_it(
    mask: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    merge: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    torch.manual_seed(0)
    ids = torch.tensor([[1, 2, PICTURE, PICTURE, 5], [PICTURE, 3, PICTURE, 4, 6]])
    inputs = ids, torch.randn(4, 12)
    model = Merged(mask, merge).eval()
    original = copy.deepcopy(model)
    result = pk.prune(model, inputs)
    assert result.report.pruned == {"embed#stream": (32, 16), "up": (64, 32)}
    stream, inner = (next(list(c.kept) for c in result.plan.cuts if c.group == g) for g in ("embed#stream", "up"))
    with torch.no_grad():  # the same program with slices of the weights, by hand
        embeds = original.embed.weight[:, stream][ids].clone()
        embeds[ids == PICTURE] = original.see(inputs[1])[:, stream]
        if merge is counted:
            embeds += torch.where(ids == PICTURE, 0.5, 0.25)[..., None]
        for training in (False, True):
            x = embeds * 1.5 if training else embeds
            hidden = (x @ original.up.weight[inner][:, stream].T + original.up.bias[inner]).relu()
            x = x + hidden @ original.down.weight[stream][:, inner].T + original.down.bias[stream]
            expected = x @ original.head.weight[:, stream].T + original.head.bias
            torch.testing.assert_close(model.train(training)(*inputs), expected)
    assert pk.check_exact(original, model.eval(), result.plan, inputs).exact


def test_a_mask_that_differs_along_the_stream_pins_it() -> None:
    def uneven(ids: torch.Tensor, embeds: torch.Tensor) -> torch.Tensor:
        mask = expanded(ids, embeds).clone()
        mask[..., 0] = False
        return mask

    ids = torch.tensor([[1, 2, PICTURE, PICTURE, 5]])
    report = pk.prune(Merged(uneven, flat_source), (ids, torch.randn(4, 12))).report
    assert report.pruned == {"up": (64, 32)}
