"""Runs a folder in mlx-lm on the CPU; a process of its own. It needs nothing of prunekit."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def step(model: Any, cache: Any, ids: list[int], top: int) -> dict[str, Any]:
    """Computes the log-probabilities of the likeliest tokens after some others; what was seen is in the cache."""
    import mlx.core as mx
    import numpy as np

    logits = model(mx.array([ids]), cache=cache)[0, -1].astype(mx.float32)
    logs = np.array(logits - mx.logsumexp(logits))
    best = np.argsort(-logs)[:top]
    return {"ids": best.tolist(), "logs": logs[best].tolist()}


def main(request: str, answer: str) -> None:
    """Answers a request: what comes after the prompt, and in each step of decoding."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load_model

    wanted = json.loads(Path(request).read_text())
    mx.set_default_device(mx.cpu)
    model, _ = load_model(Path(wanted["path"]))
    cache = make_prompt_cache(model)
    steps = [step(model, cache, wanted["prompt"], wanted["top"])]
    steps += [step(model, cache, [token], wanted["top"]) for token in wanted["following"]]
    Path(answer).write_text(json.dumps({"steps": steps}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
