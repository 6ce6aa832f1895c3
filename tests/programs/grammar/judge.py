"""One trial: a model is pruned, and everything that the library promises about it is held against the oracle."""

from __future__ import annotations

import copy
import enum
import random
import warnings
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import nn

import prunekit as pk
from tests.programs.grammar.masking import difference, finite, leaves, masked
from tests.programs.grammar.program import in_float64

TOLERANCE = 1e-8
FOLLOWS = "follows a size"
"""What a note says about a number of the program that couldn't be made up for."""
MEAN = "a mean over those that are left"
"""What a note says about a sum over units that the program divides by their number, which `mean` would be told as."""


class Outcome(enum.Enum):
    """What became of a program; all but the first five are disagreements."""

    EXACT = "exact"
    TOLD = "told"
    REFUSED = "refused"
    NOTHING = "nothing to prune"
    UNFIT = "unfit"
    DIFFERS = "differs, and nothing says so"
    RAISES = "the pruned model raises"
    RAW = "a raw exception"
    CHANGED = "the model changed though nothing was cut"
    CHECK_BLIND = "check_exact says exact, and it isn't"
    CHECK_ALARM = "check_exact says not exact, and it is"
    CHECK_TOLD = "check_exact says not exact where only what is told differs"
    CHECK_RAISES = "check_exact raises"
    JSON = "a plan isn't the same after JSON"
    COPY = "the plan does something else to a copy"
    MASK = "plan.mask zeroes something else"
    TRAIN = "train mode differs, and nothing says so"
    BATCH = "a larger batch differs, and nothing says so"
    VALUES = "kept values changed"
    INPUTS = "inputs were changed"


GOOD = (Outcome.EXACT, Outcome.TOLD, Outcome.REFUSED, Outcome.NOTHING, Outcome.UNFIT)


@attrs.frozen
class Verdict:
    """What became of a program.

    Attributes:
        outcome: In a word.
        detail: Error, reason or number.
        keys: Keys of the op rules that its recordings met.
        compared: Whether a cut was compared with the oracle to the last bit.
        missing: Operations without a rule.
    """

    outcome: Outcome
    detail: str = ""
    keys: frozenset[str] = frozenset()
    compared: bool = False
    missing: tuple[str, ...] = ()

    @property
    def disagrees(self) -> bool:
        """Whether the library and the oracle disagree."""
        return self.outcome not in GOOD

    def __str__(self) -> str:
        return f"{self.outcome.value}{': ' if self.detail else ''}{self.detail}"


class Scores:
    """Random scores that depend on the group's name alone."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __call__(self, group: pk.Group) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self._seed + sum(map(ord, group.name)))
        return torch.rand(group.size(), generator=generator)


def _one_more(value: Any) -> Any:
    """A batch with one more element."""
    if not isinstance(value, torch.Tensor) or value.dim() < 2:
        return value
    return torch.cat([value, value[:1].flip(1)])


@attrs.frozen(eq=False)
class _DisagreementError(Exception):
    outcome: Outcome
    detail: str


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything that must stay as it was: tensors (by identity and value), modules, and plain attributes."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name in ("_parameters", "_buffers"):
                for key, tensor in value.items():
                    if tensor is not None:
                        found[f"{path}.{key}"] = (id(tensor), tensor.detach().clone())
            elif name == "_modules":
                found[f"{path}/modules"] = [(key, id(child)) for key, child in value.items()]
            elif isinstance(value, bool | int | float | str | tuple | type(None)):
                found[f"{path}:{name}"] = value
    return found


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Lists what isn't as it was."""
    found = [key for key in (*before, *after) if key not in before or key not in after]
    for key in before.keys() & after.keys():
        old, new = before[key], after[key]
        if isinstance(old, tuple) and len(old) == 2 and isinstance(old[1], torch.Tensor):
            if old[0] != new[0] or not torch.equal(old[1], new[1]):
                found.append(key)
        elif old != new:
            found.append(key)
    return found


def call(model: nn.Module, inputs: Mapping[str, Any], training: bool = False, seed: int = 0) -> Any:
    """Runs a model on copies of inputs, from given random numbers on; in train mode a copy of it runs."""
    runner = copy.deepcopy(model).train() if training else model.eval()
    given = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    with torch.no_grad():
        return runner(**given)


def judge(
    original: nn.Module, inputs: Mapping[str, Any], seed: int, ratio: float | None = None, *, any_batch: bool = False
) -> Verdict:
    """Prunes a copy of a model and compares.

    Args:
        original: The model, all of whose parameters hold distinct values, in float64; it isn't changed.
        inputs: Its keyword inputs.
        seed: What scores and settings are drawn from.
        ratio: How much is pruned; drawn by default.
        any_batch: Whether the program is the same for a larger batch, if it runs on one.

    Returns:
        What became of it.
    """
    with warnings.catch_warnings(), in_float64():
        warnings.simplefilter("ignore")
        return _Trial(original, inputs, seed, ratio, any_batch).verdict()


class _Trial:
    def __init__(
        self, original: nn.Module, inputs: Mapping[str, Any], seed: int, ratio: float | None, any_batch: bool
    ) -> None:
        rng = random.Random(seed)
        self.original, self.inputs, self.seed, self.any_batch = original, dict(inputs), seed, any_batch
        self.ratio = rng.choice((0.25, 0.5, 0.5, 0.75)) if ratio is None else ratio
        self.heads = rng.random() < 0.25
        self.ranked = rng.random() < 0.2
        self.keys: frozenset[str] = frozenset()
        self.missing: tuple[str, ...] = ()
        self.compared = False

    def verdict(self) -> Verdict:
        try:
            outcome, detail = self._outcome()
        except _DisagreementError as found:
            outcome, detail = found.outcome, found.detail
        return Verdict(outcome, detail, self.keys, self.compared, self.missing)

    def _outcome(self) -> tuple[Outcome, str]:
        try:
            self.expected = call(self.original, self.inputs)
            again = call(self.original, self.inputs)
        except Exception as error:
            return Outcome.UNFIT, f"doesn't run: {error}"
        if difference(self.expected, again) > 0 or not finite(self.expected):
            return Outcome.UNFIT, "not finite, or not the same twice"
        model = copy.deepcopy(self.original)
        before, given = state_of(model), copy.deepcopy(self.inputs)
        try:
            result = pk.prune(model, self.inputs, ratio=self.ratio, importance=Scores(self.seed), **self._options())
        except pk.PrunekitError as error:
            self._unchanged(before, model, given)
            kind = Outcome.NOTHING if isinstance(error, pk.NothingToPruneError) else Outcome.REFUSED
            return kind, str(error)
        except Exception as error:
            self._unchanged(before, model, given)
            raise _DisagreementError(Outcome.RAW, f"{type(error).__name__}: {error}") from error
        self._inputs_unchanged(given)
        self._look(result.graph)
        told = self._told(result.report)
        self._compare(model, result.plan, told)
        if not told:
            return Outcome.EXACT, ""
        if self._exact_groups_only(result.report.mixes):
            return Outcome.EXACT, "the groups that don't mix"
        return Outcome.TOLD, told

    def _options(self) -> dict[str, Any]:
        heads = {"prune_num_heads": True, "head_pruning_ratio": 0.5} if self.heads else {}
        # what is drawn here puts the analysis to the test, so no wrong cut may be turned into a refusal
        return {"global_pruning": self.ranked, "verify": "never", **heads}

    def _unchanged(self, before: Mapping[str, Any], model: nn.Module, given: Mapping[str, Any]) -> None:
        changed = changes(before, state_of(model))
        if changed:
            raise _DisagreementError(Outcome.CHANGED, ", ".join(changed[:5]))
        self._inputs_unchanged(given)

    def _inputs_unchanged(self, given: Mapping[str, Any]) -> None:
        if difference(dict(given), self.inputs) > 0:
            raise _DisagreementError(Outcome.INPUTS, "")

    def _look(self, graph: pk.DependencyGraph) -> None:
        rules = pk.default_registry().op_rules
        operations = [op.op for recording in graph.analysis.recordings for op in recording.trace.operations]
        found = {rules.key(op) for op in dict.fromkeys(operations)}
        self.keys = frozenset(str(key) for key in found if key is not None)
        self.missing = tuple(sorted({gap.operation for gap in graph.analysis.not_understood}))

    @staticmethod
    def _told(report: pk.Report) -> str:
        mixes = [f"{group}: {uses[0]}" for group, uses in report.mixes.items()]
        return "; ".join([*mixes, *(note for note in report.notes if FOLLOWS in note or MEAN in note)])

    def _compare(self, model: nn.Module, plan: pk.Plan, told: str) -> None:
        try:
            found = call(model, self.inputs)
        except Exception as error:
            raise _DisagreementError(Outcome.RAISES, f"{type(error).__name__}: {error}") from error
        shapes = [
            [tuple(leaf.shape) for leaf in leaves(x) if isinstance(leaf, torch.Tensor)] for x in (self.expected, found)
        ]
        if shapes[0] != shapes[1]:
            raise _DisagreementError(Outcome.DIFFERS, f"shapes {shapes[0]} became {shapes[1]}")
        self._round_trips(model, plan, found)
        agrees = self._strict(model, plan, found, told)
        self._check_exact(model, plan, told, agrees)
        if agrees:
            self._train(model, told)
            if self.any_batch and not told:
                self._larger(model)

    def _masked(self, model: nn.Module, plan: pk.Plan) -> nn.Module:
        positions = {cut.parameter: plan.positions(cut) for cut in plan.parameters}
        try:
            mask = masked(self.original, model, positions)
        except ValueError as error:
            raise _DisagreementError(Outcome.VALUES, str(error)) from error
        rescaled = {r.parameter for r in plan.rescales}
        strange = [name for name in mask.unread if name not in rescaled]
        if strange:
            raise _DisagreementError(Outcome.VALUES, ", ".join(strange))
        theirs = dict(plan.mask(copy.deepcopy(self.original)).named_parameters())
        for name, parameter in mask.model.named_parameters():
            if not torch.equal(theirs[name], parameter):
                raise _DisagreementError(Outcome.MASK, name)
        return mask.model

    def _strict(self, model: nn.Module, plan: pk.Plan, found: Any, told: str) -> bool | None:
        """Whether the pruned model equals the masked original; None where it can't be said."""
        self._mask = self._masked(model, plan)
        reference = call(self._mask, self.inputs)
        if not finite(reference):
            return None
        error = difference(reference, found)
        if error <= TOLERANCE:
            self.compared = True
            return True
        if told:
            return False
        raise _DisagreementError(Outcome.DIFFERS, f"by {error:.2g}; {self._verdict_of_check(model, plan)}")

    def _verdict_of_check(self, model: nn.Module, plan: pk.Plan) -> str:
        try:
            return f"check_exact says {pk.check_exact(self.original, model, plan, self.inputs)}"
        except Exception as error:
            return f"check_exact raises {type(error).__name__}: {error}"

    def _check_exact(self, model: nn.Module, plan: pk.Plan, told: str, agrees: bool | None) -> None:
        try:
            verdict = pk.check_exact(copy.deepcopy(self.original), model, plan, self.inputs)
        except Exception as error:
            raise _DisagreementError(Outcome.CHECK_RAISES, f"{type(error).__name__}: {error}") from error
        if agrees and not verdict:
            raise _DisagreementError(Outcome.CHECK_ALARM, f"{verdict}; told: {told or 'nothing'}")
        if agrees is False and FOLLOWS not in told and not verdict:
            raise _DisagreementError(Outcome.CHECK_TOLD, f"{verdict}; told: {told}")

    def _round_trips(self, model: nn.Module, plan: pk.Plan, found: Any) -> None:
        read = pk.Plan.from_json(plan.to_json())
        if read != plan:
            raise _DisagreementError(Outcome.JSON, "not equal")
        other = read.apply(copy.deepcopy(self.original))
        if [tuple(p.shape) for p in other.parameters()] != [tuple(p.shape) for p in model.parameters()]:
            raise _DisagreementError(Outcome.COPY, "other shapes")
        if difference(call(other, self.inputs), found) > 0:
            raise _DisagreementError(Outcome.COPY, "other outputs")

    def _train(self, model: nn.Module, told: str) -> None:
        """In train mode a program that draws nothing must agree, too, if it runs there at all."""
        try:
            one, two = (call(self.original, self.inputs, True, seed) for seed in (0, 1))
        except Exception:
            return
        if difference(one, two) > 0:
            return
        reference = call(self._mask, self.inputs, True)
        try:
            found = call(model, self.inputs, True)
        except Exception as error:
            raise _DisagreementError(Outcome.TRAIN, f"raises {type(error).__name__}: {error}") from error
        error = difference(reference, found)
        if finite(reference) and error > TOLERANCE and not told:
            raise _DisagreementError(Outcome.TRAIN, f"by {error:.2g}")

    def _larger(self, model: nn.Module) -> None:
        """A batch of one more must agree as well, if the original runs on it: the example is only an example."""
        inputs = {name: _one_more(value) for name, value in self.inputs.items()}
        try:
            call(self.original, inputs)
            reference = call(self._mask, inputs)
        except Exception:
            return
        if not finite(reference):
            return
        try:
            found = call(model, inputs)
        except Exception as error:
            raise _DisagreementError(Outcome.BATCH, f"raises {type(error).__name__}: {error}") from error
        error = difference(reference, found)
        if error > TOLERANCE:
            raise _DisagreementError(Outcome.BATCH, f"by {error:.2g}")

    def _exact_groups_only(self, mixes: Mapping[str, Any]) -> bool:
        """Prunes what is left once the groups under norms stay whole; tells whether that was something, and exact."""
        model = copy.deepcopy(self.original)
        graph = pk.DependencyGraph().build_dependency(model, self.inputs)
        rng = random.Random(self.seed)
        removed = {}
        for group in graph.groups():
            if not group.mixes and group.size > 1 and not group.outer:
                count = max(1, int(group.size * self.ratio)) if group.size > 1 else 0
                removed[group.name] = tuple(sorted(rng.sample(range(group.size), min(count, group.size - 1))))
        if not removed:
            return False
        before, given = state_of(model), copy.deepcopy(self.inputs)
        try:
            plan = pk.Group(graph, removed, None).prune()
        except pk.PrunekitError:
            self._unchanged(before, model, given)
            return False
        except Exception as error:
            raise _DisagreementError(Outcome.RAW, f"Group.prune: {type(error).__name__}: {error}") from error
        told = self._told(graph.report())
        self._compare(model, plan, told)
        return not told
