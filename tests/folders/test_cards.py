"""The card of a model says what was done to it, and what of that was kept."""

from __future__ import annotations

import pytest
from torch import nn

import prunekit as pk
from prunekit_plugins.folders.cards import Provenance, card
from prunekit_plugins.folders.library import Opening
from prunekit_plugins.integrations.configuration import ConfigUpdate


def written(distillation: pk.Distillation | None = None, protocol: pk.plugin.Protocol | None = None) -> str:
    """A card in one line."""
    made = Provenance("Net", "plan.json", protocol, distillation, {}, "transformers", "")
    return " ".join(card(made, Opening((), "open()"), ConfigUpdate({}, ())).split())


@pytest.mark.parametrize(
    ("steps", "best", "said"),
    [
        (30, 30, "; the rest was trained for 30 steps towards the outputs of the unpruned model."),
        (
            30,
            20,
            " trained for 30 steps towards the outputs of the unpruned model, of which those up to step 20 were kept",
        ),
        (
            30,
            0,
            "; nothing of a training was kept: 30 steps towards the outputs of the unpruned model made it no better",
        ),
        (1, 0, "; nothing of a training was kept: 1 step towards the outputs of the unpruned model made it no better"),
    ],
)
def test_the_state_that_was_kept_is_said(steps: int, best: int, said: str) -> None:
    losses, held_out = {"logits": (2.0, 1.5)}, ((0, 3.0), (best, 2.5)) if best else ((0, 3.0), (steps, 4.0))
    found = written(pk.Distillation(nn.Identity(), steps, losses, held_out, best))
    assert said in found
    assert ("the rest was trained" in found) == (best > 0)
    assert f"before training, and as kept | 3 | {2.5 if best else 3} |" in found


def test_without_a_distillation_nothing_was_trained() -> None:
    assert "; nothing was trained." in written()
