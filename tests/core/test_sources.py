"""A plan is for a program: other code is refused, with the same names and shapes, too; the same otherwise isn't."""

from __future__ import annotations

import copy
import importlib.util
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_core.modules.source_code import sources_of

X = torch.randn(2, 8)
HEAD = """
    import torch
    from torch import nn


    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4)

"""
PLAIN = """
        def forward(self, x):
            hidden = self.a(x).relu()
            return self.c(self.b(hidden).relu())
"""
SAME = {
    "as it is": PLAIN,
    "other names of variables": """
        def forward(self, inputs):
            h = self.a(inputs).relu()
            return self.c(self.b(h).relu())
""",
    "annotations, a docstring, comments and another layout": '''
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Runs."""
            hidden: torch.Tensor = self.a(x).relu()  # the first layer
            return self.c(
                self.b(hidden).relu()
            )
''',
    "a decorator": """
        @torch.no_grad()
        def forward(self, x):
            hidden = self.a(x).relu()
            return self.c(self.b(hidden).relu())
""",
}
OTHER = {
    "a flip": """
        def forward(self, x):
            hidden = self.a(x).relu()
            return self.c(self.b(hidden).relu() + hidden.flip(-1))
""",
    "a gate": """
        def forward(self, x):
            hidden = self.a(x).relu()
            return self.c(self.b(hidden).relu() * hidden)
""",
    "another number": """
        def forward(self, x):
            hidden = self.a(x).relu()
            return self.c(self.b(hidden.roll(1, -1)).relu())
""",
}


def write(folder: Path, text: str, name: str = "Net") -> Any:
    """Imports a class from a file of its own, as a program of a user's."""
    number = len(list(folder.iterdir()))
    path = folder / f"program{number}.py"
    path.write_text(textwrap.dedent(text))
    spec = importlib.util.spec_from_file_location(f"program_{folder.name}_{number}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return getattr(module, name)


@pytest.fixture
def plan(tmp_path: Path) -> pk.Plan:
    return pk.BasePruner(write(tmp_path, HEAD + PLAIN)(), X).plan()


@pytest.mark.parametrize("name", SAME)
def test_the_same_code_is_taken(name: str, plan: pk.Plan, tmp_path: Path) -> None:
    for text in (HEAD + SAME[name], (HEAD + SAME[name]).replace("Net", "Renamed")):
        made = write(tmp_path, text, "Renamed" if "Renamed" in text else "Net")()
        pk.Plan.from_json(plan.to_json()).apply(made)
        assert made(X).shape == (2, 4)
        assert made.a.out_features == 8


@pytest.mark.parametrize("name", OTHER)
def test_other_code_is_refused_unless_it_is_asked_for(name: str, plan: pk.Plan, tmp_path: Path) -> None:
    made = write(tmp_path, HEAD + OTHER[name])()
    before = copy.deepcopy(made.state_dict())
    for call in (plan.apply, plan.check, plan.mask, lambda model: pk.Plan.from_json(plan.to_json()).apply(model)):
        with pytest.raises(pk.PlanError, match="made for another program") as caught:
            call(made)
        assert caught.value.where == "the model (Net)"
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
    masked = plan.mask(copy.deepcopy(made), any_program=True)
    assert int((masked.a.weight == 0).all(1).sum()) == 8
    plan.apply(made, any_program=True)
    assert made.a.out_features == 8


def test_checkpoints_know_their_program(tmp_path: Path) -> None:
    model = write(tmp_path, HEAD + PLAIN)()
    result = pk.prune(model, X)
    pk.save(model, tmp_path / "x.safetensors", plan=result.plan)
    other = write(tmp_path, HEAD + OTHER["a gate"])()
    with pytest.raises(pk.CheckpointError, match="another model") as caught:
        pk.load(other, tmp_path / "x.safetensors")
    assert "any_program=True" in caught.value.hint
    assert other.a.out_features == 16
    assert pk.load(other, tmp_path / "x.safetensors", any_program=True).a.out_features == 8
    again = pk.load(write(tmp_path, HEAD + SAME["other names of variables"])(), tmp_path / "x.safetensors")
    assert torch.equal(again(X), model(X))


HELPED = """
        def forward(self, x):
            return self.c(self._middle(self.a(x).relu()))

        def _middle(self, hidden):
            return helper(self.b(hidden))


    def helper(x):
        return {}
"""


def test_what_forward_calls_counts(tmp_path: Path) -> None:
    plan = pk.BasePruner(write(tmp_path, HEAD + HELPED.format("x.relu()"))(), X).plan()
    plan.apply(write(tmp_path, HEAD + HELPED.format("x.relu()"))())
    with pytest.raises(pk.PlanError, match="another program"):
        plan.apply(write(tmp_path, HEAD + HELPED.format("x.relu().flip(-1)"))())


def test_a_subclass_counts_by_its_forward(tmp_path: Path) -> None:
    base = write(tmp_path, HEAD + PLAIN)
    plan = pk.BasePruner(base(), X).plan()
    plan.apply(type("Same", (base,), {"extra": 3})())

    class Other(base):  # type: ignore[misc, valid-type]
        def forward(self, x: torch.Tensor) -> Any:
            return super().forward(x)

    with pytest.raises(pk.PlanError, match="another program"):
        plan.apply(Other())


class Flip(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flip(-1)


def test_a_layer_of_a_library_that_became_other_code_is_refused() -> None:
    def made(middle: nn.Module) -> nn.Sequential:
        return nn.Sequential(nn.Linear(8, 16), middle, nn.Linear(16, 4))

    plan = pk.BasePruner(made(nn.ReLU()), X).plan()
    plan.apply(made(nn.GELU()))  # other layers of libraries are taken: nobody knows better
    with pytest.raises(pk.PlanError, match="another program") as caught:
        plan.apply(made(Flip()))
    assert caught.value.where == "1 (Flip)"


def test_what_has_no_source_is_taken(tmp_path: Path) -> None:
    space: dict[str, Any] = {}
    exec(compile(textwrap.dedent(HEAD + PLAIN), "<nowhere>", "exec"), space)
    base = write(tmp_path, HEAD + PLAIN)
    model = space["Net"]()
    assert dict(sources_of({"": model}, [""])) == {"": ""}
    pk.BasePruner(model, X).plan().apply(base())
    pk.BasePruner(base(), X).plan().apply(space["Net"]())


def test_forwards_that_were_exchanged_are_taken(plan: pk.Plan, tmp_path: Path) -> None:
    made = write(tmp_path, HEAD + PLAIN)()
    forward = made.forward
    made.forward = lambda x: forward(x)
    assert plan.apply(made).a.out_features == 8


def test_plans_without_sources_are_taken(plan: pk.Plan, tmp_path: Path) -> None:
    import json

    data = json.loads(plan.to_json())
    assert len(data["sources"][""]) == 16
    assert data["sources"]["a"] == "(Linear)"
    del data["sources"]
    pk.Plan.from_json(json.dumps(data)).apply(write(tmp_path, HEAD + OTHER["a flip"])())


def test_plans_that_are_composed_keep_what_is_known(tmp_path: Path) -> None:
    make = write(tmp_path, HEAD + PLAIN)
    model = make()
    pruner = pk.BasePruner(model, X, iterative_steps=2)
    pruner.step()
    first = pruner.graph.applied
    pruner.step()
    total = pruner.graph.applied
    assert first.then(total.since(first)) == total
    assert total.sources == first.sources
    with pytest.raises(pk.PlanError, match="another program"):
        total.apply(write(tmp_path, HEAD + OTHER["a flip"])())


def test_classes_that_pytorch_makes_of_others_are_those(tmp_path: Path) -> None:
    model = write(tmp_path, HEAD + PLAIN)()
    before = dict(sources_of({"": model, "a": model.a}, ["", "a"]))
    for module in (model, model.a):
        module.register_parameter("weight", nn.Parameter(torch.ones(2))) if module is model else None
        nn.utils.parametrize.register_parametrization(module, "weight", nn.Identity())
    assert type(model).__name__ == "ParametrizedNet"
    assert dict(sources_of({"": model, "a": model.a}, ["", "a"])) == before
    assert len(before[""]) == 16
    assert before["a"] == "(Linear)"


def test_libraries_are_no_matter_of_versions() -> None:
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.resnet18(weights=None)
    plan = pk.BasePruner(model, torch.randn(1, 3, 32, 32)).plan()
    assert {source[0] for _, source in plan.sources} == {"("}
    assert dict(plan.sources)["layer1.0"] == "(BasicBlock)"
