"""Layers that a recording can't look into: NumPy and foreign code inside an ``autograd.Function``."""

from __future__ import annotations

import copy
import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit import plugin
from prunekit.testing import check_layer_type


class _InNumpy(torch.autograd.Function):
    """``relu(x @ weight.T) * gain``, where nothing of PyTorch sees it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight, gain)
        hidden = np.maximum(x.detach().numpy() @ weight.detach().numpy().T, 0)
        return torch.from_numpy(hidden * gain.detach().numpy())

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, weight, gain = ctx.saved_tensors
        hidden = x @ weight.T
        inner = gradient * gain * (hidden > 0)
        return (
            inner @ weight,
            inner.flatten(0, -2).T @ x.flatten(0, -2),
            (gradient * hidden.relu()).flatten(0, -2).sum(0),
        )


class Foreign(nn.Module):
    """Two parameters of different rank, an activation inside, and an attribute that must follow."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.randn(width, inputs))
        self.gain = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(self.gain) != self.width:
            raise ValueError(f"{len(self.gain)} gains for a width of {self.width}")
        result: torch.Tensor = _InNumpy.apply(x, self.weight, self.gain)
        return result

    def extra_repr(self) -> str:
        return f"width={self.width}"


def foreign_rule(call: plugin.OpCall) -> list[plugin.Axis]:
    x, weight, gain = call["x"], call["weight"], call["gain"]
    call.tie(x.axes[-1], weight.axes[1])
    call.tie(gain.axes[0], weight.axes[0])
    call.role(weight, 0, pk.Role.OUT)
    call.role(weight, 1, pk.Role.IN)
    return [*x.axes[:-1], weight.axes[0]]


def foreign_fake(module: Foreign, x: torch.Tensor) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], len(module.weight))


def _kept(gone: Sequence[int], size: int) -> torch.Tensor:
    return torch.tensor([unit for unit in range(size) if unit not in plugin.check_indices(gone, size, "Foreign")])


def prune_foreign_out(layer: nn.Module, indices: Sequence[int]) -> nn.Module:
    kept = _kept(indices, layer.width)
    plugin.shrink_tensor(layer.weight, {0: kept})
    plugin.shrink_tensor(layer.gain, {0: kept})
    layer.width = len(kept)
    return layer


def prune_foreign_in(layer: nn.Module, indices: Sequence[int]) -> nn.Module:
    plugin.shrink_tensor(layer.weight, {1: _kept(indices, layer.weight.shape[1])})
    return layer


FOREIGN = plugin.LayerType(
    "foreign",
    prune_out=prune_foreign_out,
    prune_in=prune_foreign_in,
    flat_out=lambda module, own: own["weight"][0],
    flat_in=lambda module, own: own["weight"][1],
    attributes=lambda module, resizing: {"width": resizing.size("gain", 0)},
    opaque=plugin.Opaque(foreign_rule, fake=foreign_fake),
)


def registry_of(types: Mapping[Any, plugin.LayerType]) -> pk.Registry:
    return pk.Registry(
        extra={"own": SimpleNamespace(h=plugin.hookimpl(lambda: types, specname="prunekit_layer_types"))}
    )


class Net(nn.Module):
    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.first, self.foreign, self.last = nn.Linear(5, 8), Foreign(8, width), nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.last(self.foreign(self.first(x)))
        return result


EXAMPLE = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))


def test_without_a_word_about_it_nothing_around_it_is_pruned() -> None:
    with pytest.raises(pk.NothingToPruneError):
        pk.prune(Net(), EXAMPLE)


def test_the_recording_sees_one_operation() -> None:
    graph = pk.DependencyGraph(registry_of({Foreign: FOREIGN})).build_dependency(Net(), EXAMPLE)
    (recording, *_) = graph.analysis.recordings
    assert [operation.name for operation in recording.trace.operations] == [
        "aten::linear",
        f"opaque::{__name__}.Foreign",
        "aten::linear",
    ]
    assert {name: (group.size, len(group.members)) for name, group in graph.analysis.groups.items()} == {
        "first": (8, 3),
        "foreign": (12, 3),
    }
    assert graph.report().notes == ()
    assert graph.analysis.shadow.fake_mode is not None


def zeroed(model: nn.Module, plan: pk.Plan) -> nn.Module:
    """The original with zeros where units were removed, by hand."""
    model = copy.deepcopy(model)
    kept = plan.kept
    with torch.no_grad():
        gone = [unit for unit in range(8) if unit not in kept["first"]]
        model.first.weight[gone], model.first.bias[gone], model.foreign.weight[:, gone] = 0, 0, 0
        gone = [unit for unit in range(12) if unit not in kept["foreign"]]
        model.foreign.weight[gone], model.foreign.gain[gone], model.last.weight[:, gone] = 0, 0, 0
    return model


@pytest.mark.parametrize("fake", [foreign_fake, None], ids=["fake", "real"])
def test_pruning_is_exact(fake: Any) -> None:
    registry = registry_of({Foreign: attrs.evolve(FOREIGN, opaque=plugin.Opaque(foreign_rule, fake))})
    torch.manual_seed(0)
    original = Net().double()
    model, example = copy.deepcopy(original), EXAMPLE.double()
    result = pk.prune(model, example, 0.5, registry=registry)
    assert (model.foreign.width, model.foreign.weight.shape, model.last.in_features) == (6, (6, 4), 6)
    expected = zeroed(original, result.plan)(example)
    assert torch.allclose(model(example), expected, rtol=0, atol=1e-13)
    assert pk.check_exact(original, model, result.plan, example, registry=registry)
    wrong = copy.deepcopy(model)
    with torch.no_grad():
        wrong.foreign.gain.copy_(wrong.foreign.gain.roll(1))
    assert not pk.check_exact(original, wrong, result.plan, example, registry=registry)
    assert bool(result.report.notes) == (fake is None)


def test_plans_checkpoints_and_gradients(tmp_path: Path) -> None:
    registry = registry_of({Foreign: FOREIGN})
    model, other = Net(), Net()
    start = copy.deepcopy(model)
    result = pk.prune(model, EXAMPLE, 0.5, registry=registry)
    plan = pk.Plan.from_json(result.plan.to_json())
    plan.apply(start)
    assert torch.equal(start(EXAMPLE), model(EXAMPLE))
    pk.save(model, tmp_path / "net.safetensors", plan=plan)
    loaded = pk.load(other, tmp_path / "net.safetensors", registry=registry)
    assert torch.equal(loaded(EXAMPLE), model(EXAMPLE))
    model(EXAMPLE).sum().backward()
    assert model.foreign.weight.grad.shape == (6, 4)
    assert model.first.weight.grad.abs().sum() > 0


def test_a_group_may_start_at_either_side() -> None:
    registry = registry_of({Foreign: FOREIGN})
    model = Net()
    gain = model.foreign.gain[[0, 2, 4, 5, 6, 7, 8, 9, 10, 11]].clone()
    graph = pk.DependencyGraph(registry).build_dependency(model, EXAMPLE)
    graph.get_pruning_group(model.foreign, prune_foreign_out, [1, 3]).prune()
    graph.get_pruning_group(model.foreign, prune_foreign_in, [7]).prune()
    assert torch.equal(model.foreign.gain, gain)
    assert (model.first.out_features, model.foreign.width, model.last.in_features) == (7, 10, 10)


def test_the_kit_proves_it() -> None:
    assert len(check_layer_type(Foreign(5, 6), torch.randn(4, 5), registry=registry_of({Foreign: FOREIGN}))) == 2


class Deep(Net):
    """With units that the layer in question doesn't meet."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 8))


def test_an_attribute_that_the_layer_type_forgets_is_noticed() -> None:
    """Empty tensors don't meet the width; made-up values do. What a layer type knows is not searched for."""
    registry = registry_of({Foreign: attrs.evolve(FOREIGN, attributes=plugin.LayerType("none").attributes)})
    model = Deep()
    result = pk.prune(model, EXAMPLE, 0.5, registry=registry)
    assert (model.first[0].out_features, model.first[1].out_features, model.foreign.width) == (3, 4, 12)
    assert "Foreign raised ValueError: 6 gains for a width of 12" in result.report.left["foreign"]


def test_what_the_module_can_do_in_multiples_only_keeps_a_multiple() -> None:
    class Even(Foreign):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.weight.shape[0] % 4:
                raise ValueError("my kernel takes multiples of four")
            return super().forward(x)

    model = Deep()
    model.foreign = Even(8, 12)
    result = pk.prune(model, EXAMPLE, 0.5, registry=registry_of({Even: FOREIGN}))
    assert (model.first[0].out_features, model.foreign.width) == (3, 8)
    assert any(
        note.startswith("sizes of foreign are multiples of 4: ") and "my kernel takes multiples of four" in note
        for note in result.report.notes
    )


def test_what_the_module_can_not_do_in_any_smaller_shape_is_given_back() -> None:
    class Rigid(Foreign):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.weight.shape[0] != 12:
                raise ValueError("my kernel takes twelve")
            return super().forward(x)

    model = Deep()
    model.foreign = Rigid(8, 12)
    result = pk.prune(model, EXAMPLE, 0.5, registry=registry_of({Rigid: FOREIGN}))
    assert (model.first[0].out_features, model.foreign.width) == (3, 12)
    assert "my kernel takes twelve" in result.report.left["foreign"]


def test_what_is_alike_is_tried_once() -> None:
    class Counted(Foreign):
        runs: list[tuple[int, ...]] = []  # noqa: RUF012

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.runs.append(tuple(self.weight.shape))
            return super().forward(x)

    model = nn.Sequential(*(Counted(8, 8) for _ in range(5)), nn.Linear(8, 3))
    pk.prune(model, torch.randn(3, 8), 0.5, registry=registry_of({Counted: FOREIGN}), verify="never")
    assert [layer.width for layer in model[:5]] == [4] * 5
    # whole for the recording, then as cut; the first one goes on reading all inputs of the model
    assert Counted.runs == [(8, 8), (4, 8), (4, 4)]


class Lone(Foreign):
    mode: Any = "any"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if "four" in str(self.mode) and len(self.weight) % 4:
            raise ValueError("in this mode I take multiples of four")
        return super().forward(x)


@pytest.mark.parametrize("mode", ["four", SimpleNamespace(four=4), ["four"], {"four"}, {"four": 4}])
def test_what_is_not_alike_is_tried_again(mode: object) -> None:
    model = nn.Sequential(nn.Linear(5, 8), *(Lone(8, 8) for _ in range(4)), nn.Linear(8, 3))
    model[3].mode = mode
    result = pk.prune(model, EXAMPLE, 0.25, registry=registry_of({Lone: FOREIGN}))
    assert [layer.width for layer in model[1:5]] == [6, 6, 4, 6]
    (note,) = result.report.notes
    assert note.startswith("sizes of 3 are multiples of 4: ")
    assert note.endswith("in this mode I take multiples of four")


def test_what_ran_in_one_mode_is_tried_in_the_other() -> None:
    class Twice(Foreign):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result = super().forward(x)
            return torch.cat([result, result]) if self.training else result

    model = nn.Sequential(nn.Linear(5, 8), Twice(8, 8), Twice(8, 8))
    graph = pk.DependencyGraph(registry_of({Twice: FOREIGN})).build_dependency(model, EXAMPLE)
    (note,) = graph.report().notes
    assert note.endswith("OtherShapesError: it returns tensors of shape [(8, 8)], its layer type says [(4, 8)]")
    assert note.startswith("train mode was not recorded: ")


def test_a_module_that_can_not_run_on_made_up_values_is_noted() -> None:
    class Picky(Foreign):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not torch.equal(x, x.round()):
                raise ValueError("whole numbers, please")
            return super().forward(x)

    graph = pk.DependencyGraph(registry_of({Picky: FOREIGN})).build_dependency(
        nn.Sequential(Picky(4, 6), nn.Linear(6, 2)), torch.ones(3, 4)
    )
    assert graph.report().notes == (
        "the opaque layer 0 was not tried on made-up values: ValueError: whole numbers, please",
    )
    assert list(graph.analysis.groups) == ["0"]


def test_shapes_that_are_not_the_module_s_are_noticed() -> None:
    """The engine falls back to real tensors, where the shapes are the module's own, and says whose mistake it was."""

    def narrow(module: Foreign, x: torch.Tensor) -> torch.Tensor:
        return x.new_empty(*x.shape[:-1], 7)

    def torn(module: Foreign, x: torch.Tensor) -> torch.Tensor:
        return {}["width"]  # type: ignore[no-any-return]

    for wrong, why in (
        (narrow, "it returns tensors of shape [(4, 12)], its layer type says [(4, 7)]"),
        (torn, f"KeyError: 'width' ({__file__}:{torn.__code__.co_firstlineno + 1})"),
    ):
        registry = registry_of({Foreign: attrs.evolve(FOREIGN, opaque=plugin.Opaque(foreign_rule, fake=wrong))})
        graph = pk.DependencyGraph(registry).build_dependency(nn.Sequential(Foreign(5, 12), nn.Linear(12, 2)), EXAMPLE)
        assert graph.analysis.shadow.fake_mode is None
        assert list(graph.analysis.groups) == ["0"]
        (note,) = graph.report().notes
        site = f"{__file__}:{wrong.__code__.co_firstlineno}"
        said = f"the fake of {__name__}.Foreign, from own ({site}): {why}"
        assert note == f"{said}: recorded on real tensors instead of fake ones"


def test_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = Net()
    graph = pk.DependencyGraph(registry_of({Foreign: FOREIGN})).build_dependency(model, EXAMPLE.to("meta"))
    assert list(graph.analysis.groups) == ["first", "foreign"]


def test_what_the_rule_forgets_stays() -> None:
    def forgetful(call: plugin.OpCall) -> list[plugin.Axis]:
        x, weight = call["x"], call["weight"]
        call.tie(x.axes[-1], weight.axes[1])
        return [*x.axes[:-1], call.fresh(weight.shape[0], "not said")]

    registry = registry_of({Foreign: attrs.evolve(FOREIGN, opaque=plugin.Opaque(forgetful, foreign_fake))})
    graph = pk.DependencyGraph(registry).build_dependency(Net(), EXAMPLE)
    assert list(graph.analysis.groups) == ["first"]
    assert graph.report().pinned["foreign.gain[0]"].startswith("the rule of an opaque layer says nothing about it")


class Standard(nn.Module):
    """Divides by the deviation over the last dim, then scales; NumPy inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.gain = nn.Parameter(torch.rand(width, dtype=torch.float64) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[-1] == self.width
        values = x.detach().numpy()
        return torch.from_numpy(values / np.sqrt((values**2).sum(-1, keepdims=True) / self.width)) * self.gain


def along(call: plugin.OpCall) -> list[plugin.Axis]:
    call.tie(call["x"].axes[-1], call["gain"].axes[0])
    return list(call["x"].axes)


def mixing(call: plugin.OpCall) -> list[plugin.Axis]:
    call.whole(call["x"].axes[-1], plugin.Verb.MIX)
    return along(call)


@pytest.mark.parametrize("opaque", [plugin.Opaque(mixing), plugin.Opaque(along, exact=False)], ids=["verb", "flag"])
def test_a_layer_that_is_not_exact(opaque: plugin.Opaque) -> None:
    kind = plugin.LayerType(
        "standard",
        attributes=lambda module, resizing: {"width": resizing.size("gain", 0)},
        opaque=attrs.evolve(opaque, fake=lambda module, x: x),
    )
    registry = registry_of({Standard: kind})
    original = nn.Sequential(nn.Linear(5, 8), Standard(8), nn.Linear(8, 3)).double()
    model, example = copy.deepcopy(original), EXAMPLE.double()
    result = pk.prune(model, example, 0.5, registry=registry)
    assert model[1].width == 4
    kept = list(result.plan.kept["0"])
    hidden = original[0](example)[:, kept]
    normal = hidden / hidden.pow(2).mean(-1, keepdim=True).sqrt() * original[1].gain[kept]
    assert torch.allclose(model(example), normal @ original[2].weight[:, kept].T + original[2].bias, atol=1e-13)
    check = pk.check_exact(original, model, result.plan, example, registry=registry)
    assert check
    assert check.inexact == ("0",)
    exact = registry_of({Standard: attrs.evolve(kind, opaque=plugin.Opaque(along, lambda module, x: x))})
    assert not pk.check_exact(original, model, result.plan, example, registry=exact)


class Copied(nn.Module):
    """Copies memory behind PyTorch's back; takes keywords, lists and dicts, and returns a dict."""

    def forward(self, x: torch.Tensor, *more: torch.Tensor, scale: float = 1.0, **rest: Any) -> dict[str, torch.Tensor]:
        outputs = {"x": torch.empty_like(x), "sum": sum(more, start=torch.zeros_like(x)) * scale}
        source = x.detach().contiguous()
        ctypes.memmove(outputs["x"].data_ptr(), source.data_ptr(), source.numel() * source.element_size())
        if "table" in rest:
            outputs["sum"] = outputs["sum"] + rest["table"]["inner"]
        return outputs


def copied_rule(call: plugin.OpCall) -> list[list[plugin.Axis]]:
    x, more = call["x"], call["more"]
    for tensor in more:
        for a, b in zip(x.axes, tensor.axes, strict=True):
            call.tie(a, b)
    return [list(x.axes), list(x.axes)]


COPIED = plugin.LayerType(
    "copied",
    opaque=plugin.Opaque(copied_rule, lambda module, x, *more, scale=1.0, **rest: {"x": x, "sum": torch.empty_like(x)}),
)


class Branches(nn.Module):
    def __init__(self, table: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(5, 8) for _ in range(3))
        self.copied, self.last, self.table = Copied(), nn.Linear(8, 3), table

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rest = {"table": {"inner": self.c(x)}} if self.table else {}
        found = self.copied(self.a(x), self.b(x), self.b(x), scale=0.5, **rest)
        result: torch.Tensor = self.last(found["x"] * found["sum"])
        return result


def test_keywords_lists_and_dicts() -> None:
    registry = registry_of({Copied: COPIED})
    original = Branches(table=False)
    model = copy.deepcopy(original)
    result = pk.prune(model, EXAMPLE, 0.5, registry=registry)
    assert (model.a.out_features, model.b.out_features, model.c.out_features) == (4, 4, 8)
    assert pk.check_exact(original, model, result.plan, EXAMPLE, registry=registry)


@pytest.mark.slow
def test_tensors_inside_dicts_are_pinned() -> None:
    graph = pk.DependencyGraph(registry_of({Copied: COPIED})).build_dependency(Branches(table=True), EXAMPLE)
    assert graph.report().pinned["c.weight[0]"].startswith("inside an object that an opaque layer is given")
    assert list(graph.analysis.groups) == ["a"]


def test_an_opaque_layer_within_another_is_not_seen() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Foreign(8, 12)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.inner(x)
            return result

    def outer_rule(call: plugin.OpCall) -> list[plugin.Axis]:
        x, weight = call["x"], call["inner.weight"]
        call.tie(x.axes[-1], weight.axes[1])
        call.tie(weight.axes[0], call["inner.gain"].axes[0])
        return [*x.axes[:-1], weight.axes[0]]

    outer = plugin.LayerType(
        "outer", opaque=plugin.Opaque(outer_rule, lambda m, x: x.new_empty(len(x), len(m.inner.weight)))
    )
    registry = registry_of({Outer: outer, Foreign: FOREIGN})
    model = nn.Sequential(nn.Linear(5, 8), Outer(), nn.Linear(12, 3))
    original = copy.deepcopy(model)
    result = pk.prune(model, EXAMPLE, 0.5, registry=registry)
    assert (model[0].out_features, model[1].inner.width, model[2].in_features) == (4, 6, 6)
    assert pk.check_exact(original, model, result.plan, EXAMPLE, registry=registry)


def test_a_subclass_is_opaque_too_and_the_model_itself_may_be() -> None:
    class Special(Foreign):
        pass

    graph = pk.DependencyGraph(registry_of({f"{__name__}.Foreign": FOREIGN})).build_dependency(Special(5, 6), EXAMPLE)
    (operation,) = graph.analysis.recordings[0].trace.operations
    assert (operation.name, operation.module) == (f"opaque::{__name__}.Foreign", "")


def test_a_rule_that_raises_pins_what_the_layer_touches() -> None:
    def torn(call: plugin.OpCall) -> None:
        raise KeyError("nothing")

    registry = registry_of({Foreign: attrs.evolve(FOREIGN, opaque=plugin.Opaque(torn, foreign_fake))})
    report = pk.DependencyGraph(registry).build_dependency(Net(), EXAMPLE).report()
    line = torn.__code__.co_firstlineno
    said = f"its rule raised KeyError: 'nothing' ({__file__}:{line + 1}) (rule of own in {__file__}:{line})"
    assert report.not_understood == (f"opaque::{__name__}.Foreign in foreign: {said}",)


def test_an_argument_with_the_name_of_a_parameter() -> None:
    class Clash(Foreign):
        def forward(self, gain: torch.Tensor) -> torch.Tensor:
            return super().forward(gain)

    with pytest.raises(pk.PluginError, match="an argument and a parameter of the same name") as caught:
        pk.prune(nn.Sequential(Clash(5, 6), nn.Linear(6, 2)), EXAMPLE, registry=registry_of({Clash: FOREIGN}))
    assert caught.value.where.startswith("gain of ")


def test_where_the_rule_comes_from() -> None:
    registry = registry_of({Foreign: FOREIGN})
    graph = pk.DependencyGraph(registry).build_dependency(Net(), EXAMPLE)
    origin = registry.rule_origin(graph.analysis.recordings[0].trace.operations[1].op)
    assert origin is not None
    line = foreign_rule.__code__.co_firstlineno
    assert (origin.key, origin.owner.name, origin.site) == (
        f"opaque::{__name__}.Foreign",
        "own",
        f"{__file__}:{line}",
    )


def test_the_user_s_model_is_not_touched() -> None:
    model = Net()
    before = {name: copy.copy(vars(module)) for name, module in model.named_modules()}
    pk.DependencyGraph(registry_of({Foreign: FOREIGN})).build_dependency(model, EXAMPLE)
    assert {name: vars(module) for name, module in model.named_modules()} == before


class ForeignBlock(nn.Module):
    """``x + gain * relu(x @ weight.T)``, of which nothing is seen."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.gain = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.rand(8) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = x + added_by(self, x)
        return result


def added_by(module: ForeignBlock, x: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = _InNumpy.apply(x, module.weight, module.gain)
    return result


BLOCK = plugin.LayerType(
    "foreign_block", opaque=plugin.Opaque(foreign_rule, fake=lambda module, x: torch.empty_like(x), added=added_by)
)


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)
        self.blocks = nn.Sequential(ForeignBlock(), ForeignBlock(), ForeignBlock())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.last(self.blocks(self.first(x)))
        return result


def test_a_layer_type_states_a_branch_of_a_layer_that_is_not_looked_into() -> None:
    torch.manual_seed(0)
    model, registry = Blocks().eval(), registry_of({ForeignBlock: BLOCK})
    graph = pk.Graph.of(model, EXAMPLE, registry=registry)
    assert [branch.name for branch in graph.branches() if branch.removable] == [f"blocks.{n}" for n in range(3)]
    assert graph.branches()[1].parameters == ("blocks.1.weight", "blocks.1.gain")
    silent = attrs.evolve(BLOCK, opaque=plugin.Opaque(foreign_rule, fake=lambda module, x: torch.empty_like(x)))
    assert pk.Graph.of(model, EXAMPLE, registry=registry_of({ForeignBlock: silent})).branches() == ()
    with torch.no_grad():
        hidden = model.first(EXAMPLE)
        model.blocks[1].gain.mul_(1e-3)
        expected = model.last(model.blocks[2](model.blocks[0](hidden)))
    small = copy.deepcopy(model)
    options: dict[str, Any] = {"calibration": [EXAMPLE], "compensation": None, "registry": registry}
    result = pk.prune(small, EXAMPLE, branch_ratio=0.34, **options)
    assert result.report.absent == ("blocks.1",)
    assert torch.equal(small(EXAMPLE), expected)
    assert len([name for name, _ in small.named_parameters() if name.startswith("blocks.")]) == 4
    assert pk.check_exact(model, small, result.plan, EXAMPLE, registry=registry)


def test_units_of_a_layer_with_a_branch_are_pruned_as_of_others() -> None:
    model, registry = Blocks().eval(), registry_of({ForeignBlock: BLOCK})
    small = copy.deepcopy(model)
    result = pk.prune(small, EXAMPLE, ratio=0.5, registry=registry)
    assert small.blocks[2].weight.shape == (4, 4)
    assert pk.check_exact(model, small, result.plan, EXAMPLE, registry=registry)


def test_the_kit_compares_what_is_added_with_the_layer() -> None:
    registry = registry_of({ForeignBlock: BLOCK})
    check_layer_type(ForeignBlock(), torch.randn(3, 8), registry=registry)

    def doubled(module: ForeignBlock, x: torch.Tensor) -> torch.Tensor:
        return 2 * added_by(module, x)

    def narrow(module: ForeignBlock, x: torch.Tensor) -> torch.Tensor:
        return added_by(module, x)[:, :1]

    for wrong, message in ((doubled, "isn't the output"), (narrow, "`added` returns a tensor \\(3, 1\\)")):
        kind = attrs.evolve(BLOCK, opaque=plugin.Opaque(foreign_rule, BLOCK.opaque.fake, added=wrong))  # type: ignore[union-attr]
        with pytest.raises(AssertionError, match=message):
            check_layer_type(ForeignBlock(), torch.randn(3, 8), registry=registry_of({ForeignBlock: kind}))
