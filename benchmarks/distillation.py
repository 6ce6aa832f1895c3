"""Measures what short training brings back after a cut: with labels, with the teacher's logits, with hidden states.

    python benchmarks/distillation.py --json rows.jsonl                needs prunekit[demo]; goes on where it stopped
    python benchmarks/distillation.py --json rows.jsonl --seeds 1 --networks "digits conv net"
    python benchmarks/distillation.py --table rows.jsonl --out docs    writes distill.md; also needs prunekit[plots]

Networks, data and cuts are those of ``quality.py``: trained with several seeds, cut to parts of their MACs by
``prune(model, x, target={"macs": t}, calibration=batches)`` and, in an environment of its own, by Torch-Pruning. All
are trained by the same loop, for the same number of steps (an eighth of the full course), on the same batches;
Torch-Pruning's models on labels. Only the losses differ. Each row has a learning rate of its own, the one whose own
loss is lowest at the end of training on the calibration samples: it is chosen on the first seed, and others take it.
There Torch-Pruning is trained with all of its criteria, on the other seeds with those that came out best, by held-out
data. Of these the first and the best have a rate of their own, others that of the first. One seed of all networks comes
first, then the next one.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import distillation_table
import environment
import quality_networks as networks
import quality_rival as rival
import quality_tasks as tasks
import rows
import torch
from torch import Tensor, nn

import prunekit as pk

TARGETS = (0.5, 0.25, 0.12)
PART = 0.125
RATES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Learning rates, as parts of the full course's."""
FIRST = (2, 3)
"""Which of them are tried first; others only while they are better than their neighbour."""
BEST_OF_THEIRS = 3
"""With how many of Torch-Pruning's methods seeds after the first are trained."""
MARKS = distillation_table.MARKS
LOSSES: dict[str, dict[str, Any]] = {
    "labels": {"weights": {"labels": 1.0}},
    "logits": {"weights": {"logits": 1.0}},
    "logits, labels": {"weights": {"logits": 1.0, "labels": 0.2}},
    "logits, hidden": {"weights": {"logits": 1.0, "hidden": 1.0}},
}
"""Rows of prunekit's cut: what each is trained on, as arguments of `distill`."""
FURTHER: dict[str, dict[str, Any]] = {
    "logits, T=1": {"weights": {"logits": 1.0}, "temperature": 1.0},
    "logits, T=4": {"weights": {"logits": 1.0}, "temperature": 4.0},
    "logits, labels 1": {"weights": {"logits": 1.0, "labels": 1.0}},
}
"""Rows of ``--further``: other temperatures and weights."""


class Remembered(nn.Module):
    """A teacher that computes its outputs on each tensor of inputs once; they are the same bit for bit afterwards."""

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.teacher = teacher
        self._outputs: dict[int, tuple[Tensor, Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        if id(x) not in self._outputs:
            self._outputs[id(x)] = (x, self.teacher(x))  # holding the inputs keeps their ids theirs
        return self._outputs[id(x)][1]


@attrs.frozen(eq=False)
class Course:
    """What all rows of one trained network share.

    Attributes:
        task: The network with its data.
        seed: Of its training, of the calibration samples and of the batches.
        teacher: The trained network.
        remembered: The same, which runs once on each batch.
        batches: The training data, one batch a step.
        known: The calibration samples, as labelled batches.
    """

    task: tasks.Task
    seed: int
    teacher: nn.Module
    remembered: Remembered
    batches: pk.Batches
    known: pk.Batches

    @classmethod
    def of(cls, task: tasks.Task, seed: int) -> Course:
        generator, teacher = torch.Generator().manual_seed(seed + 100), task.trained(seed)
        steps = max(1, round(task.steps * PART))
        made = [task.sample(task.batch, generator) for _ in range(steps)]
        known = [task.calibration_data(seed)]
        inputs = [pk.Batches(data, inputs=lambda batch: batch[0]) for data in (made, known)]
        return cls(task, seed, teacher, Remembered(teacher), *inputs)

    def healed(
        self, student: nn.Module, plan: pk.Plan | None, options: Mapping[str, Any], rate: float | None
    ) -> dict[str, Any]:
        """Trains copies of a student with a rate, or with several; returns what the best is worth on held-out data."""

        def trained(rate: float) -> Run:
            return self._trained(copy.deepcopy(student), plan, options, rate)

        best = climbed(trained) if rate is None else trained(rate)
        curve = []
        for state in best.states:
            best.model.load_state_dict(state)
            curve.append(worth(best.model, self.task))
        best.model.load_state_dict(best.kept)
        found = curve[-1] if best.step else worth(best.model, self.task)
        return {**found, "curve": [point["loss"] for point in curve], "rate": best.rate, "kept": best.step}

    def _trained(self, student: nn.Module, plan: pk.Plan | None, options: Mapping[str, Any], rate: float) -> Run:
        steps = self.batches.count()
        assert steps is not None
        marks, states = [max(1, round(steps * part)) for part in MARKS], []

        def note(done: int, total: int) -> None:
            states.extend(copy.deepcopy(student.state_dict()) for mark in marks if mark == done)

        hidden = "hidden" in options["weights"]
        x = self.task.calibration_data(self.seed)[0][:2]
        result = pk.distill(
            student, self.teacher if hidden else self.remembered, self.batches, **options,
            plan=plan if hidden else None, hidden=compared(self.teacher, x) if hidden else None,
            labels=lambda batch: batch[1], steps=steps, lr=rate * self.task.rate, warm_up=0.1,
            held_out=self.known, evaluate_every=steps, seed=self.seed, progress=note,
        )  # fmt: skip
        return Run(result.held_out[-1][1], rate, result.best_step, student, student.state_dict(), states)


@attrs.frozen(eq=False)
class Run:
    """One training.

    Attributes:
        own: The loss that it was trained on, on the calibration samples, at the end.
        rate: Its learning rate, as a part of the full course's.
        step: The step that its state is of: the last one, or 0 where training made nothing better.
        model: The student.
        kept: Its state.
        states: Those at the marks on the way.
    """

    own: float
    rate: float
    step: int
    model: nn.Module
    kept: Mapping[str, Tensor]
    states: Sequence[Mapping[str, Tensor]]


def climbed(trained: Callable[[float], Run]) -> Run:
    """Goes from rate to rate while the next one is better by its own loss; returns the best run."""
    runs = {at: trained(RATES[at]) for at in FIRST}
    best = min(runs, key=lambda at: runs[at].own)
    way = 1 if best == max(FIRST) else -1
    while 0 <= best + way < len(RATES):
        runs[best + way] = trained(RATES[best + way])
        if runs[best + way].own >= runs[best].own:
            break
        best += way
    return runs[best]


def worth(model: nn.Module, task: tasks.Task) -> dict[str, float]:
    """Accuracy or bits per character, and the mean cross-entropy in nats, on held-out data."""
    model.eval()
    x, y = task.held_out
    with torch.inference_mode():
        logits = torch.cat([model(part) for part in x.split(256)])
        loss = float(networks.loss(logits, y).double().mean())
    metric = loss / math.log(2) if task.bits else float((logits.argmax(1) == y).double().mean())
    return {"metric": metric, "loss": loss}


def compared(model: nn.Module, x: Tensor) -> list[str] | None:
    """Modules whose outputs are compared: blocks where there are any, else all layers but the classifier."""
    if pk.Graph.of(model, x).branches():
        return None
    kinds = (nn.Conv2d, nn.Linear)
    return [name for name, module in model.named_modules() if isinstance(module, kinds) and name != "head"]


class Bench:
    """Measures networks, and writes each row down as soon as it is known.

    Args:
        file: Where rows are and go; empty for nowhere.
        python: The interpreter of Torch-Pruning's environment; None leaves it out.
        losses: Rows of prunekit's cut.
    """

    def __init__(self, file: str, python: Path | None, losses: Mapping[str, Mapping[str, Any]]) -> None:
        self._file, self._python, self._losses = file, python, losses
        self.rows = rows.read(file)

    def run(self, name: str, seed: int, targets: Sequence[float]) -> None:
        """Makes the rows of one trained network that aren't there."""
        there = {(r["target"], r["row"]) for r in self.rows if (r["network"], r["seed"]) == (name, seed)}
        course = Course.of(tasks.task(name), seed)
        if (1.0, "dense") not in there:
            self._add(course, 1.0, "dense", worth(course.teacher, course.task))
        for target in targets:
            missing = [row for row in ("cut", *self._losses) if (target, row) not in there]
            if missing:
                self._ours(course, target, missing)
        wanted = {t: [m for m in self._methods(course, t) if (t, m) not in there] for t in targets}
        if self._python and any(wanted.values()):
            needed = {method.split()[0] for methods in wanted.values() for method in methods}
            criteria = [name for name in rival.CRITERIA if name in needed]
            cuts = rival.cuts(self._python, course.task, course.teacher, seed, targets, criteria)
            for target, methods in wanted.items():
                self._theirs(course, [cut for cut in cuts if cut.target == target and cut.method in methods])

    def _methods(self, course: Course, target: float) -> list[str]:
        """Torch-Pruning's methods: all of them on the first seed, then those that came out best on it."""
        rivals = [r for r in self._of_first(course, target) if r["row"] in distillation_table.RIVALS]
        known = [r for r in rivals if r["loss"] is not None]
        known.sort(key=lambda r: r["metric"], reverse=not course.task.bits)
        return [r["row"] for r in known[:BEST_OF_THEIRS]] if course.seed else list(distillation_table.RIVALS)

    def _of_first(self, course: Course, target: float) -> list[dict[str, Any]]:
        key = (course.task.name, 0, target)
        return [r for r in self.rows if (r["network"], r["seed"], r["target"]) == key]

    def _ours(self, course: Course, target: float, missing: Sequence[str]) -> None:
        x, _ = course.task.calibration_data(course.seed)
        student = copy.deepcopy(course.teacher)
        plan = pk.prune(student, x[:1], target={"macs": target}, calibration=list(x.split(64))).plan
        for row in missing:
            if row == "cut":
                self._add(course, target, row, worth(student, course.task))
            else:
                rate = self._rate(course, target, row)
                self._add(course, target, row, course.healed(student, plan, self._losses[row], rate))

    def _theirs(self, course: Course, cuts: Sequence[rival.Cut]) -> None:
        """Trains Torch-Pruning's cuts to one target on labels.

        Where no rates are known, the first cut's is searched for, all others take it, and that of the best is searched.
        """
        nothing: dict[str, Any] = {"metric": None, "loss": None}
        healed = {cut.method: nothing for cut in cuts}
        models = {cut.method: cut.model for cut in cuts if cut.model is not None}
        known: float | None = None
        for cut in cuts:
            if cut.model is not None:
                rate = self._rate(course, cut.target, cut.method) or known
                healed[cut.method] = course.healed(cut.model, None, LOSSES["labels"], rate)
                known = known or healed[cut.method]["rate"]
        if models and not course.seed:
            best = min(models, key=lambda method: healed[method]["metric"] * (1 if course.task.bits else -1))
            if best != next(iter(models)):
                healed[best] = course.healed(models[best], None, LOSSES["labels"], None)
        for cut in cuts:
            found = nothing if cut.model is None else worth(cut.model, course.task)
            self._add(course, cut.target, cut.method + distillation_table.CUT, found)
            self._add(course, cut.target, cut.method, healed[cut.method])

    def _rate(self, course: Course, target: float, row: str) -> float | None:
        """The rate that the first seed has chosen; None on that."""
        known = [r["rate"] for r in self._of_first(course, target) if r["row"] == row and r["loss"] is not None]
        return known[0] if known and course.seed else None

    def _add(self, course: Course, target: float, row: str, found: Mapping[str, Any]) -> None:
        made = {"network": course.task.name, "seed": course.seed, "target": target, "row": row, **found}
        self.rows.append(made)
        rows.append(self._file, [made])


def main() -> None:
    parser = rows.parser(__doc__, TARGETS)
    parser.add_argument("--networks", default=",".join(networks.BUILDERS), help="comma-separated names")
    parser.add_argument("--further", action="store_true", help="also other temperatures and weights")
    parser.add_argument("--alone", action="store_true", help="leave Torch-Pruning out")
    parser.add_argument("--env", type=Path, default=environment.DEFAULT, help="Torch-Pruning's environment")
    parser.add_argument("--out", type=Path, help="folder of distill.md, whose tables are written, and of its plot")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = rows.read(options.table) if options.table else measured(options)
    print(distillation_table.text(found))
    if options.out:
        distillation_table.write(found, options.out)


def measured(options: argparse.Namespace) -> list[dict[str, Any]]:
    python = None if options.alone else environment.ensure(options.env)[0]
    bench = Bench(options.json, python, {**LOSSES, **(FURTHER if options.further else {})})
    for seed, name in itertools.product(range(options.seeds), options.networks.split(",")):
        start = time.process_time()
        bench.run(name, seed, options.targets)
        print(f"{name}, seed {seed}: {time.process_time() - start:.0f} s of processor time", flush=True)
    return bench.rows


if __name__ == "__main__":
    main()
