"""Measures what 200 steps of distillation bring back of a pretrained language model after a cut.

    python benchmarks/distillation_language.py --json r.jsonl      hours on one core; takes up where it stopped
    python benchmarks/distillation_language.py --json r.jsonl --targets 0.7 --ways norms
    python benchmarks/distillation_language.py --table r.jsonl --out docs    the table, in docs/distill.md

The model is SmolLM2-135M (see ``pretrained_model.py``), cut to parts of its parameters by
``prune(model, window, target={"params": t}, calibration=windows)`` with 32 windows of 128 tokens of the documentation
of Python's standard library. ``distill`` trains it on as many windows of that documentation as of Debian's manual
pages, each once, with the uncut model as the teacher and its logits as the only loss: everything, biases and norms
alone, or adapters (LoRA). Perplexity is measured as in ``pretrained_language.py``, on documents of both that neither
has seen. What comes back is the share of what the cut added to the loss (the logarithm of perplexity).
"""

from __future__ import annotations

import copy
import functools
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pretrained_model
import pretrained_texts
import rows as jsonl
import torch
from pretrained import write
from pretrained_language import LENGTH, perplexity

import prunekit as pk

WAYS: Mapping[str, Mapping[str, Any]] = {
    "everything": {"train": "all", "lr": 3e-4},
    "LoRA": {"train": "lora", "lr": 1e-3},
    "biases and norms": {"train": "norms", "lr": 3e-3},
}
CALIBRATION, UNSEEN = 32, 48
BEGIN, END = "<!-- table of distillation_language.py -->", "<!-- end of the table of distillation_language.py -->"


def measured(options: Any, known: Sequence[Mapping[str, Any]]) -> None:
    """Measures the rows that are wanted and not known yet, and appends them to the file."""
    dense, tokenizer = pretrained_model.load(options.folder)
    draw = functools.partial(pretrained_texts.windows, tokenizer, length=LENGTH)
    unseen = {origin: draw(origin, held_out=True, count=UNSEEN, seed=0) for origin in pretrained_texts.ORIGINS}
    done = {(row["target"], row["way"], row["steps"], row["batch"]) for row in known}
    for target in options.targets:
        wanted = [way for way in options.ways if (target, way, options.steps, options.batch) not in done]
        if not wanted:
            continue
        calibration = draw("python", held_out=False, count=CALIBRATION, seed=0).split(1)
        cut = copy.deepcopy(dense)
        result = pk.prune(cut, calibration[0], target={"params": target}, calibration=list(calibration))
        about = {
            "target": target,
            "steps": options.steps,
            "batch": options.batch,
            "left": result.preview.costs["params"],
        }
        about |= {"dense": {origin: perplexity(dense, ids) for origin, ids in unseen.items()}}
        about |= {"cut": {origin: perplexity(cut, ids) for origin, ids in unseen.items()}}
        each = -(-options.steps * options.batch // len(pretrained_texts.ORIGINS))
        parts = [draw(origin, held_out=False, count=each, seed=1) for origin in pretrained_texts.ORIGINS]
        ids = torch.stack(parts, 1).flatten(0, 1)  # by turns
        for way in wanted:
            student, start = copy.deepcopy(cut), time.process_time()
            batches = [{"input_ids": part} for part in ids.split(options.batch)]
            pk.distill(student, dense, batches, steps=options.steps, **WAYS[way])
            row = about | {"way": way, "seconds": time.process_time() - start}
            row |= {"healed": {origin: perplexity(student, ids) for origin, ids in unseen.items()}}
            jsonl.append(options.json, [row])
            jsonl.show(row)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, one line for each cut and way."""
    lines = ["| parameters left | trained | steps, windows each | Python: uncut, cut, healed | back | Debian | back |"]
    lines = [f"{lines[0]} CPU seconds |", "|---|---|---|---|---:|---|---:|---:|"]
    for row in sorted(rows, key=lambda row: (-row["target"], list(WAYS).index(row["way"]))):
        cells = [f"{row['left'][1] / row['left'][0]:.0%}", row["way"], f"{row['steps']}, {row['batch']}"]
        for origin in pretrained_texts.ORIGINS:
            three = [row[state][origin] for state in ("dense", "cut", "healed")]
            dense, cut, healed = map(math.log, three)
            cells += [", ".join(f"{one:,.1f}" for one in three), f"{(cut - healed) / (cut - dense):.0%}"]
        lines.append(" | ".join(["", *cells, f"{row['seconds']:,.0f}", ""]).strip())
    return "\n".join(lines)


def main() -> None:
    parser = jsonl.parser(__doc__, (0.7, 0.5))
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=4, help="windows in a step")
    parser.add_argument("--out", type=Path, help="folder of distill.md, whose table is written")
    parser.add_argument("--folder", type=Path, default=pretrained_model.FOLDER, help="where the packages are put")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if options.table:
        text = table(jsonl.read(options.table))
        print(text)
        if options.out:
            write(f"{text}\n\ntorch {torch.__version__}.", options.out / "distill.md", BEGIN, END)
        return
    measured(options, jsonl.read(options.json))


if __name__ == "__main__":
    main()
