"""Programs are drawn: an input, some productions, heads that make outputs of what is left."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Sequence

import torch

from tests.programs.grammar.draft import BATCH, Draft, NoFitError, Value
from tests.programs.grammar.following import following
from tests.programs.grammar.productions import PRODUCTIONS
from tests.programs.grammar.program import Program, in_float64

TRIES = 60
INPUTS = {
    "vectors": ("torch.randn({b}, 6)", 2),
    "sequence": ("torch.randn({b}, 4, 6)", 6),
    "signal": ("torch.randn({b}, 3, 8)", 3),
    "picture": ("torch.randn({b}, 3, 6, 6)", 6),
    "volume": ("torch.randn({b}, 2, 4, 4, 4)", 1),
    "wide": ("torch.randn({b}, 8)", 3),
    "tokens": ("torch.randint(0, 7, ({b}, 4))", 3),
}


def write(seed: int, only: Sequence[str] = ()) -> Program:
    """Draws a program; the same seed gives the same one.

    Args:
        seed: Any number.
        only: The productions to choose from; all by default.
    """
    torch.default_generator.manual_seed(seed)
    with warnings.catch_warnings(), in_float64():
        warnings.simplefilter("ignore")
        return _Writer(seed, only).program()


class _Writer:
    def __init__(self, seed: int, only: Sequence[str]) -> None:
        self.seed, self.only = seed, only
        self.draft = Draft(seed)
        self.rng: random.Random = self.draft.rng
        self.made_by: list[str] = []

    def program(self) -> Program:
        self._inputs()
        small = self.rng.random() < 0.3
        wanted = self.rng.choice((1, 1, 2) if small else (2, 3, 4, 5, 6, 8, 10))
        names = list(self.only) or (["asides.aside"] if small else list(PRODUCTIONS))
        weights = [PRODUCTIONS[name].weight for name in names]
        for _ in range(TRIES):
            if len(self.made_by) >= wanted:
                break
            name = self.rng.choices(names, weights)[0]
            self._try(name, PRODUCTIONS[name].write)
        outputs = self._outputs()
        draft = self.draft
        statements = draft.statements
        follows = small or self.rng.random() < 0.5
        if follows:
            statements = following(self.rng, statements, draft.space, self.rng.choice((1, 1, 2, 3)))
        return Program(
            self.seed,
            tuple(draft.inputs),
            tuple(draft.layers),
            tuple(statements),
            outputs,
            tuple(self.made_by),
            follows,
        )

    def _try(self, name: str, production: Callable[[Draft], None]) -> None:
        try:
            with self.draft.attempt():
                production(self.draft)
        except Exception:  # what doesn't run on these values isn't added
            return
        self.made_by.append(name)

    def _inputs(self) -> None:
        kinds = self.rng.choices(list(INPUTS), [weight for _, weight in INPUTS.values()], k=self.rng.choice((1, 1, 2)))
        for name, kind in zip(("x", "y"), kinds, strict=False):
            value = self.draft.feed(name, INPUTS[kind][0].format(b=BATCH))
            first = PRODUCTIONS[
                "layers.embedding"
                if kind == "tokens"
                else "layers.dense"
                if self.rng.random() < 0.5
                else "layers.convolution"
            ]
            self._start(value, first.write)

    def _start(self, value: Value, production: Callable[[Draft], None]) -> None:
        for write in (production, PRODUCTIONS["layers.dense"].write):
            try:
                with self.draft.attempt():
                    write(self.draft)
                return
            except Exception:  # the next one fits
                continue

    def _outputs(self) -> str:
        """Puts a head on what nobody reads, and names the outputs."""
        draft = self.draft
        sinks = [v for v in draft.values.values() if v.tensor.is_floating_point() and v.ndim and not _read(draft, v)]
        if not sinks:
            sinks = [list(draft.values.values())[-1]]
        chosen = sinks[-4:]
        made = [head for head in (self._head(sink) for sink in chosen) if head]
        if not made:
            made = [sinks[-1].name]
        if len(made) == 1:
            return self.rng.choice((made[0], made[0], f"({made[0]},)", f'{{"y": {made[0]}}}', f"Out({made[0]})"))
        listed = ", ".join(made)
        keyed = ", ".join(f'"o{k}": {name}' for k, name in enumerate(made))
        nested = f"Out({made[0]}, [{', '.join(made[1:])}])"
        return self.rng.choice((f"({listed})", f"[{listed}]", f"{{{keyed}}}", nested, " + ".join(made)))

    def _head(self, value: Value) -> str:
        draft = self.draft
        for _ in range(4):
            try:
                with draft.attempt():
                    return self.rng.choice(HEADS)(draft, value).name
            except Exception:  # another head may fit
                continue
        return ""


def _read(draft: Draft, value: Value) -> bool:
    position = next(k for k, s in enumerate(draft.statements) if s.target == value.name)
    return any(value.name in statement.names for statement in draft.statements[position + 1 :])


def _flat(draft: Draft, value: Value) -> Value:
    if value.ndim < 2 or value.shape[0] != BATCH:
        raise NoFitError
    width = value.tensor[0].numel()
    layer = draft.layer(f"nn.Linear({width}, 3)")
    return draft.let(f"{layer}({value}.flatten(1))")


def _last(draft: Draft, value: Value) -> Value:
    layer = draft.layer(f"nn.Linear({value.shape[-1]}, 3)")
    made = draft.let(f"{layer}({value})")
    return draft.let(f"{made}.flatten(1).sum(1, keepdim=True).expand(-1, 3)") if made.ndim > 2 else made


def _convolved(draft: Draft, value: Value) -> Value:
    if not 3 <= value.ndim <= 5:
        raise NoFitError
    layer = draft.layer(f"nn.Conv{value.ndim - 2}d({value.shape[1]}, 3, 1)")
    return draft.let(f"{layer}({value}).flatten(2).sum(2)")


def _pooled(draft: Draft, value: Value) -> Value:
    if not 3 <= value.ndim <= 5:
        raise NoFitError
    layer = draft.layer(f"nn.Linear({value.shape[1]}, 3)")
    return draft.let(f"{layer}({value}.flatten(2).mean(2))")


def _labelled(draft: Draft, value: Value) -> Value:
    """A parameter contracted with every dim but the batch's."""
    if not 2 <= value.ndim <= 5 or value.shape[0] != BATCH:
        raise NoFitError
    labels = "cdef"[: value.ndim - 1]
    parameter = draft.parameter(*value.shape[1:], 3)
    return draft.let(f'torch.einsum("b{labels}, {labels}o -> bo", {value}, {parameter})')


HEADS = (_flat, _flat, _last, _convolved, _pooled, _labelled)
