"""Sweeps real architectures with random weights and no hints, and prints a Markdown table.

    python benchmarks/zoo.py --family torchvision --sample 10          needs prunekit[vision]
    python benchmarks/zoo.py --family timm --jobs 4 --json zoo.jsonl   needs timm; one small model of every module
    python benchmarks/zoo.py --models resnet18,raft_small
    python benchmarks/zoo.py --family model_types             every model type of transformers, as small as can be
    python benchmarks/zoo.py --family ecosystems              needs the environment of ecosystems/requirements.txt
    python benchmarks/zoo.py --table zoo.jsonl                         the table of an earlier run
    python benchmarks/zoo.py --depth --family torchvision              branches instead of units, see `zoo_depth_table`
    python benchmarks/zoo.py --experts                        experts of mixtures, see `zoo_experts_table`

Every model gets a process of its own, with a limit on time and on memory, and gives one JSON line. A model *works* when
it is analysed, half of its units (at random) are removed with default options, the result equals the original with the
removed units zeroed, single groups do as well, forward and backward run in train mode, output shapes are unchanged,
and at least half of the parameters held units that may go, or less where the table gives the reason.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import multiprocessing
import os
import platform
import resource
import sys
import tempfile
import time
import types
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import environment
import zoo_depth_table
import zoo_experts_table
import zoo_models
from model_types import mixtures

GIB = 2**30
ZOO_REQUIREMENTS = (*environment.REQUIREMENTS, "timm", "transformers", "attrs", "einops")
WORKERS = {"prunekit": "zoo_worker", "torch-pruning": "zoo_rival"}
PROCESSES = multiprocessing.get_context("forkserver")


def inside(family: str, name: str, args: argparse.Namespace, out: str) -> None:
    """Runs in the model's own process: measures under a limit on memory, and writes what it finds to a file."""
    sys.stdout = open(out, "a")  # noqa: SIM115  (the process ends with it)
    resource.setrlimit(resource.RLIMIT_DATA, (int(args.memory * GIB), int(args.memory * GIB)))
    if args.experts:
        importlib.import_module("zoo_experts").work(family, name, args.threads)
    elif args.depth:
        importlib.import_module("zoo_depth").work(family, name, args.branches, args.threads)
    else:
        importlib.import_module(WORKERS[args.tool]).work(family, name, args.groups, args.threads, args.quick)
    sys.stdout.flush()


def sweep_one(family: str, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Runs the worker on one model in a process of its own; a crash or a limit is a result, too."""
    began = time.perf_counter()
    result: dict[str, Any] = {"family": family, "model": name, **({"quick": True} if args.quick else {})}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "lines"
        out.touch()
        process = PROCESSES.Process(target=inside, args=(family, name, args, str(out)))
        process.start()
        process.join(args.limit)
        if process.is_alive():
            process.kill()
            process.join()
            result["failed"] = f"longer than {args.limit:g} s"
        elif process.exitcode:
            result["failed"] = f"exit status {process.exitcode}"
        for line in out.read_text().splitlines():
            if line.startswith("{") and line.endswith("}"):
                result |= json.loads(line)
    result["total_s"] = round(time.perf_counter() - began, 1)
    return result


def verdict(result: dict[str, Any]) -> str:
    """``works``, ``little`` (less than half of the parameters may shrink), ``blind``, ``told``, ``fails`` or ``wrong``.

    ``refused`` is an error of prunekit's with the reason that the model's list holds to be true, and ``unbuilt`` is a
    model that doesn't run here by itself, which says nothing about prunekit.
    ``cut`` is that a quick run found no fault.
    ``blind`` means that the comparison would not have seen a wrong index either.
    ``told`` isn't exact, or can't be compared, and it is said why: a constant of the program follows a size that
    shrank, which the report's notes say, or the program draws at random, which the check says.
    """
    exact = result.get("exact")
    if result.get("ran") is False:
        return "unbuilt"
    if result.get("refused_for") and result["refused_for"] in result.get("refused", ""):
        return "refused"
    differ = [result] if exact is not None and not exact else []
    differ += [group for group in result.get("single", []) if not group["exact"]]
    if differ:
        return "told" if result.get("constants") or all(found.get("random") for found in differ) else "wrong"
    if result.get("shapes_kept") and result.get("quick"):
        return "cut"
    if "failed" in result or exact is None or not result.get("shapes_kept") or not result.get("backward"):
        return "fails"
    if not result.get("shift_seen", True):
        return "blind"
    return "works" if result["prunable"] >= 0.5 else "little"


def rival_verdict(result: dict[str, Any]) -> str:
    """The same for Torch-Pruning, whose results are not checked for exactness."""
    if "failed" in result or not result.get("shapes_kept") or not result.get("backward"):
        return "fails"
    return "runs" if result["left"] <= 0.9 else "little"


def rival_cell(result: dict[str, Any]) -> str:
    left = f", {result['left']:.0%} left" if "left" in result else ""
    return rival_verdict(result) + left


def why(result: dict[str, Any]) -> str:
    """The reason of a verdict in one line: the failure, else what pins most where more than half is left."""
    if "failed" in result:
        return str(result["failed"]).replace("|", "/")[:160]
    parts = [*result.get("constants", []), *filter(None, [result.get("random")])][:1]
    if result.get("without_rule"):
        parts.append("no rule: " + ", ".join(result["without_rule"]))
    if not result.get("backward", True):
        parts.append(str(result.get("backward_failed", "")))
    if result.get("left", 0) > 0.5:
        parts += list(result.get("given_back", {}))[:1]
        pins = [(text, n) for text, n in result.get("pins", {}).items() if text != "an input of the model"]
        parts += [f"{n} dims: {text}" for text, n in pins[: 1 if parts else 2]]
    return "; ".join(parts).replace("|", "/")[:160]


Results = Mapping[tuple[str, str], dict[str, Any]]


def table(results: Iterable[dict[str, Any]], rival: Results = types.MappingProxyType({})) -> str:
    """Markdown: one line per model, and the percentages per family; ``rival`` are Torch-Pruning's results."""
    rows = sorted(results, key=lambda r: (r["family"], r["model"]))
    lines = [
        "| model | verdict | ops | groups | prunable | params left | largest error | analysis | prune | why |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    if rival:
        lines = [lines[0].replace("| why", "| Torch-Pruning | why"), lines[1] + "---|"]
    for r in rows:
        single = [group["error"] for group in r.get("single", []) if group["error"] is not None]
        errors = [r["error"], *single] if r.get("error") is not None else single
        cells = [
            f"{r['family']}:{r['model']}",
            verdict(r),
            str(r.get("operations", "")),
            str(r.get("groups", "")),
            f"{r['prunable']:.0%}" if "prunable" in r else "",
            f"{r['left']:.0%}" if "left" in r else "",
            f"{max(errors):.0e}" if errors else "",
            f"{r['analysis_s']:.1f} s" if "analysis_s" in r else "",
            f"{r['prune_s']:.1f} s" if "prune_s" in r else "",
            why(r),
        ]
        if rival:
            other = rival.get((r["family"], r["model"]))
            cells.insert(-1, "" if other is None else rival_cell(other))
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    for family in dict.fromkeys(r["family"] for r in rows):
        counted = Counter(verdict(r) for r in rows if r["family"] == family)
        total = sum(counted.values())
        parts = ", ".join(f"{n} {word} ({n / total:.0%})" for word, n in counted.most_common())
        lines.append(f"{family}: {total} models, {parts}.")
        others = Counter(rival_verdict(r) for key, r in rival.items() if key[0] == family)
        if others:
            parts = ", ".join(f"{n} {word} ({n / others.total():.0%})" for word, n in others.most_common())
            lines.append(f"{family} with Torch-Pruning: {others.total()} models, {parts}.")
    missing = Counter(op for r in rows for op in r.get("without_rule", []))
    if missing:
        lines.append("Operations without a rule: " + ", ".join(f"{op} in {n}" for op, n in missing.most_common()) + ".")
    return "\n".join(lines)


def chosen(args: argparse.Namespace) -> list[tuple[str, str]]:
    """Lists the models asked for as (family, name)."""
    groups = {"all": ["model_types"] if args.experts else zoo_models.USUAL, "ecosystems": zoo_models.ECOSYSTEMS}
    families = [name for word in args.family.split(",") for name in groups.get(word, [word])]
    found = []
    for family in families:
        names = [name for name in zoo_models.FAMILIES[family].names() if not args.experts or mixtures.is_mixture(name)]
        if args.models:
            names = [name for name in names if name in args.models.split(",")]
        if args.sample and args.sample < len(names):
            step = len(names) / args.sample
            names = [names[int(position * step)] for position in range(args.sample)]
        found += [(family, name) for name in names]
    if args.models and not found:
        raise SystemExit(f"no model of {', '.join(families)} is called {args.models}")
    return found


def earlier(path: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Reads the JSON lines of earlier runs; the last line of a model counts."""
    lines = Path(path).read_text().splitlines() if Path(path).exists() else []
    return {(r["family"], r["model"]): r for r in map(json.loads, lines)}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", default="all", help="one, several, all, or ecosystems")
    parser.add_argument("--models", default="", help="names, separated by commas")
    parser.add_argument("--sample", type=int, default=0, help="that many models of each family, evenly spread")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--limit", type=float, default=300, help="seconds per model")
    parser.add_argument("--memory", type=float, default=12, help="GiB per model")
    parser.add_argument("--groups", type=int, default=3, help="groups of each model that are pruned by themselves")
    parser.add_argument("--json", default="", help="file to which the JSON lines are appended")
    parser.add_argument("--resume", action="store_true", help="leave out models that the file holds a line of")
    parser.add_argument("--again", default="", help="with --resume: verdicts to run again, as in fails,wrong,told")
    parser.add_argument("--quick", action="store_true", help="only analysis, cut and shapes: nothing is compared")
    parser.add_argument("--depth", action="store_true", help="take branches out, each alone and a random half")
    parser.add_argument("--experts", action="store_true", help="take half of the experts out of mixtures (model_types)")
    parser.add_argument("--branches", type=int, default=12, help="with --depth: how many of each model are tried alone")
    parser.add_argument("--tool", default="prunekit", choices=["prunekit", "torch-pruning"])
    parser.add_argument("--beside", default="", help="with --table: the file of a run with --tool torch-pruning")
    parser.add_argument("--table", default="", help="print the table of such a file (the last line of a model counts)")
    return parser.parse_args()


def main() -> None:
    args = parse()
    other = zoo_experts_table if args.experts else zoo_depth_table if args.depth else None
    if args.table and other:
        print(other.table(earlier(args.table).values()))
        return
    if args.table:
        print(table(earlier(args.table).values(), earlier(args.beside) if args.beside else {}))
        return
    if args.tool == "torch-pruning" and importlib.util.find_spec("torch_pruning") is None:
        python, _ = environment.ensure(environment.DEFAULT.with_name("prunekit-zoo"), ZOO_REQUIREMENTS)
        os.execv(python, [str(python), *sys.argv])
    models = chosen(args)
    judge, reason = (verdict if args.tool == "prunekit" else rival_verdict), why
    if other:
        judge, reason = other.verdict, other.why
    done = earlier(args.json) if args.resume and args.json else {}
    again = args.again.split(",")
    models = [pair for pair in models if pair not in done or judge(done[pair]) in again]
    places = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, places))  # where the server finds what to preload
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(args.threads)}
    os.environ["ZOO_WARM"] = ",".join(dict.fromkeys(family for family, _ in models))
    PROCESSES.set_forkserver_preload(["zoo_warm"])
    results = []
    with ThreadPoolExecutor(args.jobs) as pool:
        for result in pool.map(lambda pair: sweep_one(*pair, args), models):
            results.append(result)
            line = json.dumps(result)
            print(f"{judge(result):6} {result['family']}:{result['model']} {result['total_s']} s {reason(result)}")
            sys.stdout.flush()
            if args.json:
                with Path(args.json).open("a") as file:
                    file.write(line + "\n")
    print(f"\n{platform.machine()}, {os.cpu_count()} cores, {args.threads} threads, Python {platform.python_version()}")
    if other:
        print("\n" + other.table(results))
    elif args.tool == "prunekit":
        print("\n" + table(results))


if __name__ == "__main__":
    main()
