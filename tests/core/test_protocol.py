"""How a result came about, as data."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from pathlib import Path

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_plugins.importance import GroupMagnitudeImportance
from tests.models import Residual

X = torch.randn(2, 3, 8, 8)


def test_a_result_carries_what_is_needed_to_do_it_again(tmp_path: Path) -> None:
    torch.manual_seed(5)
    model = Residual()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    result = pk.prune(
        model,
        X,
        0.25,
        importance=GroupMagnitudeImportance(p=1),
        ignored_layers=[model.fc, nn.Linear, "conv2"],
        pruning_ratio_dict={model.conv1: 0.5},
        optimizer=optimizer,
        isomorphic=False,
    )
    found = result.protocol
    assert found.model == "tests.models.Residual"
    assert (found.source, found.seed, found.calibration) == ("", 5, None)
    assert found.versions == {
        "prunekit": metadata.version("prunekit"),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    assert found.plugins["prunekit:importance"] == metadata.version("prunekit")
    # 3*8*9+8 + 16 + 8*12*9+12 + 24 + 12*8*9+8 + 16 + 8*5+5
    assert found.dense["params"] == 2073 == result.preview.params_before
    assert found.pruned["params"] == sum(p.numel() for p in model.parameters())
    assert found.pruned["macs"] < found.dense["macs"]
    criterion = found.arguments["importance"]
    assert criterion["class"].endswith("GroupMagnitudeImportance")
    assert criterion["p"] == 1
    del found.arguments["importance"]
    assert found.arguments == {
        "example_inputs": {"shape": [2, 3, 8, 8], "dtype": "torch.float32"},
        "ratio": 0.25,
        "global_pruning": False,
        "max_pruning_ratio": 1.0,
        "ignored_layers": ["fc", "torch.nn.modules.linear.Linear", "conv2"],
        "pruning_ratio_dict": {"conv1": 0.5},
        "optimizer": "torch.optim.sgd.SGD",
        "isomorphic": False,
    }
    assert pk.Protocol.from_json(found.to_json()) == found
    pk.save(model, tmp_path / "x.safetensors", plan=result.plan, protocol=found)
    assert pk.read_protocol(tmp_path / "x.safetensors") == found
    pk.save(model, tmp_path / "x.safetensors", plan=result.plan)
    assert pk.read_protocol(tmp_path / "x.safetensors") is None


def test_a_target_stands_instead_of_a_ratio() -> None:
    arguments = pk.prune(Residual(), X, target={"macs": 0.5}).protocol.arguments
    assert arguments["target"] == {"macs": 0.5}
    assert "ratio" not in arguments


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": 2, "seed": 0}'])
def test_what_is_no_protocol_is_told(text: str) -> None:
    with pytest.raises(pk.CheckpointError, match="The protocol can't be read"):
        pk.Protocol.from_json(text)


def test_everything_in_it_is_json() -> None:
    class Odd:
        def __init__(self) -> None:
            self.numbers, self.model, self.nothing, self._hidden = [1, 2.5], Residual(), float("nan"), 3

        def __call__(self, group: pk.Group) -> torch.Tensor:
            return torch.arange(float(group.size()))

    data = json.loads(pk.prune(Residual(), X, importance=Odd()).protocol.to_json())
    assert data["arguments"]["importance"] == {"class": Odd.__module__ + "." + Odd.__qualname__, "numbers": [1, 2.5]}
