"""Runs a GGUF file in llama.cpp, through the server in the wheel ``xllamacpp``; a process of its own.

The server listens on the loopback device, at a free port, as long as the process lives. It needs nothing of prunekit.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

FORCED = 1000.0
"""What is added to the logit of a token so that it is drawn; the probabilities are those from before."""


def started(path: str, context: int) -> Any:
    """Loads a file: on the CPU, one thread, a cache in single precision, so that differences are llama.cpp's rounding
    of products alone."""
    import xllamacpp as engine

    params = engine.CommonParams()
    params.model.path = path
    params.n_ctx, params.n_batch, params.n_parallel, params.n_gpu_layers = context, context, 1, 0
    params.cache_type_k = params.cache_type_v = engine.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = engine.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = params.n_threads_http = 1
    params.swa_full = True  # else layers with windows that are longer than the text are computed again at each step
    params.warmup = params.fit_params = params.ui = False
    params.port = 0
    return engine.Server(params)


def posted(address: str, place: str, question: Any) -> Any:
    """Sends a request to the server."""
    body = json.dumps(question).encode()
    request = urllib.request.Request(f"{address}/{place}", body, {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request) as answer:
        return json.loads(answer.read())


def step(address: str, ids: list[int], top: int, plain: int) -> dict[str, Any]:
    """Computes the log-probabilities of the likeliest tokens after some others, of which the first are in the cache.

    A token that is plain text is forced: the server says nothing about tokens that are half a character.
    """
    question = {
        "prompt": ids,
        "n_predict": 1,
        "temperature": 0,
        "n_probs": top,
        "cache_prompt": True,
        "logit_bias": [[plain, FORCED]],
    }
    answer = posted(address, "completion", question)
    told = answer["completion_probabilities"][0]["top_logprobs"]
    return {
        "ids": [entry["id"] for entry in told],
        "logs": [entry["logprob"] for entry in told],
        "evaluated": answer["timings"]["prompt_n"],
    }


def main(request: str, answer: str) -> None:
    """Answers a request: what comes after the prompt and in each step of decoding, and the tokens of some texts."""
    wanted = json.loads(Path(request).read_text())
    server = started(wanted["path"], wanted["context"])
    address, ids = server.listening_address, list(wanted["prompt"])
    steps = [step(address, ids, wanted["top"], wanted["plain"])]
    for token in wanted["following"]:
        ids.append(token)
        steps.append(step(address, ids, wanted["top"], wanted["plain"]))
    texts = [posted(address, "tokenize", {"content": text, "add_special": True}) for text in wanted["texts"]]
    told = {"steps": steps, "texts": [entry["tokens"] for entry in texts]}
    Path(answer).write_text(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
