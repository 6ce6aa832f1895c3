"""The command line: ``prunekit prune``, ``inspect``, ``apply``, ``distill``, ``export``, ``demo`` and more.

This module is the plugin that registers the built-in commands. It is imported with every registry, so it needs neither
typer nor rich; the commands' own modules do, and are imported when the command line runs.
"""

from __future__ import annotations

from collections.abc import Mapping

from prunekit.plugin import hookimpl
from prunekit_plugins.cli.command import LazyCommand

__all__ = ["LazyCommand"]


@hookimpl
def prunekit_commands() -> Mapping[str, LazyCommand]:
    """The built-in commands."""
    return {
        "prune": LazyCommand(
            "prunekit_plugins.cli.commands.prune",
            "prune",
            "Prune a model and write the smaller one to a file, which prunekit.load reads.",
        ),
        "inspect": LazyCommand(
            "prunekit_plugins.cli.commands.inspect",
            "inspect",
            "Show the groups of a model, what is pinned and why, and what could be saved.",
        ),
        "doctor": LazyCommand(
            "prunekit_plugins.cli.commands.doctor",
            "doctor",
            "Say why a smaller model isn't as much faster as hoped: odd sizes, memory, pinned layers, fixed costs.",
        ),
        "apply": LazyCommand(
            "prunekit_plugins.cli.commands.apply",
            "apply",
            "Prune a checkpoint on disk by a plan, without building the model: safetensors in, safetensors out.",
        ),
        "distill": LazyCommand(
            "prunekit_plugins.cli.commands.distill",
            "distill",
            "Train a pruned model to put out what the model before the cut does.",
        ),
        "export": LazyCommand(
            "prunekit_plugins.cli.commands.export",
            "export",
            "Write a model as ONNX or as a program of torch.export, and compare what it computes with the model.",
        ),
        "vocabulary": LazyCommand(
            "prunekit_plugins.cli.commands.vocabulary",
            "vocabulary",
            "Keep the tokens that texts use in a transformers folder: model, tokenizer and configurations.",
        ),
        "bench": LazyCommand(
            "prunekit_plugins.cli.commands.bench",
            "bench",
            "Measure latency, throughput, memory and MACs of a model, and of a smaller one beside it.",
        ),
        "plugins": LazyCommand(
            "prunekit_plugins.cli.commands.plugins",
            "plugins",
            "Show everything registered, from which distribution, what overrides what, what is blocked or broken.",
        ),
        "new-plugin": LazyCommand(
            "prunekit_plugins.cli.commands.new_plugin",
            "new_plugin",
            "Write a package with a plugin in it, which installs and passes its own tests.",
        ),
        "demo": LazyCommand(
            "prunekit_plugins.cli.commands.demo.run",
            "demo",
            "Train two small models on real digits, prune them to half their MACs, fine-tune, and compare.",
        ),
    }
