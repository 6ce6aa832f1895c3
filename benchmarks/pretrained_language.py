"""Measures what is left of a pretrained language model right after the cut, on text that calibration didn't see.

    python benchmarks/pretrained_language.py --json r.jsonl            all, in hours; takes up where it stopped
    python benchmarks/pretrained_language.py --json r.jsonl --ways "OBS;FLAP" --budgets 0.8 --costs macs --seeds 1
    python benchmarks/pretrained_language.py --json r.jsonl --table    the table of what was measured; with
                                                                       --out docs in docs/quality.md

What the table in the docs is made of is in benchmarks/measured/pretrained_language.jsonl.

The model is SmolLM2-135M (see ``pretrained_model.py``; needs prunekit[test]), calibrated with windows of Python's
documentation. Perplexity is measured on other modules of it, and on Debian's manual pages: another origin. The peers
are short implementations of their papers (``benchmarks/peers``). Budgets count what the model has in all: MACs with
those of the output layer and of attention at the length of a window, parameters with the embedding. Processor time is
that of statistics, choice and fit, on one thread; memory is what the process took on top of the model, at its peak, by
the size of the model.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import json
import math
import platform
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import pretrained_model
import pretrained_texts
import quality_tasks
import torch
from peers import flap, obs, replaceme, shortgpt, sleb, slicegpt, taylor, vbp, wanda_sp
from peers.budget import Budget
from peers.decoder import costs, shapes
from peers.evidence import Evidence, next_token_loss
from peers.meter import Meter
from pretrained import write
from rows import append, read

import prunekit as pk

LENGTH = 128
Peer = Callable[[Any, Evidence, Budget], None]
PEERS: Mapping[str, Peer] = {
    "OBS": obs.prune,
    "OBS, parts of what is written": functools.partial(obs.prune, scale="written"),
    "OBS, damages by themselves": functools.partial(obs.prune, scale="none"),
    "FLAP": flap.prune,
    "FLAP + least squares": functools.partial(flap.prune, refitted=True),
    "ShortGPT": shortgpt.prune,
    "Wanda-sp": wanda_sp.prune,
    "LLM-Pruner, Taylor": taylor.prune,
    "ReplaceMe": replaceme.prune,
    "VBP + least squares": vbp.prune,
    "SLEB": sleb.prune,
    "SliceGPT": slicegpt.prune,
}
OURS: Mapping[str, Mapping[str, Any]] = {
    "prunekit, default": {},
    "prunekit, heads too": {"prune_num_heads": True},
    "prunekit, by depth": {"by": "depth"},
    "prunekit, by both": {"by": "both"},
    "prunekit, head dims too": {},
    "prunekit, heads and dims too": {"prune_num_heads": True},
}
UNCACHED = ("prunekit, head dims too", "prunekit, heads and dims too")
"""Ways whose batches ask for no cache: one that is returned keeps the dims of heads as they are."""
WAYS = (*OURS, *PEERS)
BEGIN, END = "<!-- table of pretrained_language.py -->", "<!-- end of the table of pretrained_language.py -->"


@torch.inference_mode()
def perplexity(model: Any, windows: torch.Tensor) -> float:
    """Of the next token in windows ``[windows, length]``."""
    losses = [float(next_token_loss(model, ids)) * len(ids) for ids in windows.split(8)]
    return math.exp(min(sum(losses) / len(windows), 700.0))


@attrs.frozen
class Cut:
    """What a cut took, and what is told of it besides its quality.

    Attributes:
        seconds: Processor time.
        memory: Bytes on top of the model.
        more: Columns of the row.
    """

    seconds: float
    memory: int
    more: Mapping[str, Any]


def cut(way: str, model: Any, evidence: Evidence, budget: Budget) -> Cut:
    """Cuts a copy of the model that the evidence is of. Evidence that is there already counts as if it weren't."""
    if way in OURS:
        more = {"use_cache": False} if way in UNCACHED else {}
        batches = [{"input_ids": ids[None], **more} for ids in torch.cat(evidence.batches)]
        with Meter() as meter:
            result = pk.prune(model, batches[0], target={budget.cost: budget.part}, calibration=batches, **OURS[way])
        return Cut(meter.seconds, meter.peak, {"branches": [str(name) for name in result.plan.absent]})
    before = dict(evidence.meters)
    evidence.asked.clear()
    with Meter() as meter:
        PEERS[way](model, evidence, budget)
    earlier = [before[name] for name in evidence.asked if name in before]
    held = sum(one.held for one in earlier)
    memory = max([held + meter.peak, *(evidence.meters[name].peak for name in evidence.asked)])
    return Cut(meter.seconds + sum(one.seconds for one in earlier), memory, {})


def measured(options: argparse.Namespace, done: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Measures the rows that are wanted and not known yet."""
    dense, tokenizer = pretrained_model.load(options.folder)
    draw = functools.partial(pretrained_texts.windows, tokenizer, length=LENGTH)
    unseen = {origin: draw(origin, held_out=True, count=options.unseen, seed=0) for origin in pretrained_texts.ORIGINS}
    whole = costs(dense, LENGTH)
    size = sum(value.numel() * value.element_size() for value in dense.parameters())
    keys = ("way", "cost", "part", "seed")
    known = {tuple(row[key] for key in keys) for row in done}
    wanted = [("dense", "macs", 1.0, 0)]
    wanted += [
        (way, cost, part, seed)
        for seed, cost, part, way in itertools.product(
            range(options.seeds), options.costs, options.budgets, options.ways
        )
    ]
    evidence: dict[int, Evidence] = {}
    for way, cost, part, seed in wanted:
        if (way, cost, part, seed) in known:
            continue
        windows = draw("python", held_out=False, count=options.tokens // LENGTH, seed=seed)
        row = dict(zip(keys, (way, cost, part, seed), strict=True)) | {
            "tokens": options.tokens,
            "unseen": options.unseen,
        }
        model = copy.deepcopy(dense)
        if way != "dense":
            if seed not in evidence:
                evidence = {seed: Evidence(dense, windows)}
            try:
                done_so = cut(way, model, evidence[seed], Budget(cost, whole[cost], part))
            except (ValueError, pk.PrunekitError) as error:
                yield row | {"error": str(error)}
                continue
            row |= {"seconds": done_so.seconds, "memory": done_so.memory / size, **done_so.more}
        left = costs(model, LENGTH)
        row |= {name: left[name] / whole[name] for name in left} | {"shapes": shapes(model)}
        row |= {origin: perplexity(model, ids) for origin, ids in unseen.items()}
        yield row | {"known": perplexity(model, windows)}


def _cell(rows: Sequence[Mapping[str, Any]], key: str, form: str) -> str:
    if any(key not in row for row in rows):
        return "-"
    shown = [form.format(value) for value in quality_tasks.median_and_half_range([row[key] for row in rows])]
    return " ± ".join(shown) if len(rows) > 1 else shown[0]


def _largest(rows: Sequence[Mapping[str, Any]], key: str, form: str) -> str:
    found = [row[key] for row in rows if key in row]
    return form.format(max(found)) if found else "-"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, a table for each cost and budget, ordered by perplexity on the text of the calibration's origin."""
    dense = next(row for row in rows if row["way"] == "dense")
    lines = [
        f"Uncut: perplexity {dense['python']:.1f} (Python), {dense['debian']:.1f} (Debian).",
    ]
    names = {"macs": "MACs", "params": "parameters"}
    for cost, part in sorted(
        {(row["cost"], row["part"]) for row in rows if row["way"] != "dense"}, key=lambda p: (p[0], -p[1])
    ):
        groups: dict[str, list[Mapping[str, Any]]] = {}
        for row in rows:
            if (row["cost"], row["part"]) == (cost, part) and row["way"] != "dense" and "error" not in row:
                groups.setdefault(row["way"], []).append(row)
        lines += ["", f"{part:.0%} of the {names[cost]}:", ""]
        lines += ["| method | seeds | perplexity: Python | Debian | calibration text | MACs left | parameters left |"]
        lines[-1] += " CPU seconds | memory |"
        lines += ["|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
        for way, found in sorted(groups.items(), key=lambda item: _middle(item[1], "python")):
            keys = ("python", "debian", "known", "macs", "params", "seconds", "memory")
            forms = ("{:,.1f}", "{:,.1f}", "{:,.1f}", "{:.1%}", "{:.1%}", "{:,.0f}", "{:.1f}")
            cells = " | ".join(_cell(found, key, form) for key, form in zip(keys[:-1], forms[:-1], strict=True))
            cells += f" | {_largest(found, keys[-1], forms[-1])}"
            lines.append(f"| {way} | {len(found)} | {cells} |")
    return "\n".join(lines)


def _middle(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    return quality_tasks.median_and_half_range([row[key] for row in rows])[0]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file to which the measurements are appended")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    parser.add_argument("--out", type=Path, help="folder of quality.md, whose table is written")
    parser.add_argument("--ways", default=";".join(WAYS), help="separated by semicolons")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.9, 0.8, 0.7, 0.5])
    parser.add_argument("--costs", nargs="+", default=["macs", "params"])
    parser.add_argument("--seeds", type=int, default=3, help="draws of calibration windows")
    parser.add_argument("--tokens", type=int, default=4096, help="for calibration")
    parser.add_argument("--unseen", type=int, default=48, help="windows of each origin to measure on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=pretrained_model.FOLDER, help="where the packages are put")
    options = parser.parse_args(arguments)
    options.ways = options.ways.split(";")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    rows = read(options.json)
    for row in () if options.table else measured(options, rows):
        print(json.dumps(row), file=sys.stderr, flush=True)
        append(options.json, [row])
        rows.append(row)
    text = f"{table(rows)}\n\ntorch {torch.__version__}, Python {platform.python_version()}, prunekit {pk.__version__}."
    print(text)
    if options.out:
        write(text, options.out / "quality.md", BEGIN, END)


if __name__ == "__main__":
    main()
