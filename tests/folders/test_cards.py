"""The card of a model says what was done to it, and what of that was kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_plugins.folders.cards import Provenance, card
from prunekit_plugins.folders.library import Opening
from prunekit_plugins.integrations.configuration import ConfigUpdate


def written(distillation: pk.Distillation | None = None, protocol: pk.Protocol | None = None) -> str:
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


def calibrated(calibration: Mapping[str, Any] | None) -> pk.Protocol:
    return pk.Protocol("Net", "", {}, {}, 0, {}, calibration, {}, {})


@pytest.mark.parametrize(
    ("calibration", "said"),
    [
        (None, "whole units were removed; nothing was trained."),
        ({"examples": 1, "fitted": {}}, "removed, calibrated with 1 example, no weights were fitted, and nothing was"),
        (
            {"examples": 64, "fitted": {"least_squares": "4 layers", "batchnorm": "2 batch norms"}},
            "64 examples, weights were fitted (`least_squares`: 4 layers, `batchnorm`: 2 batch norms), and nothing was",
        ),
        ({"examples": None, "fitted": {}}, "removed, calibration data were read, no weights were fitted, and nothing"),
    ],
)
def test_calibration_and_what_was_fitted_are_said(calibration: Mapping[str, Any] | None, said: str) -> None:
    assert said in written(protocol=calibrated(calibration))


@pytest.mark.parametrize("compensation", [("least_squares",), None])
def test_what_prune_did_with_data_is_on_the_card(compensation: tuple[str, ...] | None) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 5)).eval()
    batches = [torch.randn(40, 6), torch.randn(24, 6)]
    result = pk.prune(model, batches[0], 0.5, calibration=iter(batches), compensation=compensation)
    done = [] if result.compensation is None else result.compensation.layers
    assert len(done) == (2 if compensation else 0)
    fitted = {"least_squares": "2 layers"} if compensation else {}
    assert result.protocol.calibration == {"examples": 64, "fitted": fitted}
    assert pk.Protocol.from_json(result.protocol.to_json()) == result.protocol
    said = "weights were fitted (`least_squares`: 2 layers)" if compensation else "no weights were fitted"
    assert f"calibrated with 64 examples, {said}, and nothing was trained." in written(protocol=result.protocol)
