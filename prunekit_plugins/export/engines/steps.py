"""What a language model says after a prompt and in ten steps of decoding: by PyTorch, and by an engine."""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn

from prunekit_plugins.export.comparison import ExportError

PROMPT, STEPS = 24, 10
"""Tokens of the prompt, and steps of decoding after it."""
TOP = 4096
"""Log-probabilities that are compared in each step, at most: those of the likeliest tokens."""
TOLERANCES = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 2e-1}
"""Largest difference of a log-probability that is accepted when none is given, by the dtype of the weights."""


@attrs.frozen(eq=False)
class Steps:
    """A prompt, the tokens that follow it, and the log-probabilities of all tokens before each of them.

    Attributes:
        prompt: Token ids.
        following: The likeliest token after the prompt, and so on: one for each step of decoding.
        logs: Log-probabilities, ``[1 + steps, vocabulary]``, double: after the prompt, and after each following token.
    """

    prompt: tuple[int, ...]
    following: tuple[int, ...]
    logs: torch.Tensor


@attrs.frozen
class EngineCheck:
    """What an engine computes, beside what PyTorch computes.

    Attributes:
        engine: The engine and its version.
        prompt: Tokens of the prompt.
        steps: Steps of decoding after it, one token each.
        error: Largest difference of a log-probability, in nats.
        tolerance: What was accepted.
        texts: Texts of which the engine makes the tokens that the model's tokenizer makes.
    """

    engine: str
    prompt: int
    steps: int
    error: float
    tolerance: float
    texts: int = 0

    def __str__(self) -> str:
        said = f"{self.engine}: log-probabilities after {self.prompt} tokens and in {self.steps} steps of decoding"
        same = f"; {self.texts} texts give the same tokens" if self.texts else ""
        return f"{said} differ by at most {self.error:.1e} (accepted: {self.tolerance:.0e}){same}"


def expected_steps(model: Any, *, prompt: Sequence[int] = (), seed: int = 0) -> Steps:
    """Computes what a causal language model says to a prompt, in single precision on the CPU.

    Args:
        model: A ``transformers`` model whose output has ``logits`` ``[1, tokens, vocabulary]``.
        prompt: Token ids; none for random ones.
        seed: Seed of a random prompt.
    """
    exact = model if model.dtype is torch.float32 else copy.deepcopy(model).float()
    size = int(exact.get_input_embeddings().weight.shape[0])
    length = min(PROMPT, int(getattr(model.config, "max_position_embeddings", None) or PROMPT + STEPS) - STEPS)
    generator = torch.Generator().manual_seed(seed)
    start = list(prompt) or torch.randint(0, size, (max(length, 2),), generator=generator, device="cpu").tolist()
    following: list[int] = []
    rows = []
    for _ in range(STEPS + 1):
        ids = torch.tensor([[*start, *following]], device=exact.device)
        with torch.no_grad():
            logits = exact(input_ids=ids, use_cache=False).logits[0, -1]
        rows.append(logits.double().log_softmax(-1).cpu())
        following.append(int(rows[-1].argmax()))
    return Steps(tuple(start), tuple(following[:STEPS]), torch.stack(rows))


def request_of(expected: Steps, path: Path) -> dict[str, Any]:
    """Makes what an engine in a process of its own is asked."""
    return {
        "path": str(path),
        "prompt": expected.prompt,
        "following": expected.following,
        "top": min(expected.logs.shape[1], TOP),
    }


def checked(
    model: nn.Module, expected: Steps, answer: Any, engine: str, tolerance: float | None, *, texts: int = 0
) -> EngineCheck:
    """Compares the answer of an engine, see `checked_logs`: of each step some ids and their log-probabilities."""
    ids = torch.tensor([step["ids"] for step in answer["steps"]], device="cpu")
    found = torch.tensor([step["logs"] for step in answer["steps"]], dtype=torch.float64, device="cpu")
    return checked_logs(model, expected, found, engine, tolerance, ids=ids, texts=texts)


def checked_logs(
    model: nn.Module,
    expected: Steps,
    found: torch.Tensor,
    engine: str,
    tolerance: float | None,
    *,
    ids: torch.Tensor | None = None,
    texts: int = 0,
) -> EngineCheck:
    """Compares log-probabilities.

    Args:
        model: The model.
        expected: What it says.
        found: ``[1 + steps, vocabulary]``; or ``[1 + steps, n]`` for the tokens that ``ids`` names.
        engine: The engine and its version.
        tolerance: Largest difference that is accepted; None for the usual one.
        ids: Tokens, ``[1 + steps, n]``.
        texts: Texts of which the engine made the right tokens.

    Raises:
        ExportError: They differ by more, or the engine gave no number.
    """
    wanted = expected.logs if ids is None else expected.logs.gather(1, ids)
    error = float((wanted - found.double()).abs().nan_to_num(nan=float("inf")).max())
    allowed = tolerance_of(model, tolerance)
    if error > allowed:
        raise ExportError(
            "The exported model computes something else in the engine; nothing was written.",
            where=engine,
            why=f"a log-probability differs by {error:.1e}, accepted: {allowed:.0e}",
            hint="a larger tolerance accepts it; large errors are a bug of the exporter or of this engine",
        )
    return EngineCheck(engine, len(expected.prompt), len(expected.following), error, allowed, texts=texts)


def tolerance_of(model: nn.Module, given: float | None) -> float:
    """Returns the difference that is accepted: the one that is given, or the usual one for the weights' dtype."""
    dtypes = {parameter.dtype for parameter in model.parameters()}
    return given if given is not None else max((TOLERANCES.get(dtype, 1e-3) for dtype in dtypes), default=1e-3)


def installed(module: str) -> bool:
    """Whether a module can be imported; it isn't."""
    return importlib.util.find_spec(module) is not None


def version_of(distribution: str) -> str:
    """Returns the version of an installed distribution."""
    return importlib.metadata.version(distribution)
