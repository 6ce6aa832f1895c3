"""Measures prunekit's speed, and its ratio to Torch-Pruning's in the same run, and prints Markdown tables.

    python benchmarks/speed.py                  all models, 5 repeats; needs prunekit[vision]
    python benchmarks/speed.py --quick          4 small models and the large Llama, 1 repeat
    python benchmarks/speed.py --models resnet50,densenet161 --json speed.json
    python benchmarks/speed.py --scaling --plot docs/scaling.png        how time grows with depth and width

Torch-Pruning 1.6.1 is installed from PyPI into an environment of its own (``--env``). Every tool and model gets a
process of its own, with the same number of threads and the same time limit, after one warm-up on a tiny model;
the two tools take turns, model by model. Building and copying models isn't counted.

Ratios are given by wall clock and by processor time; the second one bears other work on the machine better.

1. Step: analysis, groups, and one pruning step at ratio 0.5 with L2 magnitude, prunekit's rehearsal included.
2. The first call of a process: the same step with no warm-up, the imports of the tool in it.
3. Phases: where prunekit's time goes, and its analysis against one forward on fake tensors (an analysis records the
   program twice where a module asks whether it is in train mode); on real ones for detectors, which look at values;
   processor time.
4. Application: applying a finished plan, against copying every parameter once, in processor time; and the memory it
   needs on top.
5. Llama: analysis and plan of a 32-layer model without data.
6. Scaling: the same step for stacks of 4 to 128 blocks and of 32 to 1024 channels, with the exponent of the growth.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import environment

MODELS = (
    "resnet18",
    "resnet50",
    "resnet101",
    "vgg16_bn",
    "squeezenet1_1",
    "densenet121",
    "densenet161",
    "inception_v3",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mnasnet1_0",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "regnet_y_400mf",
    "resnext50_32x4d",
    "shufflenet_v2_x1_0",
    "convnext_base",
    "vit_b_16",
    "swin_t",
    "retinanet_resnet50_fpn",
    "maskrcnn_resnet50_fpn",
    "bert_base",
    "llama_8",
    "llama_32",
    "llama_64",
)
DEPTHS = tuple(f"stack_{depth}x32" for depth in (4, 8, 16, 32, 64, 128))
WIDTHS = tuple(f"stack_4x{width}" for width in (32, 64, 128, 256, 512, 1024))
QUICK = ("resnet18", "squeezenet1_1", "mobilenet_v2", "shufflenet_v2_x1_0")
LLAMA = "llama"
PHASES = ("analysis", "plan", "application")
WORKER = Path(__file__).with_name("worker.py")


def measure(
    python: Path | str, tool: str, model: str, options: argparse.Namespace, *, cold: bool = False
) -> dict[str, Any]:
    """Runs one worker and sorts what it reported: lists per kind, and the reason if something failed."""
    command = [str(python), str(WORKER), tool, model]
    command += ["--threads", str(options.threads), "--repeats", str(options.repeats), *(["--cold"] if cold else [])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        output, errors = process.communicate(timeout=options.limit)
        reason = ""
    except subprocess.TimeoutExpired:
        process.kill()
        output, errors = process.communicate()
        reason = f"over {options.limit:g} s"
    found: dict[str, Any] = {"tool": tool, "model": model, "reason": reason}
    found |= {"step": [], "application": [], "llama": [], "forward": [], "cold": []}
    for line in output.splitlines():
        if line.startswith("{"):
            values = json.loads(line)
            kind = values.pop("kind")
            if kind == "failed":
                found["reason"] = values["reason"]
            else:
                found[kind].append(values)
    if process.returncode and not found["reason"]:
        found["reason"] = f"exit code {process.returncode}: {(errors.strip().splitlines() or [''])[-1][:120]}"
    if reason and len(found["step"]) >= options.repeats:
        found["reason"] = f"{reason}, after the steps were timed"
    return found


def median(result: dict[str, Any], clock: str) -> float | None:
    """Returns the median of the repeats, also where the time limit allowed only some; None for a failure."""
    if not result["step"] or (result["reason"] and not result["reason"].startswith("over ")):
        return None
    times: list[float] = [step[clock] for step in result["step"]]
    return statistics.median(times)


def geometric_mean(values: Iterable[float]) -> float:
    return math.exp(statistics.fmean(math.log(value) for value in values))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join(['---'] + ['---:'] * (len(head) - 1))}|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def step_table(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Ratios of the step; what failed is a row with its reason and no ratio."""
    rows, notes = [], []
    ratios: dict[str, list[float]] = {"seconds": [], "cpu_seconds": []}
    for model, tools in results.items():
        ours, theirs = tools["prunekit"], tools["torch-pruning"]
        a, b = median(ours, "seconds"), median(theirs, "seconds")
        shown = []
        for clock, known in ratios.items():
            x, y = median(ours, clock), median(theirs, clock)
            if x and y:
                known.append(y / x)
            shown.append(f"{y / x:.1f}" if x and y else "")
        kept = " / ".join(f"{r['step'][-1]['parameters']:.0%}" if r["step"] else "-" for r in (ours, theirs))
        extra = " / ".join(f"{r['step'][0]['extra_bytes'] / 2**20:.0f}" if r["step"] else "-" for r in (ours, theirs))
        rows.append((model, cell(ours, a), cell(theirs, b), *shown, kept, extra))
        notes += [f"- {model}, {r['tool']}: {r['reason']}" for r in (ours, theirs) if r["reason"]]
    head = ("model", "prunekit s", "torch-pruning s", "torch-pruning / prunekit", "same, CPU time", "kept", "peak MiB")
    text = table(head, rows)
    for name, known in zip(("wall clock", "CPU time"), ratios.values(), strict=True):
        if known:
            mean = geometric_mean(known)
            text += f"\n\nGeometric mean of {len(known)} ratios by {name}: {mean:.1f}; lowest {min(known):.1f}."
    return "\n".join([text, *(["", *notes] if notes else [])])


def cold_table(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The same step as the first of a process, the tool's own imports in it; processor time."""
    rows, ratios = [], []
    for model, tools in results.items():
        times = {tool: [run["cpu_seconds"] for run in found["cold"]] for tool, found in tools.items()}
        a, b = (statistics.median(known) if known else None for known in times.values())
        if a and b and median(tools["torch-pruning"], "cpu_seconds"):
            ratios.append(b / a)
            rows.append((model, f"{a:.3f}", f"{b:.3f}", f"{b / a:.1f}"))
        else:
            rows.append((model, *(f"{value:.3f}" if value else "-" for value in (a, b)), ""))
    text = table(("model", "prunekit s", "torch-pruning s", "torch-pruning / prunekit"), rows)
    if ratios:
        mean = geometric_mean(ratios)
        text += f"\n\nGeometric mean of {len(ratios)} ratios by CPU time: {mean:.1f}; lowest {min(ratios):.1f}."
    return text


def cell(result: dict[str, Any], value: float | None) -> str:
    if value is not None:
        return f"{value:.3f}"
    return result["reason"] if result["reason"].startswith("over ") else "failed"


def application_table(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    rows = []
    for model, tools in results.items():
        for found in tools["prunekit"]["application"]:
            rows.append(
                (
                    model,
                    f"{1000 * found['seconds']:.1f}",
                    f"{1000 * found['copy_seconds']:.1f}",
                    f"{found['seconds'] / found['copy_seconds']:.2f}",
                    f"{found['extra_bytes'] / found['made_bytes']:.2f}",
                )
            )
    head = ("model", "apply ms", "copy ms", "apply / copy", "peak extra / tensors it makes")
    return table(head, rows)


def phase_table(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    rows = []
    for model, tools in results.items():
        found = tools["prunekit"]
        if found["step"]:
            phases = [statistics.median(step[name] for step in found["step"]) for name in PHASES]
            programs, shown = found["step"][0]["programs"], ("", "", "")
            for forward in found["forward"]:
                one, training = forward["seconds"], forward["train_seconds"]
                each = one + (training if programs > 1 else 0)
                ms = f"{1000 * one:.0f}" if forward["fake"] else f"{1000 * one:.0f} (real)"
                shown = (ms, f"{phases[0] / one:.1f}", f"{phases[0] / each:.1f}")
            rows.append((model, str(programs), *(f"{1000 * phase:.0f}" for phase in phases), *shown))
    head = ("model", "programs", "analysis ms", "plan ms", "application ms")
    head += ("one fake forward ms", "analysis / forward", "analysis / one for each program")
    return table(head, rows)


def exponent(sizes: Sequence[int], times: Sequence[float]) -> float:
    """The slope of a line through the logarithms, by least squares."""
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in times]
    mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def curves(results: dict[str, dict[str, dict[str, Any]]], names: Sequence[str], place: int) -> dict[str, Any]:
    """Per tool, the sizes it managed, with seconds and extra bytes."""
    found: dict[str, Any] = {}
    for tool in ("prunekit", "torch-pruning"):
        points = []
        for name in filter(results.__contains__, names):
            result = results[name][tool]
            seconds = median(result, "seconds")
            if seconds is not None:
                size = int(name.partition("_")[2].split("x")[place])
                points.append((size, seconds, result["step"][0]["extra_bytes"]))
        found[tool] = points
    return found


def scaling_table(results: dict[str, dict[str, dict[str, Any]]], names: Sequence[str], place: int, what: str) -> str:
    """Seconds per size; the exponent is that of the upper half of the sizes, where fixed costs count little."""
    found = curves(results, names, place)
    sizes = [int(name.partition("_")[2].split("x")[place]) for name in names]
    rows = []
    for tool, points in found.items():
        known = {size: seconds for size, seconds, _ in points}
        upper = [(size, known[size]) for size in sizes[len(sizes) // 2 :] if size in known]
        slope = f"{exponent(*zip(*upper, strict=True)):.2f}" if len(upper) > 1 else ""
        rows.append((tool, *(f"{known[size]:.3f}" if size in known else "-" for size in sizes), slope))
    return table((what, *(str(size) for size in sizes), "exponent"), rows)


def plot(results: dict[str, dict[str, dict[str, Any]]], path: Path) -> None:
    """Draws time over depth and over width, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, (names, place, label) in zip(axes, ((DEPTHS, 0, "blocks"), (WIDTHS, 1, "channels")), strict=True):
        for (tool, points), marker in zip(curves(results, names, place).items(), "os", strict=True):
            axis.loglog([p[0] for p in points], [p[1] for p in points], marker=marker, label=tool)
        axis.set_xlabel(label)
        axis.set_ylabel("seconds for analysis and one step")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=110)


def llama_table(result: dict[str, Any]) -> str:
    rows = []
    for tied in (False, True):
        runs = [run for run in result["llama"] if run["tied"] is tied]
        if runs:
            analysis, plan = (statistics.median(run[key] for run in runs) for key in ("analysis", "plan"))
            size = f"{runs[0]['parameters'] / 1e9:.1f} B"
            rows.append(("tied" if tied else "untied", size, f"{analysis:.2f}", f"{plan:.2f}"))
    text = table(("head", "parameters", "analysis s", "plan s"), rows)
    return f"{text}\n\n- {result['reason']}" if result["reason"] else text


def processor() -> str:
    """Returns the processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed of prunekit, with ratios to Torch-Pruning 1.6.1.")
    parser.add_argument("--models", help=f"comma-separated: names from torchvision.models, or {LLAMA}")
    parser.add_argument("--quick", action="store_true", help=f"{', '.join(QUICK)} and {LLAMA}, 1 repeat")
    parser.add_argument("--repeats", type=int, help="measurements per tool and model, of which the median counts (5)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of both tools (1)")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds per tool and model, all repeats (120)")
    parser.add_argument("--env", type=Path, default=environment.DEFAULT, help="Torch-Pruning's environment")
    parser.add_argument("--scaling", action="store_true", help="stacks of growing depth and width instead of models")
    parser.add_argument("--plot", type=Path, help="with --scaling: a PNG to draw")
    parser.add_argument("--json", type=Path, help="file for the raw data, written after every model")
    options = parser.parse_args(arguments)
    default = (*QUICK, LLAMA) if options.quick else (*MODELS, LLAMA)
    if options.scaling:
        default = tuple(dict.fromkeys((*DEPTHS, *WIDTHS)))
    options.models = tuple(options.models.split(",")) if options.models else default
    options.repeats = options.repeats or (1 if options.quick else 5)
    unknown = [name for name in options.models if name not in (*MODELS, *DEPTHS, *WIDTHS, LLAMA)]
    if unknown:
        parser.error(f"unknown model {unknown[0]}; known: {', '.join((*MODELS, LLAMA))}")
    if options.repeats < 1 or options.threads < 1 or options.limit <= 0:
        parser.error("--repeats, --threads and --limit must be positive")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    python, theirs = environment.ensure(options.env)
    ours = {name: version(name) for name in ("torch", "torchvision", "prunekit")}
    machine = f"{processor()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    print(f"Machine: {machine}; {options.threads} thread(s), median of {options.repeats}, limit {options.limit:g} s.")
    for versions in (ours, json.loads(theirs)):
        print("Versions: " + ", ".join(f"{name} {number}" for name, number in versions.items()) + ".")
    results: dict[str, dict[str, dict[str, Any]]] = {}
    data = {"machine": machine, "threads": options.threads, "repeats": options.repeats, "limit": options.limit}
    data |= {"prunekit": ours, "torch-pruning": json.loads(theirs), "models": results, LLAMA: None}
    for model in options.models:
        print(model, file=sys.stderr, flush=True)
        if model == LLAMA:
            data[LLAMA] = measure(sys.executable, "prunekit", LLAMA, options)
        else:
            tools = {"prunekit": sys.executable, "torch-pruning": python}
            results[model] = {tool: measure(place, tool, model, options) for tool, place in tools.items()}
            if not options.scaling:
                for _ in range(options.repeats):
                    for tool, place in tools.items():
                        results[model][tool]["cold"] += measure(place, tool, model, options, cold=True)["cold"]
        if options.json:
            options.json.write_text(json.dumps(data, indent=1))
    if options.scaling:
        print(f"\n## Depth\n\n{scaling_table(results, DEPTHS, 0, 'seconds for a stack of so many blocks')}")
        print(f"\n## Width\n\n{scaling_table(results, WIDTHS, 1, 'seconds for 4 blocks of so many channels')}")
        if options.plot:
            plot(results, options.plot)
        return
    if results:
        print(f"\n## Analysis, groups and one pruning step\n\n{step_table(results)}")
        print(f"\n## The first call of a process\n\n{cold_table(results)}")
        print(f"\n## Phases (prunekit)\n\n{phase_table(results)}")
        print(f"\n## Applying a plan (prunekit)\n\n{application_table(results)}")
    if data[LLAMA] is not None:
        print(f"\n## Llama of 32 layers on the meta device (prunekit)\n\n{llama_table(data[LLAMA])}")


if __name__ == "__main__":
    main()
