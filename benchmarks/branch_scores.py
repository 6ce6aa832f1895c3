"""Seconds for scoring all branches of a model by `output_change`, beside those for one forward pass of each.

    OMP_NUM_THREADS=2 python benchmarks/branch_scores.py

The networks have random weights and data: the cost doesn't depend on them. Both ways must give the same scores.
"""

from __future__ import annotations

import argparse
import time
from typing import Any
from unittest import mock

import torch
import torchvision
import transformers

import prunekit as pk
from prunekit_plugins.calibration.branch_replays import Replay
from prunekit_plugins.depth.scoring import BranchScorer
from prunekit_plugins.importance.output_change import OutputChangeImportance


def llama() -> tuple[torch.nn.Module, Any]:
    """Twelve layers of 128 features, eight texts of 64 tokens."""
    config = transformers.LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=12,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return transformers.LlamaForCausalLM(config), {"input_ids": torch.randint(512, (8, 64))}


def resnet() -> tuple[torch.nn.Module, Any]:
    """ResNet-50, eight images of 64 x 64."""
    return torchvision.models.resnet50(num_classes=10), torch.randn(8, 3, 64, 64)


def seconds(graph: pk.Graph, batches: pk.Batches) -> tuple[float, dict[str, float | None]]:
    """Returns the seconds for one score of each branch, and the scores."""
    scorer = BranchScorer(graph, OutputChangeImportance(), batches)
    names = [branch.name for branch in graph.branches() if branch.removable]
    start = time.perf_counter()
    scores = scorer.scores(names)
    return time.perf_counter() - start, scores


def main() -> None:
    """Prints one line for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=2)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for make in (llama, resnet):
        torch.manual_seed(0)
        model, batch = make()
        graph, batches = pk.Graph.of(model.eval(), batch), pk.Batches([batch] * options.batches)
        seconds(graph, batches)  # what is done once
        now, scores = seconds(graph, batches)
        with mock.patch.object(Replay, "can", return_value=False):
            before, expected = seconds(graph, batches)
        assert scores == expected
        print(f"{make.__name__}: {len(scores)} branches, {before:.1f} s -> {now:.1f} s ({before / now:.1f} times)")


if __name__ == "__main__":
    main()
