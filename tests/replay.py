"""What prunekit finds, decides and says about many models, written down, so that moving code shows to change nothing.

``python -m tests.replay --out FOLDER`` writes the records, one file for each; ``--store`` stores their digests in
``replay.json``, which `test_replay` compares. To see what a change did, write the records before it and after it, and
compare the folders (after tinygrad's process replay).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import importlib.util
import io
import json
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import safetensors.torch
import torch
from torch import nn

import prunekit as pk
from prunekit import plugin
from prunekit_plugins.cli.entry import main as command_line
from prunekit_plugins.importance import RandomImportance
from tests.cli import toys
from tests.programs.grammar.writing import write
from tests.zoo import test_families, test_wounds

STORED = Path(__file__).with_name("replay.json")
PROGRAMS = 200
"""How many random programs are replayed, from seed 0."""
Make = Callable[[], tuple[nn.Module, Any]]


def replay() -> Iterator[tuple[str, str]]:
    """Yields the name of each record and its text."""
    for name, make in models().items():
        yield f"model {name}", of_model(make)
    for seed in range(PROGRAMS):
        yield f"program {seed}", of_program(seed)
    for name, call in ERRORS.items():
        yield f"error {name}", error_of(call)
    yield from of_commands()


def models() -> dict[str, Make]:
    """The models of the zoo's tests."""
    found: dict[str, Make] = {}
    for kind in test_wounds.MODELS:
        found[f"wound {kind.__name__}"] = lambda kind=kind: (kind(), kind.inputs)  # type: ignore[misc]
    for family, name in test_families.SMALL:
        if importlib.util.find_spec(test_families.NEEDS.get(name, "torch")):
            found[f"{family} {name}"] = test_families.zoo_awkward.MODELS[family][name]
    return found


def of_model(make: Make) -> str:
    """Everything about a model: its groups, what pins it, and plans with reports, by ratio, by target and ranked."""
    model, inputs = made(make)
    graph = pk.DependencyGraph().build_dependency(model, inputs)
    parts = [structure(graph), str(graph.report())]
    for options in OPTIONS:
        model, inputs = made(make)
        parts.append(attempt(functools.partial(_pruned, model, inputs, options)))
    return "\n\n".join(parts)


OPTIONS: tuple[dict[str, Any], ...] = ({}, {"target": {"macs": 0.6}}, {"global_pruning": True, "prune_num_heads": True})


def _pruned(model: nn.Module, inputs: Any, options: dict[str, Any]) -> str:
    return decided(pk.prune(model, inputs, importance=random(), **options))


def made(make: Make) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model, inputs = make()
    return model.eval(), inputs


def random() -> Any:
    """Scores that are the same on all machines, which sums of squares aren't in their last bits."""
    return RandomImportance(seed=0)


def structure(graph: pk.DependencyGraph) -> str:
    """The groups with their kinds and members, in order."""
    lines = []
    for group in graph.groups():
        lines.append(f"{group.name}: {group.size} {group.kind.value}, outer {group.outer}, least {group.least}")
        lines += [f"  {member.parameter}[{member.dim}] {member.role.value}" for member in group.members]
        lines += [f"  mixes {use}" for use in group.mixes]
    return "\n".join(lines)


def decided(result: pk.PruneResult) -> str:
    """The plan, but for the digests of the models' own code, and what is printed."""
    plan = json.loads(result.plan.to_json())
    plan.pop("sources", None)
    return f"{json.dumps(plan, indent=1)}\n{result}\n{result.verification}"


def attempt(act: Callable[[], str]) -> str:
    """What comes of something, or the text of its error."""
    try:
        return act()
    except pk.PrunekitError as error:
        return f"{type(error).__name__}: {error}"


def of_program(seed: int) -> str:
    """Groups, report and plan of a random program."""
    program = write(seed)
    model, inputs = program.build()

    def act() -> str:
        graph = pk.DependencyGraph().build_dependency(model, inputs)
        groups = structure(graph)
        return f"{groups}\n{decided(pk.prune(model, inputs, importance=random(), ratio=0.4))}"

    return f"{program.source()}\n{attempt(act)}"


def error_of(act: Callable[[], object]) -> str:
    """The text of an error, with its class and what else it derives from."""
    torch.manual_seed(0)
    try:
        act()
    except pk.PrunekitError as error:
        bases = ", ".join(kind.__name__ for kind in type(error).__mro__[1:-1])
        return f"{type(error).__name__} ({bases}): {error}"
    return "no error"


def _net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


class Backwards(nn.Sequential):
    """The same layers, but the units that they share are turned round."""

    def __init__(self) -> None:
        super().__init__(*_net())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self[2](self[0](x).relu().flip(-1))
        return y


def _nothing() -> dict[str, Any]:
    return {}


def _plan() -> pk.Plan:
    torch.manual_seed(0)
    return pk.BasePruner(_net(), X, random()).plan()


X = torch.zeros(2, 4)
ERRORS: Mapping[str, Callable[[], object]] = {
    "a ratio of one": lambda: pk.prune(_net(), X, 1.0),
    "a target that is a number": lambda: pk.prune(_net(), X, target=0.5),  # type: ignore[arg-type]
    "an unknown cost": lambda: pk.prune(_net(), X, target={"flops": 0.5}),
    "a target out of reach": lambda: pk.prune(_net(), X, target={"macs": 1e-6}),
    "an unknown keyword": lambda: pk.prune(_net(), X, global_prunin=True),
    "an unknown criterion": lambda: pk.prune(_net(), X, importance="magnitud"),
    "a criterion that is no callable": lambda: pk.prune(_net(), X, importance=3),  # type: ignore[arg-type]
    "a criterion that returns nothing of use": lambda: pk.prune(_net(), X, importance=lambda g: torch.ones(2)),
    "an unknown layer": lambda: pk.prune(_net(), X, ignored_layers=["layer9"]),
    "a kind of layer that isn't there": lambda: pk.prune(_net(), X, ignored_layers=[nn.Conv2d]),
    "round_to of nothing": lambda: pk.prune(_net(), X, round_to=0),
    "an unknown allocation": lambda: pk.prune(_net(), X, target={"macs": 0.5}, allocation="best"),
    "an optimizer that is none": lambda: pk.prune(_net(), X, optimizer=5),  # type: ignore[arg-type]
    "a forward that raises": lambda: pk.prune(_net(), torch.zeros(2, 5)),
    "an example of another dtype": lambda: pk.prune(_net(), torch.zeros(2, 4, dtype=torch.long)),
    "no module": lambda: pk.prune(len, X),  # type: ignore[arg-type]
    "lazy parameters": lambda: pk.prune(nn.LazyLinear(3), X),
    "nothing to prune": lambda: pk.prune(nn.Linear(4, 3), X),
    "an unknown output": lambda: pk.prune(_net(), X, free_outputs=["hidden"]),
    "a plan for another model": lambda: _plan().apply(nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 3))),
    "a plan for another program": lambda: _plan().apply(Backwards()),
    "a plan that is no JSON": lambda: pk.Plan.from_json("{"),
    "a plan of another format": lambda: pk.Plan.from_json('{"format": 99}'),
    "wrong units": lambda: _group().prune([8]),
    "a checkpoint that isn't there": lambda: pk.load(_net(), "/nowhere/model.safetensors"),
    "a checkpoint that can't be written": lambda: pk.save(_net(), "/nowhere/model.safetensors"),
    "a misspelt hook": lambda: pk.Registry(extra={"mine": SimpleNamespace(prunekit_op_rule=plugin.hookimpl(_nothing))}),
}


def _group() -> pk.Group:
    graph = pk.DependencyGraph().build_dependency(_net(), X)
    return next(iter(graph.get_all_groups()))


def of_commands() -> Iterator[tuple[str, str]]:
    """What commands print as JSON, in a folder of their own."""
    model = ("tests.cli.toys:blocks", "--input", "1,4")
    with tempfile.TemporaryDirectory() as folder:
        small, plan, weights = (f"{folder}/{name}" for name in ("small.safetensors", "plan.json", "whole.safetensors"))
        torch.manual_seed(0)
        safetensors.torch.save_file(toys.blocks().state_dict(), weights)
        calls = {
            "inspect": ("inspect", *model),
            "inspect with rules": ("inspect", *model, "--rules"),
            "prune": ("prune", *model, "--importance", "random", "--weights", weights, "--out", small, "--plan", plan),
            "prune to a target": ("prune", *model, "--target", "macs=0.6", "--importance", "random", "--check"),
            "apply": ("apply", plan, weights, f"{folder}/applied.safetensors"),
            "plugins": ("plugins",),
            "an unknown model": ("inspect", "tests.cli.toys:nothing", "--input", "1,4"),
            "an unknown option": ("inspect", *model, "--rule"),
        }
        for name, words in calls.items():
            yield f"command {name}", printed([*words, "--json"]).replace(folder, "FOLDER")


def printed(words: list[str]) -> str:
    """The exit code of a command and what it prints."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = command_line(words)
    return f"{code}\n{out.getvalue()}\n{err.getvalue()}"


SCRUBBED = {
    r"\(/[^()]*\.py:\d+\)": "(SITE)",
    r"[\w./-]*/?prunekit[\w-]*/[\w/.-]+\.py:\d+": "SITE",
    r"/[\w./-]+\.(cpp|cu|h):\d+": "SITE",
    r"\d(\.\d+)?e[+-]\d\d": "ROUNDING",
    r'"error": 0\.0\b': '"error": ROUNDING',
    r'"(\w*seconds|\w*version|torch|python|platform|created|sha256)": ("[^"]*"|[\d.e-]+)': r'"\1": "..."',
}
"""What differs between machines, or where code is moved, and what stands for it: places, rounding, versions, times."""


def scrubbed(text: str) -> str:
    """Text without what differs between machines."""
    for pattern, instead in SCRUBBED.items():
        text = re.sub(pattern, instead, text)
    return text


def digests() -> dict[str, str]:
    """The name of each record and a digest of its text."""
    return {name: hashlib.sha256(scrubbed(text).encode()).hexdigest()[:12] for name, text in replay()}


def torch_series() -> str:
    """What digests are stored by: other versions of PyTorch run other operations."""
    return ".".join(torch.__version__.split(".")[:2])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="a folder for the records")
    parser.add_argument("--store", action="store_true", help="store the digests")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        for name, text in replay():
            file = re.sub(r"[^\w+-]+", "_", name) + ".txt"
            (arguments.out / file).write_text(scrubbed(text))
    if arguments.store:
        stored = {**json.loads(STORED.read_text()), torch_series(): digests()}
        STORED.write_text(json.dumps(stored, indent=0) + "\n")


if __name__ == "__main__":
    main()
