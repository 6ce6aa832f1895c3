"""Functions that have captured parts of a model: what they read of them is followed like anything else."""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn

import prunekit as pk

Way = Callable[["Divided"], Callable[[], int]]


class Divided(nn.Module):
    """Divides what one layer computes by a number."""

    def __init__(self, *, by_value: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)
        self.width: Callable[[], int] = lambda: 8
        self.by_value = by_value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.by_value and x.sum() > 1e9:
            x = -x
        y: torch.Tensor = self.last(self.first(x).relu() / self.width())
        return y


def a_parameter(model: Divided) -> Callable[[], int]:
    weight = model.first.weight
    return lambda: weight.shape[0]


def a_module(model: Divided) -> Callable[[], int]:
    layer = model.first
    return lambda: len(layer.weight)


def another_function(model: Divided) -> Callable[[], int]:
    inner = a_parameter(model)
    return lambda: inner()


def a_partial(model: Divided) -> Callable[[], int]:
    bias = model.first.bias
    return functools.partial(lambda number: number + bias.shape[0] - number, 3)


def a_method(model: Divided) -> Callable[[], int]:
    get = model.first.get_parameter
    return lambda: get("weight").shape[0]


def a_default_of_keywords(model: Divided) -> Callable[[], int]:
    layer = model.first

    def width(*, more: int = 0) -> int:
        return int(layer.bias.numel()) + more

    return width


def a_default_argument(model: Divided) -> Callable[[], int]:
    return lambda weight=model.first.weight: weight.shape[0]


def a_module_by_default(model: Divided) -> Callable[[], int]:
    def width(*, layer: nn.Linear = model.first) -> int:
        return layer.weight.shape[0]

    return width


def a_function_by_default(model: Divided) -> Callable[[], int]:
    function = a_default_argument(model)
    return lambda inner=function: inner()


def a_method_of_a_tensor(model: Divided) -> Callable[[], int]:
    size = model.first.weight.size
    return lambda: size(0)


def a_method_of_a_tensor_as_it_is(model: Divided) -> Callable[[], int]:
    return model.first.bias.numel


def a_partial_of_a_method(model: Divided) -> Callable[[], int]:
    return functools.partial(model.first.weight.size, 0)


def a_cache(model: Divided) -> Callable[[], int]:
    layer = model.first
    return functools.lru_cache(lambda: layer.out_features)


WAYS: list[Way] = [
    a_method_of_a_tensor,
    a_method_of_a_tensor_as_it_is,
    a_partial_of_a_method,
    a_cache,
    a_default_argument,
    a_module_by_default,
    a_function_by_default,
    a_parameter,
    a_module,
    another_function,
    a_partial,
    a_method,
    a_default_of_keywords,
]


@pytest.mark.parametrize("by_value", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_sizes_that_captured_tensors_have_are_followed(way: Way, by_value: bool) -> None:
    torch.manual_seed(0)
    model, x = Divided(by_value=by_value), torch.randn(2, 4)
    model.width = way(model)
    dense = copy.deepcopy(model.state_dict())
    result = pk.prune(model, x, verify="always")
    assert result.verification.check is not None
    assert not [note for note in result.report.notes if "WARNING" in note]
    kept = list(result.plan.cuts[0].kept)
    assert (len(kept), model.width()) == (4, 4)
    # the number of units that it divides by is made up for in the weights
    hidden = (x @ dense["first.weight"][kept].T + dense["first.bias"][kept]).relu() / 8
    torch.testing.assert_close(model(x), hidden @ dense["last.weight"][:, kept].T + dense["last.bias"])


def test_hooks_that_captured_tensors_are_followed() -> None:
    torch.manual_seed(0)
    model, x = Divided(by_value=False), torch.randn(2, 4)
    weight = model.first.weight
    model.first.register_forward_hook(lambda module, args, output: output * (8 / weight.shape[0]))
    dense = copy.deepcopy(model.state_dict())
    result = pk.prune(model, x, verify="always")
    assert result.verification.check is not None
    kept = list(result.plan.cuts[0].kept)
    hidden = (x @ dense["first.weight"][kept].T + dense["first.bias"][kept]).relu() / 8
    torch.testing.assert_close(model(x), hidden @ dense["last.weight"][:, kept].T + dense["last.bias"])


def test_the_functions_of_the_model_stay_the_same() -> None:
    model = Divided(by_value=False)
    model.width = function = a_module(model)
    layer = model.first
    pk.prune(model, torch.randn(2, 4))
    assert model.width is function
    assert function.__closure__ is not None
    assert function.__closure__[0].cell_contents is layer is model.first


HIDDEN = nn.Linear(4, 8)


def global_width() -> int:
    return HIDDEN.weight.shape[0]


def test_global_variables_are_told() -> None:
    model = Divided(by_value=False)
    model.first = HIDDEN
    model.width = lambda: global_width()
    notes = pk.DependencyGraph().build_dependency(model, torch.randn(2, 4)).report().notes
    assert len([note for note in notes if "WARNING" in note and "the global variable HIDDEN" in note]) == 1


class Weak(Divided):
    def __init__(self, of: str) -> None:
        super().__init__(by_value=False)
        self.reference = weakref.ref(self.get_parameter("first.weight") if of == "weight" else self.first)
        self.width = lambda: 8

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        held = self.reference()
        assert held is not None
        y: torch.Tensor = self.last(self.first(x).relu() / len(getattr(held, "weight", held)))
        return y


@pytest.mark.parametrize("of", ["weight", "layer"])
def test_weak_references_are_followed(of: str) -> None:
    torch.manual_seed(0)
    model, x = Weak(of), torch.randn(2, 4)
    dense = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = pk.prune(model, x, verify="always")
    kept = list(result.plan.cuts[0].kept)
    hidden = (x @ dense["first.weight"][kept].T + dense["first.bias"][kept]).relu() / 8
    torch.testing.assert_close(model(x), hidden @ dense["last.weight"][:, kept].T + dense["last.bias"])


def test_a_recording_fills_no_cache_of_the_model() -> None:
    model = Divided(by_value=False)
    model.width = a_cache(model)
    pk.DependencyGraph().build_dependency(model, torch.randn(2, 4))
    assert model.width.cache_info().currsize == 0  # type: ignore[attr-defined]


class ByAClass(Divided):
    """Reads a size where no copy of the model can follow."""

    layer: nn.Linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last(self.first(x).relu() / type(self).layer.out_features)
        return y


def test_what_is_read_past_the_model_is_seen_once_it_is_cut() -> None:
    """The copy reads the model's own layer, which is whole until then; the cut is undone."""
    torch.manual_seed(0)
    model, x = ByAClass(by_value=False), torch.randn(2, 4)
    ByAClass.layer = model.first
    tensors = {name: (tensor, tensor.clone()) for name, tensor in model.named_parameters()}
    with pytest.raises(pk.VerificationError, match="what a pruned copy of it computes"):
        pk.prune(model, x, verify="always")
    for name, tensor in model.named_parameters():
        assert tensor is tensors[name][0]
        assert torch.equal(tensor, tensors[name][1])
    assert (model.first.out_features, model.last.in_features) == (8, 8)
