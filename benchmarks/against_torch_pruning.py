"""Compares prunekit's scores and choices with Torch-Pruning's, group by group, and prints a Markdown table.

    python benchmarks/against_torch_pruning.py                       all models and criteria; needs prunekit[vision]
    python benchmarks/against_torch_pruning.py --models resnet18 --criteria magnitude-2

Both sides run the same program, `side`; only its import differs. Torch-Pruning 1.6.1 runs in an environment of its own
(``--env``), in a process per model. The weights are made once, with random BatchNorms so that all scores differ, and
handed over in a file; everything is in float64, so that the order of sums doesn't show.

Groups are matched by the layers that produce their channels. Columns: groups that both have a score for; the largest
relative difference of a score; groups that lose other channels in one step at ratio 0.5, local and global; and groups
that only one of them has.

Torch-Pruning adds up in float32 whatever the model's dtype is, which shows as 1e-7 in every score. LAMP divides by sums
of all larger scores: there it loses digits to cancellation, and where float32 swaps two magnitudes that are almost
equal, each gets the score of the other's rank. The remarks give the error of both tools against the formula.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import environment
import torch
from torch import nn

MODELS = ("resnet18", "resnet50", "vgg16_bn", "mobilenet_v2", "densenet121")
IMPORTS = {"prunekit": "prunekit_plugins.compat.torch_pruning", "torch-pruning": "torch_pruning"}
CRITERIA: dict[str, Callable[[Any], Any]] = {
    "magnitude-1": lambda tp: tp.importance.GroupMagnitudeImportance(p=1),
    "magnitude-2": lambda tp: tp.importance.GroupMagnitudeImportance(p=2),
    "lamp": lambda tp: tp.importance.LAMPImportance(p=2),
    "bn-scale": lambda tp: tp.importance.BNScaleImportance(),
}
RATIO = 0.5
TOLERANCE = 1e-6


# -- one side, in a process of its own


def build(name: str, weights: Path) -> tuple[nn.Module, torch.Tensor]:
    """Builds a torchvision model and fills in the weights; makes them where there is no file."""
    models = importlib.import_module("torchvision.models")
    torch.manual_seed(0)
    model = getattr(models, name)(weights=None).double().eval()
    if weights.exists():
        model.load_state_dict(torch.load(weights, weights_only=True))
    else:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.1, 1.0)
                nn.init.normal_(module.bias)
        torch.save(model.state_dict(), weights)
    return model, torch.zeros(1, 3, 224, 224, dtype=torch.float64)


def producers(group: Any, names: dict[nn.Module, str]) -> str:
    """Names the layers that produce the channels of a group."""
    found = set()
    for dep, _ in group:
        layer = dep.target.module
        depthwise = isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels == layer.out_channels > 1
        out = dep.handler.__name__.endswith("out_channels") if dep.handler else False
        if layer in names and out and isinstance(layer, nn.Conv2d | nn.Linear) and not depthwise:
            found.add(names[layer])
    return ", ".join(sorted(found))


def classifier(model: nn.Module) -> nn.Module:
    return next(m for m in reversed(list(model.modules())) if isinstance(m, nn.Linear) and m.out_features == 1000)


def side(tool: str, name: str, weights: Path, criteria: list[str]) -> Iterator[dict[str, Any]]:
    """Yields scores per group, and the channels that go, for every criterion."""
    tp = importlib.import_module(IMPORTS[tool])
    for criterion in criteria:
        model, x = build(name, weights)
        paths = {module: path for path, module in model.named_modules()}
        graph = tp.DependencyGraph().build_dependency(model, example_inputs=x)
        scores, errors = {}, []
        for group in graph.get_all_groups(ignored_layers=[classifier(model)]):
            found = CRITERIA[criterion](tp)(group)
            if found is not None:
                scores[producers(group, paths)] = found.tolist()
                if criterion == "lamp":
                    raw = tp.importance.GroupMagnitudeImportance(p=2, normalizer=None)(group)
                    errors.append(difference(found.tolist(), formula(raw.tolist())))
        result: dict[str, Any] = {"criterion": criterion, "scores": scores, "error": max(errors, default=None)}
        for scope in ("local", "global"):
            model, x = build(name, weights)
            paths = {module: path for path, module in model.named_modules()}
            pruner = tp.pruner.MagnitudePruner(
                model,
                example_inputs=x,
                importance=CRITERIA[criterion](tp),
                global_pruning=scope == "global",
                pruning_ratio=RATIO,
                ignored_layers=[classifier(model)],
            )
            removed = {}
            for group in pruner.step(interactive=True):
                if group[0].idxs:  # Torch-Pruning also yields groups that lose nothing
                    removed[producers(group, paths)] = sorted(group[0].idxs)
                    group.prune()
            result[scope] = removed
        yield result


def formula(magnitudes: list[float]) -> list[float]:
    """LAMP (Lee et al. 2021, eq. 3) from magnitudes, with exact sums."""
    order = sorted(range(len(magnitudes)), key=magnitudes.__getitem__)
    found = [0.0] * len(magnitudes)
    for place, unit in enumerate(order):
        found[unit] = magnitudes[unit] / math.fsum(magnitudes[other] for other in order[place:])
    return found


# -- comparing


def run(python: Path | str, tool: str, name: str, weights: Path, criteria: list[str]) -> dict[str, Any]:
    command = [str(python), __file__, "--side", tool, "--models", name, "--criteria", ",".join(criteria)]
    process = subprocess.run([*command, "--weights", str(weights)], capture_output=True, text=True, check=False)
    if process.returncode:
        raise SystemExit(f"{tool} on {name} failed:\n{process.stderr}")
    lines = [json.loads(line) for line in process.stdout.splitlines() if line.startswith("{")]
    return {line["criterion"]: line for line in lines}


def difference(ours: list[float], theirs: list[float]) -> float:
    """Returns the largest relative difference; infinite where there are not as many."""
    if len(ours) != len(theirs):
        return float("inf")
    return max(abs(a - b) / max(abs(a), abs(b), 1e-300) for a, b in zip(ours, theirs, strict=True))


def compare(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Returns the cells of a row, and remarks on groups that differ."""
    both = [group for group in ours["scores"] if group in theirs["scores"]]
    apart = {group: difference(ours["scores"][group], theirs["scores"][group]) for group in both}
    if ours["error"] is None:
        remarks = [f"scores of {group}: {d:.1e} apart" for group, d in apart.items() if d > TOLERANCE]
    else:
        a, b = ours["error"], theirs["error"]
        remarks = [f"largest error of a score against the formula: prunekit {a:.0e}, Torch-Pruning {b:.0e}"]
    single = sorted(ours["scores"].keys() ^ theirs["scores"].keys())
    remarks += [f"only {'prunekit' if g in ours['scores'] else 'Torch-Pruning'} scores {g}" for g in single]
    cells = [str(len(both)), f"{max(apart.values(), default=0.0):.0e}"]
    for scope in ("local", "global"):
        groups = ours[scope].keys() | theirs[scope].keys()
        other = sorted(group for group in groups if ours[scope].get(group) != theirs[scope].get(group))
        for group in other:
            a, b = (set(tool[scope].get(group, ())) for tool in (ours, theirs))
            remarks.append(f"{scope}, {group}: {len(a)} and {len(b)} go; {sorted(a ^ b)[:6]} differ")
        cells.append(f"{len(groups) - len(other)} of {len(groups)}")
    return [*cells, str(len(single))], remarks


def main() -> None:
    parser = argparse.ArgumentParser(description="Scores and choices of prunekit and Torch-Pruning 1.6.1.")
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated names from torchvision.models")
    parser.add_argument("--criteria", default=",".join(CRITERIA), help="comma-separated")
    parser.add_argument("--env", type=Path, default=environment.DEFAULT, help="Torch-Pruning's environment")
    parser.add_argument("--remarks", type=int, default=4, help="differences to list per row (4)")
    parser.add_argument("--side", choices=IMPORTS, help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    criteria = options.criteria.split(",")
    if options.side:
        warnings.simplefilter("ignore")
        for result in side(options.side, options.models, options.weights, criteria):
            print(json.dumps(result), flush=True)
        return
    python, theirs = environment.ensure(options.env)
    print(f"prunekit {version('prunekit')} with torch {version('torch')}; {theirs}\n")
    print("| model | criterion | groups | scores apart | same local | same global | unmatched |")
    print("|---|---|---:|---:|---:|---:|---:|", flush=True)
    notes = []
    for name in options.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / "weights.pt"
            build(name, weights)
            found = {
                tool: run(where, tool, name, weights, criteria)
                for tool, where in (("prunekit", sys.executable), ("torch-pruning", python))
            }
        for criterion in criteria:
            cells, remarks = compare(found["prunekit"][criterion], found["torch-pruning"][criterion])
            print(f"| {' | '.join([name, criterion, *cells])} |", flush=True)
            notes += [f"- {name}, {criterion}: {remark}" for remark in remarks[: options.remarks]]
    print("\n" + "\n".join(notes))


if __name__ == "__main__":
    main()
