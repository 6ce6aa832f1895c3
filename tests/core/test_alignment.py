"""align="auto": the multiple for a device and dtype, on prune, BasePruner and the command line."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit import plugin
from prunekit_core.choose.alignment import auto_alignment
from tests.models import Chain

X = torch.randn(1, 4)


@pytest.mark.parametrize(
    ("unit", "dtype", "multiple"),
    [
        ("AVX512", torch.float32, 16),
        ("AVX512", torch.bfloat16, 32),
        ("AVX2", torch.float32, 8),
        ("AVX2", torch.float64, 4),
        ("DEFAULT", torch.float32, 4),
        ("something new", torch.float16, 8),
    ],
)
def test_cpus(monkeypatch: pytest.MonkeyPatch, unit: str, dtype: torch.dtype, multiple: int) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: unit)
    found = auto_alignment(nn.Linear(2, 2).to(dtype))
    assert found.multiple == multiple
    assert unit in found.why


def test_sizes_are_multiples_and_the_report_says_of_what(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    note = "sizes are multiples of 8 (float32 on cpu: vector registers of 32 bytes, AVX2)"
    model = Chain(4, 100, 60, 3)
    result = pk.prune(model, X, target={"macs": 0.5}, align="auto")
    assert all(len(cut.kept) % 8 == 0 for cut in result.plan.cuts)
    assert note in result.report.notes
    before, after = result.preview.costs["macs"]
    assert 0.4 < after / before <= 0.5
    pruner = pk.BasePruner(Chain(4, 100, 3), X, "magnitude", align="auto")
    pruner.step()
    assert pruner.model.layers[0].out_features == 48
    assert note in pruner.report().notes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"align": "yes"}, 'align must be "auto".'),
        ({"align": "auto", "round_to": 8}, "Give round_to or align, not both."),
        ({"round_to": 0}, "round_to must be a positive integer."),
    ],
)
def test_wrong_arguments(options: dict[str, object], message: str) -> None:
    with pytest.raises(pk.ArgumentError, match=message.replace(".", r"\.")):
        pk.prune(Chain(4, 8, 3), X, **options)


def test_unknown_devices_are_refused() -> None:
    with pytest.raises(pk.ArgumentError, match="knows nothing about this device"):
        auto_alignment(nn.Linear(2, 2, device="meta"))
    with pytest.raises(pk.ArgumentError, match="floating-point"):
        auto_alignment(nn.ReLU())


@pytest.mark.parametrize(
    ("text", "value"), [("4.5G", 4.5e9), ("250k", 250e3), ("1Ki", 1024.0), ("2e6", 2e6), ("17", 17.0)]
)
def test_amounts_with_prefixes(text: str, value: float) -> None:
    assert plugin.CostModel().absolute(text) == value


def test_bytes_are_only_bytes() -> None:
    class Bytes(plugin.CostModel):
        unit = "bytes"

    assert Bytes().absolute("90MB") == 90e6
    assert Bytes().absolute("2 GiB") == 2 * 1024**3
    with pytest.raises(ValueError, match="no amount"):
        plugin.CostModel().absolute("90MB")
