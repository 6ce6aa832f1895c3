"""Plans as values: through JSON, composed, taken apart, applied to copies, masked; and what strangers' plans get."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from hypothesis import event, given, settings, strategies as st
from torch import nn

import prunekit as pk
from tests.programs.spec import Block
from tests.programs.trial import make, masked, relative, same_state, state_of

PROGRAMS = (
    ("pictures", (Block("conv", 2, 1), Block("batch_norm"), Block("residual", 0, 0, (Block("conv", 2),)))),
    ("pictures", (Block("branches", 0, 0, (Block("conv", 1), Block("glu", 3))), Block("group_norm", 1))),
    ("pictures", (Block("shuffle", 1), Block("pieces", 2, 0, (Block("conv", 3),)), Block("scale"))),
    ("tokens", (Block("residual", 0, 0, (Block("norm"), Block("attention", 0, 0))), Block("gated", 2, 1))),
    ("tokens", (Block("attention", 0, 6), Block("joined", 0, 0, (Block("linear"), Block("mlp"))))),
    ("tokens", (Block("packed", 1), Block("tied", 2), Block("scale"))),
)
programs = st.sampled_from(PROGRAMS)
seeds = st.integers(0, 1000)
few = settings(max_examples=10)
many = settings(max_examples=400)


class Case:
    """A network with a graph on a copy of it, and plans that remove some units of some groups."""

    def __init__(self, program: tuple[str, tuple[Block, ...]], seed: int) -> None:
        self.original, self.x = make(*program, 0, seed)
        self.model = copy.deepcopy(self.original)
        self.graph = pk.DependencyGraph().build_dependency(self.model, self.x)
        self.generator = torch.Generator().manual_seed(seed)

    def draft(self, share: float) -> pk.Plan:
        """A plan that removes about a share of each group, on top of what was applied."""
        kept = {}
        for group in self.graph.groups():
            present = self.graph.remaining(group.name)
            count = max(1, round(len(present) * (1 - share)))
            if count < len(present) and not group.outer:
                order = torch.randperm(len(present), generator=self.generator)[:count].tolist()
                kept[group.name] = tuple(sorted(present[k] for k in order))

        def reselect(name: str, count: int) -> tuple[int, ...]:
            return self.graph.remaining(name)[:count]

        return self.graph.draft(kept, reselect)


def equal_models(left: nn.Module, right: nn.Module, x: torch.Tensor) -> bool:
    """Bit for bit: the same tensors, the same sizes in attributes, the same output."""
    ours, theirs = left.state_dict(), right.state_dict()
    if list(ours) != list(theirs) or not all(torch.equal(ours[name], theirs[name]) for name in ours):
        return False
    for (path, one), (_, two) in zip(left.named_modules(), right.named_modules(), strict=True):
        for name, value in vars(one).items():
            if isinstance(value, int | tuple | list) and vars(two)[name] != value:
                raise AssertionError(f"{path}.{name}: {value} and {vars(two)[name]}")
    with torch.no_grad():
        return torch.equal(left(x), right(x))


@few
@given(programs, seeds)
def test_json_round_trip(program, seed) -> None:  # type: ignore[no-untyped-def]
    case = Case(program, seed)
    plan = case.draft(0.5)
    again = pk.Plan.from_json(plan.to_json())
    assert again == plan
    assert again.to_json() == plan.to_json()
    assert equal_models(plan.apply(copy.deepcopy(case.original)), again.apply(copy.deepcopy(case.original)), case.x)


@few
@given(programs, seeds)
def test_a_plan_applies_to_every_copy(program, seed) -> None:  # type: ignore[no-untyped-def]
    """A copy of the weights, and a network of the same class with other weights."""
    case = Case(program, seed)
    plan = case.draft(0.4)
    first = plan.apply(copy.deepcopy(case.original))
    assert equal_models(first, plan.apply(copy.deepcopy(case.original)), case.x)
    other, x = make(*program, 0, seed + 1)
    small = plan.apply(copy.deepcopy(other))
    assert {name: p.shape for name, p in small.named_parameters()} == {n: p.shape for n, p in first.named_parameters()}
    assert pk.check_exact(other, small, plan, x)
    with pytest.raises(pk.PlanError):
        plan.apply(small)
    assert equal_models(small, plan.apply(copy.deepcopy(other)), x)


def two_steps(case: Case) -> tuple[pk.Plan, pk.Plan, nn.Module]:
    """A plan; the plan of both steps; the model after the first."""
    first = case.draft(0.3)
    case.graph.apply(first)
    middle = copy.deepcopy(case.model)
    total = case.draft(0.4)
    case.graph.apply(total)
    return first, total, middle


@pytest.mark.slow
@few
@given(programs, seeds)
def test_the_rest_of_a_plan(program, seed) -> None:  # type: ignore[no-untyped-def]
    """``total.since(first)`` leads from the model after the first step to the model after both."""
    case = Case(program, seed)
    first, total, middle = two_steps(case)
    rest = pk.Plan.from_json(total.since(first).to_json())
    rest.apply(middle)
    assert equal_models(middle, case.model, case.x)
    direct = total.apply(copy.deepcopy(case.original))
    with torch.no_grad():
        assert relative(direct(case.x), middle(case.x)) < 1e-12
    assert total.since(pk.Plan()) == total
    assert total.since(total).cuts == ()


@few
@given(programs, seeds)
def test_composition_of_one_graph_s_plans(program, seed) -> None:  # type: ignore[no-untyped-def]
    case = Case(program, seed)
    first, total, _ = two_steps(case)
    joined = first.then(total.since(first))
    in_sequence = total.since(first).apply(first.apply(copy.deepcopy(case.original)))
    at_once = joined.apply(copy.deepcopy(case.original))
    close_models(at_once, in_sequence, case.x)
    assert joined.kept == total.kept
    assert first.then(pk.Plan()) == first
    assert pk.Plan().then(first) == first


@pytest.mark.slow
@few
@given(programs, seeds)
def test_composition_with_a_plan_of_a_new_graph(program, seed) -> None:  # type: ignore[no-untyped-def]
    """The second plan is made by analysing the pruned model anew: its groups are named and sized as they are now."""
    case = Case(program, seed)
    first = case.draft(0.3)
    middle = first.apply(copy.deepcopy(case.original))
    later = Case.__new__(Case)
    later.model, later.x, later.generator = copy.deepcopy(middle), case.x, case.generator
    later.graph = pk.DependencyGraph().build_dependency(later.model, later.x)
    second = later.draft(0.4)
    joined = pk.Plan.from_json(first.then(second).to_json())
    close_models(joined.apply(copy.deepcopy(case.original)), second.apply(copy.deepcopy(middle)), case.x)


def close_models(left: nn.Module, right: nn.Module, x: torch.Tensor) -> None:
    """The same slices bit for bit; rows that were scaled in two steps or in one may differ in the last bits."""
    ours, theirs = left.state_dict(), right.state_dict()
    assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in theirs.items()}
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-14, atol=0)
    with torch.no_grad():
        assert relative(left(x), right(x)) < 1e-12


@few
@given(programs, seeds, st.sampled_from([0.3, 0.6]))
def test_mask_and_apply_agree(program, seed, share) -> None:  # type: ignore[no-untyped-def]
    case = Case(program, seed)
    plan = case.draft(share)
    assert plan.cuts
    small = plan.apply(copy.deepcopy(case.original))
    full = masked(case.original, small, plan)
    assert {n: p.shape for n, p in full.named_parameters()} == {n: p.shape for n, p in case.original.named_parameters()}
    with torch.no_grad():
        assert relative(full(case.x), small(case.x)) < 1e-9
    zeros = sum(int((p == 0).sum()) for p in full.parameters())
    assert zeros == sum(p.numel() for p in full.parameters()) - sum(p.numel() for p in small.parameters())


# -- plans from strangers

HOSTILE: tuple[Any, ...] = (
    -1,
    0,
    1,
    2**31,
    2**63,
    10**30,
    1.5,
    float("nan"),
    float("inf"),
    True,
    None,
    "",
    "x",
    "__class__",
    "weight",
    [],
    [0],
    [[0]],
    [0, 0],
    [-1],
    {},
    {"group": "x", "size": 3},
    {"product": [2, 2]},
    {"concat": [1, {"concat": [1]}]},
    {"size": 4, "kept": [0]},
)
NAMES = ("", ".", "..", "x", "stem", "body", "head", "body.0", "training", "forward", "__class__", "_parameters", "how")


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Lists the paths to every value of some JSON."""
    found = [path] if path else []
    children = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in children:
        found.extend(places(value, (*path, key)))
    return found


def changed(data: Any, path: tuple[Any, ...], value: Any, how: int) -> Any:
    """A copy with one value exchanged, removed, doubled or put under another name."""
    result = copy.deepcopy(data)
    target = result
    for key in path[:-1]:
        target = target[key]
    last = path[-1]
    if how == 0:
        target[last] = value
    elif how == 1:
        del target[last]
    elif isinstance(target, list):
        target.insert(last, copy.deepcopy(target[last]))
    elif isinstance(value, str):
        target[value] = target.pop(last)
    else:
        target[last] = value
    return result


CASES = [Case(program, 3) for program in PROGRAMS]
TEXTS = [case.draft(0.5).to_json() for case in CASES]


@pytest.mark.slow
@many
@given(
    st.integers(0, len(PROGRAMS) - 1),
    st.integers(0, 10_000),
    st.one_of(st.sampled_from(HOSTILE), st.sampled_from(NAMES), st.integers(-2, 20)),
    st.integers(0, 2),
)
def test_a_corrupt_plan_is_refused_or_harmless(number, place, value, how) -> None:  # type: ignore[no-untyped-def]
    """One value is changed: a `PlanError` with the model untouched, or a plan that is still consistent."""
    data = json.loads(TEXTS[number])
    paths = places(data)
    text = json.dumps(changed(data, paths[place % len(paths)], value, how))
    model = copy.deepcopy(CASES[number].original)
    before = state_of(model)
    try:
        pk.Plan.from_json(text).apply(model)
    except pk.PlanError:
        event("refused")
        assert same_state(before, state_of(model))
        return
    event("applied")
    changed_only_sizes(before, state_of(model))


def changed_only_sizes(before: dict[str, object], after: dict[str, object]) -> None:
    """Whatever a plan did: no module, no attribute that is no size, and no tensor beyond slices was touched."""
    for key, old in before.items():
        if key not in after:
            assert "." in key or "/" in key, key
            continue
        new = after[key]
        if isinstance(old, tuple) and len(old) == 3 and isinstance(old[2], torch.Tensor):
            assert isinstance(new, tuple)
            assert new[2].dim() == old[2].dim()
            assert all(a <= b for a, b in zip(new[1], old[1], strict=True)), key
        elif type(old) is bool or not isinstance(old, int | tuple | list):
            assert type(old) is type(new), key


@pytest.mark.slow
@given(st.integers(0, len(PROGRAMS) - 1), st.text(max_size=40), st.integers(0, 4000))
def test_broken_text_is_refused(number, noise, place) -> None:  # type: ignore[no-untyped-def]
    text = TEXTS[number]
    broken = text[: place % len(text)] + noise
    try:
        assert json.loads(broken) == json.loads(text)
    except ValueError:
        with pytest.raises(pk.PlanError):
            pk.Plan.from_json(broken)


EDITS: tuple[list[Any], ...] = (
    ["", "training", 0, 1],
    ["", "training", False, True],
    ["", "forward", 1, 2],
    ["", "__class__", 1, 2],
    ["", "__dict__", 1, 2],
    ["", "_parameters", 1, 2],
    ["stem", "training", 0, 1],
    ["stem", "weight", 8, 4],
    ["stem", "padding_mode", 1, 2],
    ["stem", "out_channels", 7, 4],
    ["stem", "out_channels", 8, "4"],
    ["stem", "out_channels", 8, 4.0],
    ["stem", "out_channels", 8, [4]],
    ["stem", "out_channels", 8, -4],
    ["stem", "out_channels", 8, True],
    ["stem", "kernel_size", [3, 3], [3]],
    ["stem", "kernel_size", [3, 3], 3],
    ["stem", "kernel_size", [3, 3], [3, "3"]],
    ["stem", "no_such_attribute", 1, 2],
    ["no.such.module", "out_channels", 8, 4],
    ["body.0.weight", "out_channels", 8, 4],
    ["stem.__class__", "out_channels", 8, 4],
    ["_modules", "stem", 8, 4],
    [3, "out_channels", 8, 4],
    ["stem", 3, 8, 4],
    ["stem", "out_channels", 8],
    [],
    {},
    None,
)


@pytest.mark.parametrize("edit", EDITS, ids=repr)
def test_hostile_attribute_edits_are_refused(edit: Any) -> None:
    data = json.loads(TEXTS[0])
    data["edits"] = [*data["edits"], edit]
    refused(json.dumps(data), CASES[0].original)


RESCALES: tuple[Any, ...] = (
    ["stem.weight", [[0, 99]], 2.0],
    ["stem.weight", [[-1, 2]], 2.0],
    ["stem.weight", [[3, 2]], 2.0],
    ["stem.weight", [[0, 2]], -2.0],
    ["stem.weight", [[0, 2]], 0.0],
    ["stem.weight", [[0, 2]], "nan"],
    ["stem.weight", [[0, 2]], float("inf")],
    ["stem.weight", [[0]], 2.0],
    ["stem.weight", 3, 2.0],
    ["no.such", [[0, 2]], 2.0],
    ["stem", [[0, 2]], 2.0],
    ["stem.weight", [[0, 2]], 10**400],
    ["stem.weight", [[0, 2]], "2.0"],
    ["body.1.num_batches_tracked", [[0, 1]], 2.0],
    ["stem.__class__", [[0, 2]], 2.0],
    None,
)


@pytest.mark.parametrize("rescale", RESCALES, ids=lambda rescale: repr(rescale)[:48])
def test_hostile_rescales_are_refused(rescale: Any) -> None:
    data = json.loads(TEXTS[0])
    data["rescales"] = [rescale]
    refused(json.dumps(data), CASES[0].original)


SWAPS: tuple[Any, ...] = (
    ["stem", "no such replacement"],
    ["stem", "os.system"],
    ["", "torch.nn.modules.activation.MultiheadAttention"],
    ["stem", "torch.nn.modules.activation.MultiheadAttention"],
    ["no.such", "torch.nn.modules.activation.MultiheadAttention"],
    ["stem", 3],
    ["stem"],
    None,
)


@pytest.mark.parametrize("swap", SWAPS, ids=repr)
def test_hostile_swaps_are_refused(swap: Any) -> None:
    data = json.loads(TEXTS[0])
    data["swaps"] = [swap]
    refused(json.dumps(data), CASES[0].original)


PARAMETERS: tuple[tuple[str, Any], ...] = (
    ("stem.weight", {"shape": [8, 3, 3, 3], "dims": [{"size": 8, "kept": [0]}, 3, 3]}),
    ("stem.weight", {"shape": [8, 3, 3], "dims": [{"size": 8, "kept": [0]}, 3, 3]}),
    ("stem.weight", {"shape": [8, 3, 3, 3], "dims": [{"size": 9, "kept": [8]}, 3, 3, 3]}),
    ("stem.weight", {"shape": [8, 3, 3, 3], "dims": [{"product": [2, 2]}, 3, 3, 3]}),
    ("stem.weight", {"shape": [8, 3, 3, 3], "dims": [{"group": "stem", "size": 10**12}, 3, 3, 3]}),
    ("stem.weight", {"shape": [10**9] * 4, "dims": [10**9] * 4}),
    ("stem.weight", {"shape": [-8, 3, 3, 3], "dims": [-8, 3, 3, 3]}),
    ("stem.no_such", {"shape": [8], "dims": [{"size": 8, "kept": [0]}]}),
    ("stem", {"shape": [8], "dims": [{"size": 8, "kept": [0]}]}),
    ("", {"shape": [8], "dims": [{"size": 8, "kept": [0]}]}),
    ("stem.forward", {"shape": [8], "dims": [{"size": 8, "kept": [0]}]}),
    ("stem.weight", {"shape": "8", "dims": "8"}),
    ("stem.weight", None),
)


@pytest.mark.parametrize("entry", PARAMETERS, ids=repr)
def test_hostile_parameters_are_refused(entry: tuple[str, Any]) -> None:
    data = json.loads(TEXTS[0])
    data["parameters"][entry[0]] = entry[1]
    refused(json.dumps(data), CASES[0].original)


def test_deeply_nested_layouts_are_refused() -> None:
    data = json.loads(TEXTS[0])
    nested: Any = 8
    for _ in range(400):
        nested = {"product": [nested]}
    data["parameters"]["stem.weight"]["dims"][0] = nested
    text = json.dumps(data).replace('{"product": [', '{"product": [' * 200).replace("]}", "]}" * 200)
    refused(text, CASES[0].original)


def refused(text: str, original: nn.Module) -> None:
    model = copy.deepcopy(original)
    before = state_of(model)
    with pytest.raises(pk.PrunekitError):
        pk.Plan.from_json(text).apply(model)
    assert same_state(before, state_of(model))


class Tied(nn.Module):
    """An embedding and a head that are one parameter under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mid, self.head = nn.Embedding(7, 8), nn.Linear(8, 8), nn.Linear(8, 7)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.embed(x)
        return self.head(torch.relu(self.mid(y)) + y)


def test_one_tensor_under_two_names_is_not_cut_twice() -> None:
    model = Tied()
    plan = pk.BasePruner(copy.deepcopy(model), torch.randint(7, (2, 5)), "random").plan()
    data = json.loads(plan.to_json())
    data["parameters"]["head.weight"] = data["parameters"]["embed.weight"]
    refused(json.dumps(data), model)


class Recurrent(nn.Module):
    """One attention module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.second = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x, x, x, need_weights=False)[0]
        return self.out(self.second(x, x, x, need_weights=False)[0])


@pytest.mark.parametrize(
    ("part", "entry"),
    [
        ("swaps", ["second", "multihead_attention"]),
        ("edits", ["second", "head_dim", 4, 2]),
    ],
)
def test_a_second_name_of_an_exchanged_module_is_refused(part: str, entry: list[Any]) -> None:
    model = Recurrent()
    plan = pk.BasePruner(copy.deepcopy(model), torch.randn(2, 5, 8), "random").plan()
    data = json.loads(plan.to_json())
    assert data["swaps"] == [["first", "multihead_attention"]]
    data[part].append(entry)
    refused(json.dumps(data), model)


class Scalar(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("places", torch.arange(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(x))) * self.scale


@pytest.mark.parametrize("name", ["scale", "places"])
def test_what_has_no_rows_to_scale_is_refused(name: str) -> None:
    model = Scalar()
    data = json.loads(pk.BasePruner(copy.deepcopy(model), torch.randn(2, 6), "random").plan().to_json())
    data["rescales"] = [[name, [[0, 1]], 0.5]]
    refused(json.dumps(data), model)
