"""Moving code changes nothing: what `replay` writes down has the digests that are stored."""

from __future__ import annotations

import json

import pytest
import torch

import prunekit as pk
from prunekit_core import errors
from prunekit_core.algebra import axes
from tests import replay
from tests.zoo import test_wounds

STORED = json.loads(replay.STORED.read_text())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_nothing_changed() -> None:
    """Where something did on purpose: ``python -m tests.replay --store``, with each torch that is stored, in a commit
    that says why."""
    stored = STORED.get(replay.torch_series())
    if stored is None:
        pytest.skip(f"the digests are those of torch {', '.join(STORED)}: another version runs other operations")
    found = replay.digests()
    assert len(found) > 250
    changed = {name for name in found if found[name] != stored.get(name)}
    assert not changed
    needed = {name for name in stored if name.split()[-1] not in replay.test_families.NEEDS}
    assert needed <= found.keys()


def unet() -> str:
    return replay.of_model(lambda: (test_wounds.UNet(), torch.zeros(test_wounds.PICTURE)))


def test_one_reason_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    before = unet()
    assert unet() == before
    monkeypatch.setattr(axes.Reason, "__str__", lambda reason: reason.text.replace("an input", "the input"))
    assert unet() != before


def test_one_plan_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    before = unet()
    kept = pk.Plan.to_json
    monkeypatch.setattr(pk.Plan, "to_json", lambda plan: kept(plan).replace('"size": 6', '"size": 7'))
    assert unet() != before


def test_one_error_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    call = replay.ERRORS["a ratio of one"]
    before = replay.error_of(call)
    assert before.startswith("ArgumentError (PrunekitError, ValueError")
    monkeypatch.setattr(errors.PrunekitError, "__str__", lambda error: error.headline)
    assert replay.error_of(call) != before
