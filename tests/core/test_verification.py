"""The second line of defence: a cut that isn't the masked original is refused, and the model is as it was."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunekit as pk
from prunekit import plugin
from prunekit_core.errors import VerificationError
from tests.models import Chain, Residual

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
PICTURE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.hidden(x))

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x).relu()


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(("model", "x"), [(Mlp(), X), (Residual(), PICTURE), (Mlp().double(), X.double())])
def test_a_right_cut_is_verified(model: nn.Module, x: torch.Tensor) -> None:
    result = pk.prune(model, x, verify="always")
    assert result.verification.check, result.verification
    assert result.verification.check.outputs == 1
    assert "verified: relative error" in str(result.verification)
    assert not [note for note in result.report.notes if "verified" in note]


def test_verifying_changes_nothing() -> None:
    first, second = Residual(), Residual()
    second.load_state_dict(first.state_dict())
    plans = [pk.prune(m, PICTURE, verify=wish).plan for m, wish in ((first, "never"), (second, "always"))]
    assert plans[0].to_json() == plans[1].to_json()
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert [p.requires_grad for p in second.parameters()] == [p.requires_grad for p in first.parameters()]


def wrong_rule(call: Any) -> Any:
    """Takes a flip for an operation on single elements."""
    return list(call["self"].axes)


class Flipped(Mlp):
    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x).relu().flip(-1)


def misled() -> pk.Registry:
    hook = plugin.hookimpl(lambda: {"aten::flip": wrong_rule}, specname="prunekit_op_rules")
    return pk.Registry(extra={"wrong": SimpleNamespace(hook=hook)})


def last(group: pk.Group) -> torch.Tensor:
    return torch.arange(group.size(), dtype=torch.float32)


def test_a_wrong_cut_is_refused_and_the_model_is_as_it_was() -> None:
    model = Flipped()
    before, objects = tensors(model), {name: id(p) for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(X).sum().backward()
    optimizer.step()
    before = tensors(model)
    with pytest.raises(VerificationError) as caught:
        pk.prune(model, X, importance=last, registry=misled(), verify="always", optimizer=optimizer)
    assert isinstance(caught.value, RuntimeError)
    assert "the output differs" in str(caught.value)
    assert 'verify="never"' in str(caught.value)
    assert model.a.out_features == 16
    assert {name: id(p) for name, p in model.named_parameters()} == objects
    after = tensors(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {tuple(s["momentum_buffer"].shape) for s in optimizer.state.values()} == {(16, 8), (16,), (4, 16), (4,)}
    pk.prune(model, X, importance=last, registry=misled(), verify="never")
    assert model.a.out_features == 8


def test_a_wrong_replacement_is_refused() -> None:
    class Special(nn.Linear):
        pass

    class Half(nn.Module):
        def __init__(self, source: nn.Module) -> None:
            super().__init__()
            self.weight, self.bias = source.weight, source.bias

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(x, self.weight, self.bias * 0.5)

    replacement = plugin.Replacement("stand-in", Special, Half)
    hook = plugin.hookimpl(lambda: {"stand-in": replacement}, specname="prunekit_replacements")
    registry = pk.Registry(extra={"replacing": SimpleNamespace(hook=hook)})
    model = nn.Sequential(Special(8, 16), nn.ReLU(), nn.Linear(16, 4))
    with pytest.raises(pk.PluginError, match="A replacement computes something else"):
        pk.prune(model, X, registry=registry, verify="never")
    assert type(model[0]) is Special


class Noisy(Mlp):
    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(self.a(x).relu(), 0.5, training=True)


class Infinite(Mlp):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + float("inf")


class Counts(Mlp):
    """Writes to a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.add_(1)
        return super().forward(x) + self.seen


def test_a_model_that_does_not_run_is_told_unasked() -> None:
    """Recordings on tensors without data may go where the model doesn't."""

    class Refusing(Mlp):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if type(x) is torch.Tensor:
                raise NotImplementedError("no kernel here")
            return super().forward(x)

    result = pk.prune(Refusing(), X)
    expected = "not verified: the masked original raised NotImplementedError: no kernel here"
    assert expected in result.report.notes


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (Noisy, "the program is random"),
        (Infinite, "no finite value"),
        (Counts, "writes to the parameter seen"),
        (lambda: Mlp().to("meta"), "no values"),
    ],
)
def test_what_can_t_be_compared_is_said(make: Callable[[], nn.Module], why: str) -> None:
    model = make()
    x = X.to(next(model.parameters()).device)
    result = pk.prune(model, x, importance=last, verify="always")
    assert result.verification.check is None
    assert why in result.verification.why
    assert any(note.startswith("not verified: ") and why in note for note in result.report.notes)


def test_a_mean_by_hand_is_compared_over_the_units_that_are_left() -> None:
    """The comparison divides the original's sum by the new number as well: it isn't in the way."""

    class Mean(Mlp):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = self.hidden(x)
            return super().forward(x) + hidden.sum(-1, keepdim=True) / hidden.shape[-1]

    result = pk.prune(Mean(), X, verify="always")
    (note,) = result.report.notes
    assert note.endswith("divides a sum by the number of units: a mean over those that are left")
    assert result.verification.check is not None
    assert result.verification.check.error < 1e-6


def test_notes_on_other_things_do_not_stand_in_the_way() -> None:
    """A target on a measured cost is noted in the plan."""
    result = pk.prune(Mlp(), X, target={"macs": 0.5, "latency": 1.0}, verify="always")
    assert any(note.startswith("latency: predicted") for note in result.plan.notes)
    assert result.verification.check is not None


def test_auto_compares_where_that_takes_little(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pk.prune(Mlp(), X).verification.check
    monkeypatch.setattr("prunekit_core.check.verification.COPIED_BYTES", 10)
    assert "memory" in pk.prune(Mlp(), X).verification.why
    monkeypatch.undo()
    monkeypatch.setattr("prunekit_core.check.verification.SECONDS", 1e-6)
    result = pk.prune(Mlp(), X)
    assert 'it would take more than 1e-06 s; verify="always" compares all the same' in result.verification.why
    assert not [note for note in result.report.notes if "verified" in note]
    assert pk.prune(Mlp(), X, verify="never").verification.check is None
    told = 'not verified: verify="never"; verify="always" compares the outputs'
    assert str(pk.prune(Mlp(), X, verify="never").verification) == told
    assert str(pk.prune(Mlp(), X, ratio=0.0, verify="always").verification) == "not verified"  # nothing went


TABLE: dict[str, nn.Module] = {}


class Around(nn.Module):
    """Reaches one of its layers in another way than by its attribute."""

    def __init__(self, way: str) -> None:
        super().__init__()
        layer = TABLE["last"] = nn.Linear(16, 4)
        self.first, self.last = nn.Linear(8, 16), layer
        self.run = (lambda x: layer(x)) if way == "closure" else _by_the_table

    def forward(self, x: torch.Tensor) -> Any:
        return self.run(self.first(x))


def _by_the_table(x: torch.Tensor) -> Any:
    return TABLE["last"](x)


def test_what_is_reached_past_the_model_is_not_compared() -> None:
    """A copy of the model would go on to use the original's layer; but a closure is made anew in it."""
    for way, verify in itertools.product(("closure", "table"), ("auto", "always")):
        made = Around(way)
        result = pk.prune(made, torch.randn(2, 8), verify=verify)
        if way == "closure":
            assert result.verification.check is not None
        else:
            assert result.verification.check is None
            assert "reaches last." in result.verification.why
        assert made(torch.randn(2, 8)).shape == (2, 4)
    TABLE.clear()


def test_a_program_that_runs_otherwise_on_real_tensors_is_recorded_on_them() -> None:
    """A tensor that is contiguous already isn't copied, which the recording on shapes may not know."""

    class Expanded(Mlp):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x)
            return y + (y.abs() if any(type(t).__name__ == "FakeTensor" for t in (x,)) else y.abs().clone())

    result = pk.prune(Expanded(), X, verify="always")
    assert result.verification.check, result.verification


def test_a_cast_that_does_nothing_writes_nothing() -> None:
    class Cast(Mlp):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(self.hidden(x), self.b.weight.float(), self.b.bias.float())

    assert pk.prune(Cast(), X, verify="always").verification.check


def test_the_choice_is_checked() -> None:
    with pytest.raises(pk.ArgumentError, match="verify"):
        pk.prune(Mlp(), X, verify="sometimes")


def test_compensated_weights_are_verified_before_they_change() -> None:
    model = Chain(8, 16, 4)
    result = pk.prune(model, X, calibration=[X], verify="always")
    assert result.compensation is not None
    assert result.verification.check


def test_rounding_is_no_difference() -> None:
    """Cancellation makes large relative errors in single precision, which go away in double precision."""

    class Cancelling(Mlp):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x)
            return (y + 1e4) - 1e4 - y.round(decimals=3)

    result = pk.prune(Cancelling(), X, verify="always")
    assert result.verification.check or result.verification.why


def test_scaled_rows_are_scaled_in_the_copy_only() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.o(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))

    model = Attends()
    x = torch.randn(2, 5, 8)
    original = copy.deepcopy(model)
    result = pk.prune(model, x, verify="always")
    assert result.plan.rescales
    assert result.verification.check
    assert pk.check_exact(original, model, result.plan, x)
