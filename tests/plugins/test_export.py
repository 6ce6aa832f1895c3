"""Pruned models go through every exporter, and what comes out computes the same."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_plugins.export import ExportError, export_onnx, export_program
from prunekit_plugins.export.comparison import arguments_of, compare, tensors_of
from tests.zoo.families import build

pytest.importorskip("onnxruntime")


def exported(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return torch.export.export(model, args, kwargs).module()(*args, **kwargs)


def compiled(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    torch._dynamo.reset()
    return torch.compile(model, backend="aot_eager")(*args, **kwargs)


def traced(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    program = torch.jit.trace(model, args or None, example_kwarg_inputs=kwargs or None, check_trace=False)
    return program(*args, **kwargs)


def in_onnx(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return torch.onnx.export(model, args, kwargs=kwargs, dynamo=True, verbose=False)(*args, **kwargs)


PATHS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "torch.export": (exported, ("residual", "encoder", "attention", "lstm", "shufflenet", "vit", "llama")),
    "torch.compile": (compiled, ("residual", "encoder", "attention")),
    "TorchScript": (traced, ("residual", "encoder", "attention", "lstm", "shufflenet", "vit")),
    "ONNX": (in_onnx, ("residual", "attention")),
}
"""Exporter to a function that runs what it makes of a model, and the families that are tried."""


@pytest.mark.slow
@pytest.mark.parametrize(("path", "family"), [(path, family) for path in PATHS for family in PATHS[path][1]])
def test_pruned_models_are_exported(path: str, family: str) -> None:
    model, inputs = build(family, seed=0)
    result = pk.prune(model, inputs)
    assert result.plan.cuts
    args, kwargs = arguments_of(inputs)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is on its way out, tracing warns of every branch
        expected = tensors_of(model(*args, **kwargs))
        found = tensors_of(PATHS[path][0](model, args, kwargs))
    assert len(found) == len(expected) > 0
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


class Scaled(nn.Module):
    """Takes its inputs by name, and leaves one of them alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, unused: torch.Tensor, *, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": self.second(self.first(x).relu()) * scale, "x": x + 1}


def test_inputs_by_name_and_several_outputs(tmp_path: Path) -> None:
    inputs = {"scale": torch.randn(3), "x": torch.randn(2, 4), "unused": torch.randn(2, 4)}
    model = Scaled().train()
    pk.prune(model, inputs)
    found = export_onnx(model, inputs, tmp_path / "x.onnx")
    assert found.outputs == 2
    assert found.error < 1e-5
    assert found.bytes == (tmp_path / "x.onnx").stat().st_size
    assert model.training
    assert model.first.training
    assert export_program(model, inputs, tmp_path / "x.pt2").error == 0


class Branches(nn.Module):
    """Goes another way for other values, which no exporter can follow."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.sum() > 0 else x - 1


def test_what_the_exporter_refuses_is_told(tmp_path: Path) -> None:
    for export in (export_program, export_onnx):
        with pytest.raises(ExportError, match=r"The model can't be exported\.") as caught:
            export(Branches(), torch.ones(2), tmp_path / "x")
        assert caught.value.__cause__ is not None
    with pytest.raises(pk.ArgumentError, match="The file to write can't be made"):
        export_program(nn.Linear(2, 2), torch.ones(1, 2), tmp_path / "nosuch" / "x.pt2")
    assert list(tmp_path.iterdir()) == []


def test_the_comparison_can_fail() -> None:
    x = torch.tensor([1.0, -4.0])
    assert compare([x * 1.0001], [x], 1e-3, "") == (pytest.approx(1e-4, rel=1e-2), 1e-3)
    assert compare([], [], None, "") == (0.0, 0.0)
    for wrong in (x * 1.01, x * float("nan")):
        with pytest.raises(ExportError, match="computes something else"):
            compare([wrong], [x], None, "")
    with pytest.raises(ExportError, match="has other outputs"):
        compare([x[:1]], [x], None, "")
