"""The command line: ``prunekit prune``, ``inspect``, ``apply``, ``distill``, ``export``, ``demo`` and more.

This module is the plugin that registers the built-in commands. It is imported with every registry, so it needs neither
typer nor rich; the commands' own modules do, and are imported when the command line runs.
"""

from __future__ import annotations

from collections.abc import Mapping

from prunekit.plugin import hookimpl
from prunekit_plugins.cli.command import LazyCommand

__all__ = ["LazyCommand"]


COMMANDS = {
    "prune": (
        "prune",
        "prune",
        "Prune a model and write the smaller one: to a file that prunekit.load reads, or to a folder that loads.",
    ),
    "inspect": ("inspect", "inspect", "Show the groups of a model, what is pinned and why, and what could be saved."),
    "doctor": (
        "doctor",
        "doctor",
        "Say why a smaller model isn't as much faster as hoped: odd sizes, memory, pinned layers, fixed costs.",
    ),
    "apply": (
        "apply",
        "apply",
        "Prune a checkpoint on disk by a plan, without building the model: safetensors in, safetensors out.",
    ),
    "distill": ("distill", "distill", "Train a pruned model to put out what the model before the cut does."),
    "shrink": ("shrink", "shrink", "Cut a model to a target in steps and train it after each, as a recipe says."),
    "export": (
        "export",
        "export",
        "Write a model in the format of another runtime, and compare there what it computes with the model.",
    ),
    "vocabulary": (
        "vocabulary",
        "vocabulary",
        "Keep the tokens that texts use in a transformers folder: model, tokenizer and configurations.",
    ),
    "bench": (
        "bench",
        "bench",
        "Measure latency, throughput, memory and MACs of a model, and of a smaller one beside it.",
    ),
    "plugins": (
        "plugins",
        "plugins",
        "Show everything registered, from which distribution, what overrides what, what is blocked or broken.",
    ),
    "new-plugin": (
        "new_plugin",
        "new_plugin",
        "Write a package with a plugin in it, which installs and passes its own tests.",
    ),
    "demo": (
        "demo.run",
        "demo",
        "Train two small models on real digits, prune them to half their MACs, distil, and compare.",
    ),
}
"""Every built-in command: the module below ``commands`` and the function in it, and what it does."""


@hookimpl
def prunekit_commands() -> Mapping[str, LazyCommand]:
    """The built-in commands."""
    return {
        name: LazyCommand(f"prunekit_plugins.cli.commands.{module}", function, summary)
        for name, (module, function, summary) in COMMANDS.items()
    }
