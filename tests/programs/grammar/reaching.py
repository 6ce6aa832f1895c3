"""Which op rules the productions reach, each tried by itself until it shows nothing new."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import prunekit as pk
from tests.programs.grammar.draft import BATCH, Draft
from tests.programs.grammar.productions import PRODUCTIONS
from tests.programs.grammar.program import in_float64
from tests.programs.grammar.writing import INPUTS


class _Seen(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: dict[Any, None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        rules = pk.default_registry().op_rules
        if not rules.has(func) and func._can_decompose():
            with self:
                result = func.decompose(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        self.operations[func] = None
        return func(*args, **(kwargs or {}))


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), in_float64(), torch.inference_mode():
        warnings.simplefilter("ignore")
        yield


def keys_of(production: Callable[[Draft], None], patience: int = 60) -> set[str]:
    """Lists the keys of the op rules that a production met.

    Args:
        production: Adds statements to a draft.
        patience: It is tried until so many tries in a row, and four for every key that it met, showed nothing new.
    """
    rules, found, tries, idle = pk.default_registry().op_rules, set[str](), 0, 0
    with _quiet():
        while idle < patience + 4 * len(found):
            draft = Draft(tries)
            torch.default_generator.manual_seed(tries)
            kinds = list(INPUTS)
            first = kinds[tries % len(kinds)]
            for name, kind in (("x", first), ("y", random.Random(tries).choice(kinds)), ("z", first)):
                draft.feed(name, INPUTS[kind][0].format(b=BATCH))
            tries, idle = tries + 1, idle + 1
            with _Seen() as seen:
                try:
                    with draft.attempt():
                        production(draft)
                except Exception:
                    continue
            keys = {str(key) for key in map(rules.key, seen.operations) if key is not None}
            if not keys <= found:
                found |= keys
                idle = 0
    return found


def keys_of_all() -> dict[str, set[str]]:
    """Lists the keys that each production met."""
    return {name: keys_of(production.write) for name, production in PRODUCTIONS.items()}
