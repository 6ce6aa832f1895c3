"""Optimizer state is cut with its parameters: training goes on as if the removed units had been zero all along."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import prunekit as pk
from tests.models import Chain, Residual

OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd with momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "plain sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_next_step_is_the_one_of_the_masked_model(name: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 5, dtype=torch.float64)
    model = Chain(5, 8, 6, 3).double()
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    train(model, optimizer, x, 3)
    masked = copy.deepcopy(model)
    masked_optimizer = OPTIMIZERS[name](list(masked.parameters()))
    masked_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    pruner = pk.BasePruner(model, x)
    parameters = list(model.parameters())
    plan = pruner.plan()
    plan.mask(masked)
    pruner.step(optimizer=optimizer)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    train(model, optimizer, x, 1)
    train(masked, masked_optimizer, x, 1)
    expected = plan.apply(masked)  # what the masked model's kept weights are after the same step
    for (key, found), other in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found, other, rtol=1e-12, atol=1e-14, msg=key)
    train(model, optimizer, x, 2)


def test_steps_and_buffers() -> None:
    torch.manual_seed(0)
    model, x = Residual(), torch.randn(2, 3, 8, 8)
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer, x, 2)
    pruner = pk.BasePruner(model, x, iterative_steps=3)
    for _ in range(3):
        pruner.step(optimizer=optimizer)
        for parameter in model.parameters():
            assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape
            assert optimizer.state[parameter]["exp_avg_sq"].shape == parameter.shape
            assert float(optimizer.state[parameter]["step"]) >= 2
        train(model, optimizer, x, 1)


def test_factored_averages() -> None:
    model, x = Chain(5, 8, 3), torch.randn(6, 5)
    optimizer = torch.optim.Adafactor(model.parameters())
    train(model, optimizer, x, 2)
    rows = optimizer.state[model.layers[0].weight]["row_var"].clone()
    result = pk.prune(model, x, optimizer=optimizer)
    kept = list(result.plan.kept["layers.0"])
    assert torch.equal(optimizer.state[model.layers[0].weight]["row_var"], rows[kept])
    train(model, optimizer, x, 2)


def test_parameters_that_the_optimizer_does_not_train() -> None:
    model, x = Chain(5, 8, 3), torch.randn(6, 5)
    optimizer = torch.optim.Adam(model.layers[1].parameters())
    train(model, optimizer, x, 1)
    pk.prune(model, x, optimizer=optimizer)
    assert set(optimizer.state) == set(model.layers[1].parameters())
    train(model, optimizer, x, 1)


def test_state_that_is_not_understood_stops_the_cut() -> None:
    model, x = Chain(5, 8, 3), torch.randn(6, 5)
    optimizer = torch.optim.LBFGS(model.parameters())

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(x).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    state = copy.deepcopy(model.state_dict())
    pruner = pk.BasePruner(model, x)
    with pytest.raises(pk.PlanError, match="The state of the optimizer can't be cut") as caught:
        pruner.step(optimizer=optimizer)
    assert "make a new one" in str(caught.value)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert pruner.current_step == 0
    pruner.step()
    assert model.layers[0].out_features == 4


def test_an_optimizer_of_another_model() -> None:
    model, x = Chain(5, 8, 3), torch.randn(6, 5)
    other = torch.optim.Adam(Chain(5, 8, 3).parameters())
    with pytest.raises(pk.PlanError, match="not this model's"):
        pk.prune(model, x, optimizer=other)
    assert model.layers[0].out_features == 8
    with pytest.raises(pk.ArgumentError, match="interactive"):
        pk.BasePruner(model, x).step(interactive=True, optimizer=torch.optim.Adam(model.parameters()))


class Around(torch.optim.Optimizer):
    """Holds another optimizer and a slow copy of every weight, as Lookahead does; ``shows`` makes it show the inner
    state as its own, as ``accelerate`` does."""

    def __init__(self, inner: torch.optim.Optimizer, shows: bool = False) -> None:
        super().__init__([{"params": group["params"]} for group in inner.param_groups], {})
        self.inner = inner
        if shows:
            self.state = inner.state
        else:
            self.state = {p: {"slow": p.detach().clone()} for g in self.param_groups for p in g["params"]}  # type: ignore[assignment]

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        self.inner.step()
        for parameter, state in self.state.items():
            if "slow" in state:
                state["slow"].lerp_(parameter.detach(), 0.5)
                parameter.data.copy_(state["slow"])


@pytest.mark.parametrize("shows", [False, True])
def test_an_optimizer_around_another(shows: bool) -> None:
    torch.manual_seed(0)
    model, x = Chain(5, 8, 3), torch.randn(6, 5)
    outer = Around(torch.optim.Adam(model.parameters()), shows)
    train(model, outer, x, 2)
    weight = model.layers[0].weight
    before = {key: value.clone() for key, value in {**outer.inner.state[weight], **outer.state[weight]}.items()}
    kept = list(pk.prune(model, x, optimizer=outer).plan.kept["layers.0"])
    found = {**outer.inner.state[weight], **outer.state[weight]}
    assert found.keys() == before.keys() >= {"exp_avg", "exp_avg_sq"}
    for key, value in found.items():
        assert torch.equal(value, before[key] if key == "step" else before[key][kept]), key
    train(model, outer, x, 2)


def test_tensors_outside_of_the_state_stop_the_cut() -> None:
    model, x = Chain(5, 8, 3), torch.randn(6, 5)
    outer = torch.optim.SGD(model.parameters(), lr=0.1)
    outer.slow_weights = [[p.detach().clone() for p in model.parameters()]]  # type: ignore[attr-defined]
    with pytest.raises(pk.PlanError, match="can't be cut") as caught:
        pk.prune(model, x, optimizer=outer)
    assert caught.value.where == "SGD, slow_weights"
    assert model.layers[0].out_features == 8


def test_state_that_is_filed_under_a_parameter_that_stays_whole() -> None:
    model, x = Chain(5, 8, 6, 3), torch.randn(6, 5)
    optimizer = torch.optim.LBFGS(reversed(list(model.parameters())))
    model(x).square().sum().backward()
    optimizer.step(lambda: float(model(x).square().sum().detach()))
    assert list(optimizer.state) == [model.layers[2].bias]
    with pytest.raises(pk.PlanError, match="can't be cut"):
        pk.prune(model, x, ignored_layers=[model.layers[1]], optimizer=optimizer)
    assert model.layers[0].out_features == 8


def test_row_and_column_averages_of_another_shape() -> None:
    transformers = pytest.importorskip("transformers.optimization", reason="needs prunekit[hf]")
    model, x = Chain(5, 8, 3), torch.randn(6, 5)
    optimizer = transformers.Adafactor(model.parameters())
    train(model, optimizer, x, 1)
    with pytest.raises(pk.PlanError, match="can't be cut") as caught:
        pk.prune(model, x, optimizer=optimizer)
    assert caught.value.why == "its shape (8,) is not the parameter's (8, 5)"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {"capturable": True}], ids=str)
def test_the_variants_of_adam(options: dict[str, bool], device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if device == "cpu" and "capturable" in options:
        pytest.skip("PyTorch has capturable optimizers on accelerators only")
    torch.manual_seed(0)
    model, x = Chain(5, 8, 3).to(device), torch.randn(6, 5, device=device)
    groups = [{"params": [model.layers[0].weight], "lr": 0.01}, {"params": list(model.parameters())[1:]}]
    optimizer = torch.optim.AdamW(groups, lr=0.02, **options)
    train(model, optimizer, x, 2)
    plain = copy.deepcopy(model)
    masked = torch.optim.AdamW(
        [{"params": [plain.layers[0].weight], "lr": 0.01}, {"params": list(plain.parameters())[1:]}], lr=0.02
    )
    masked.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    plan = pk.prune(model, x, optimizer=optimizer).plan
    plan.mask(plain)
    steps = [state["step"] for state in optimizer.state.values()]
    assert [float(step) for step in steps] == [2.0] * 4
    train(model, optimizer, x, 1)
    train(plain, masked, x, 1)
    for found, other in zip(model.parameters(), plan.apply(plain).parameters(), strict=True):
        torch.testing.assert_close(found, other)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.02]


def test_several_optimizers_of_one_model() -> None:
    torch.manual_seed(0)
    model, x = Chain(5, 8, 6, 3), torch.randn(6, 5)
    first = torch.optim.Adam(model.layers[0].parameters())
    rest = torch.optim.SGD([*model.layers[1].parameters(), *model.layers[2].parameters()], lr=0.1, momentum=0.9)
    stranger = torch.optim.Adam([nn.Parameter(torch.zeros(3))])
    model(x).square().sum().backward()
    for optimizer in (first, rest):
        optimizer.step()
    pk.BasePruner(model, x).step(optimizer=[first, rest, stranger])
    for optimizer, key in ((first, "exp_avg"), (rest, "momentum_buffer")):
        assert all(optimizer.state[p][key].shape == p.shape for g in optimizer.param_groups for p in g["params"])
    with pytest.raises(pk.PlanError, match="not this model's"):
        pk.prune(model, x, optimizer=[stranger])


def test_moving_averages_are_cut_alike() -> None:
    torch.manual_seed(0)
    model, x = Residual(), torch.randn(2, 3, 8, 8)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    plain, optimizer = copy.deepcopy(model), torch.optim.SGD(model.parameters(), lr=0.01)
    pruner = pk.BasePruner(model, x, iterative_steps=2)
    for _ in range(2):
        train(model, optimizer, x, 2)
        average.update_parameters(model)
        whole = copy.deepcopy(average.module)
        before = pruner.graph.applied
        pruner.step(optimizer=optimizer, copies=[average, plain])
        now = pruner.graph.applied
        expected = (now.since(before) if before.cuts else now).apply(whole)
        for found, other in zip(average.module.parameters(), expected.parameters(), strict=True):
            assert torch.equal(found, other)
        assert [p.shape for p in plain.parameters()] == [p.shape for p in model.parameters()]
    train(model, optimizer, x, 1)
    average.update_parameters(model)
    assert average(x).shape == plain(x).shape


def test_copies_that_do_not_fit_leave_everything_as_it_was() -> None:
    model, x = Chain(5, 8, 3), torch.randn(6, 5)
    pruner = pk.BasePruner(model, x)
    for copies, message in (([Chain(5, 9, 3)], "isn't like the model"), ([model], "shares parameters")):
        with pytest.raises(pk.PlanError, match=message):
            pruner.step(copies=copies)
        assert model.layers[0].out_features == 8
    with pytest.raises(pk.ArgumentError, match="takes no copies"):
        pruner.step(interactive=True, copies=[copy.deepcopy(model)])


def test_gradients_gathered_before_and_after_the_cut_add_up() -> None:
    torch.manual_seed(0)
    x, later = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    model = Chain(5, 8, 3).double()
    model(x).square().sum().backward()
    whole = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    plan = pk.prune(model, x).plan
    alone = copy.deepcopy(model)
    alone.zero_grad()
    alone(later).square().sum().backward()
    model(later).square().sum().backward()
    positions = plan.all_positions(plan.parameters)
    for name, parameter in model.named_parameters():
        expected = whole[name]
        for dim, kept in positions.get(name, {}).items():
            expected = expected.index_select(dim, kept)
        torch.testing.assert_close(parameter.grad, expected + alone.get_parameter(name).grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_training_goes_on_while_the_last_graph_is_alive(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = Chain(5, 8, 3).to(dtype), torch.randn(6, 5).to(dtype)
    calls: list[torch.Size] = []
    model.layers[0].weight.register_hook(lambda grad: calls.append(grad.shape))
    model.layers[0].weight.register_post_accumulate_grad_hook(lambda p: calls.append(p.grad.shape))  # type: ignore[union-attr, arg-type]
    objects = list(model.parameters())
    loss = model(x).square().sum()
    loss.backward()
    pk.prune(model, x)
    assert [id(p) for p in model.parameters()] == [id(p) for p in objects]
    assert all(p.dtype is dtype and p.is_leaf and p.requires_grad for p in objects)
    alone = copy.deepcopy(model)
    model.zero_grad()
    alone.zero_grad()
    loss = model(x).square().sum()  # the old graph is alive until this line is done
    loss.backward()
    alone(x).square().sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(objects, alone.parameters(), strict=True))  # type: ignore[arg-type]
    assert calls == [torch.Size([8, 5])] * 2 + [torch.Size([4, 5])] * 2


def test_schedulers_and_scalers_go_on() -> None:
    torch.manual_seed(0)
    rates, model, x = [], Chain(5, 8, 3), torch.randn(6, 5)
    optimizer = torch.optim.Adam(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(6):
        if step == 3:
            pk.prune(model, x, optimizer=optimizer)
        optimizer.zero_grad()
        scaler.scale(model(x).square().mean()).backward()
        if step == 4:  # between unscaling and the step
            scaler.unscale_(optimizer)
            pk.prune(model, x, 0.25, optimizer=optimizer)
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        rates.append(scheduler.get_last_lr()[0])
    other = torch.optim.lr_scheduler.CosineAnnealingLR(torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=1.0), 6)
    for rate in rates:
        other.optimizer.step()
        other.step()
        assert rate == other.get_last_lr()[0]
    assert scaler.get_scale() == 2.0**10
    assert model.layers[0].out_features == 3
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_resuming_brings_a_fresh_model_to_the_same_shapes() -> None:
    torch.manual_seed(0)
    model, x = Residual(), torch.randn(2, 3, 8, 8)
    pruner = pk.BasePruner(model, x, iterative_steps=3)
    pruner.step()
    pruner.step()
    plan = pk.Plan.from_json(pruner.graph.applied.to_json())
    fresh = Residual()
    average = copy.deepcopy(fresh)
    other = pk.BasePruner(fresh, x, iterative_steps=3)
    assert other.resume(plan, 2, copies=[average]) == pruner.graph.applied
    for resumed in (fresh, average):
        resumed.load_state_dict(model.state_dict())
    pruner.step()
    other.step(copies=[average])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), average.parameters(), strict=True))
    with pytest.raises(pk.ArgumentError, match="made steps already"):
        other.resume(plan, 2)
    for wrong, step, message in ((Chain(5, 8, 3), 1, "another model"), (Residual(), 4, "makes fewer steps")):
        example = torch.randn(6, 5) if isinstance(wrong, Chain) else x
        with pytest.raises(pk.PrunekitError, match=message):
            pk.BasePruner(wrong, example, iterative_steps=3).resume(plan, step)
