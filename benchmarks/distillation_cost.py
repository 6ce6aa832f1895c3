"""Measures what a step of distillation costs, beside what it can't do without.

    python benchmarks/distillation_cost.py

A step runs the teacher's forward, the student's forward and backward, and the optimizer; everything else is overhead.
Processor time, so that other programs count less. Each row is the median over the steps of several rounds, alternating
with a plain loop that does only these.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
import torchvision
import transformers
from torch import nn

import prunekit as pk

STEPS, ROUNDS = 6, 3


def plain(student: nn.Module, teacher: nn.Module, batch: object, logits: Callable[[object], torch.Tensor]) -> None:
    """One step with nothing around it."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    run = (lambda model: model(**batch)) if isinstance(batch, dict) else (lambda model: model(batch))
    student.train()
    for _ in range(STEPS):
        optimizer.zero_grad()
        with torch.no_grad():
            wanted = logits(run(teacher))
        own, wanted = ((found / 2).log_softmax(-1) for found in (logits(run(student)), wanted))
        (4 * F.kl_div(own, wanted, reduction="batchmean", log_target=True)).backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()


def cases() -> dict[str, tuple[nn.Module, object, Callable[[object], torch.Tensor]]]:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=1024, hidden_size=128, intermediate_size=344, num_hidden_layers=4, num_attention_heads=4
    )
    llama = transformers.LlamaForCausalLM(config)
    tokens = {"input_ids": torch.randint(1024, (4, 128)), "attention_mask": torch.ones(4, 128, dtype=torch.long)}
    resnet = torchvision.models.resnet18(num_classes=100)
    return {
        "llama, 1 M parameters, 512 tokens": (llama, tokens, lambda outputs: outputs.logits),
        "resnet18, 8 images of 64 x 64": (resnet, torch.randn(8, 3, 64, 64), lambda outputs: outputs),
    }


def timed(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return (time.process_time() - start) / STEPS


def distilled(student: nn.Module, teacher: nn.Module, batch: object, options: dict[str, object]) -> float:
    """The mean time of a step of `distill`, the first one left out: recording and trying come before it."""
    marks: list[float] = []
    pk.distill(
        student, teacher, [batch], **options, steps=STEPS + 1, progress=lambda *call: marks.append(time.process_time())
    )  # fmt: skip
    return (marks[-1] - marks[0]) / STEPS


def compared(model: nn.Module, batch: object, logits: Callable[[object], torch.Tensor], weights: object) -> list[float]:
    """Milliseconds of a plain step and of one of `distill`."""
    student = copy.deepcopy(model)
    plan = pk.prune(student, batch, ratio=0.3, verify="never").plan
    found: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        found[0].append(timed(lambda: plain(student, model, batch, logits)))
        found[1].append(distilled(student, model, batch, {"plan": plan, "weights": weights}))
    return [1000 * statistics.median(values) for values in found]


def main() -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; milliseconds a step")
    print(f"{'network':<36} {'loss':<16} {'plain':>8} {'distill':>8} {'ratio':>6}")
    for name, (model, batch, logits) in cases().items():
        model.eval()
        for weights in ({"logits": 1.0}, {"logits": 1.0, "hidden": 1.0}):
            own, whole = compared(model, batch, logits, weights)
            print(f"{name:<36} {', '.join(weights):<16} {own:>8.1f} {whole:>8.1f} {whole / own:>6.2f}", flush=True)


if __name__ == "__main__":
    main()
