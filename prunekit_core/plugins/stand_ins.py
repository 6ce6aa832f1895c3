"""Replacements at work: a module is converted, and what comes out is checked."""

from __future__ import annotations

import attrs
from torch import nn

from prunekit_core.plugins.blame import Blame
from prunekit_core.plugins.layers import Replacement
from prunekit_core.plugins.registry import Registry

HEADLINE = "A replacement failed."


def blame_of(replacement: Replacement, registry: Registry) -> Blame:
    """Tells whose a replacement is."""
    return attrs.evolve(registry.owners.blame("prunekit_replacements", replacement), thing=replacement.convert)


def stand_in(registry: Registry, replacement: Replacement, module: nn.Module, path: str) -> nn.Module | None:
    """Converts a module.

    Args:
        registry: What tells whose the replacement is.
        replacement: The replacement.
        module: The module.
        path: Its dotted path, for messages.

    Returns:
        The module that stands in for it, around the same parameters; None where the replacement can't convert it.

    Raises:
        PluginError: The replacement raises, or returns something else.
    """
    blame = blame_of(replacement, registry)
    with blame.blamed(HEADLINE, path):
        converted = replacement.convert(module)
    if converted is None:
        return None
    if not isinstance(converted, nn.Module):
        raise blame.error(HEADLINE, f"it returned a {type(converted).__name__}, which is no module", at=path)
    own = {id(parameter) for parameter in module.parameters()}
    strange = [name for name, parameter in converted.named_parameters() if id(parameter) not in own]
    if strange:
        raise blame.error(
            HEADLINE,
            f"{strange[0]} is a parameter of its own",
            at=path,
            hint="hand on the parameter objects of the module, not copies of them: self.weight = module.weight",
        )
    return converted
