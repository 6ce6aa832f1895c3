"""Pruned models of Hugging Face's transformers in folders: configuration, plan and weights.

``config.json`` is that of the unpruned model, because a configuration has one number for all layers and a pruned model
may have another in each. The plan is in the weights' metadata.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch import nn

from prunekit import load, save
from prunekit.plugin import ArgumentError, CheckpointError, Plan, PlanError, Protocol, Registry
from prunekit_plugins.integrations.config_depth import whole_config

CONFIG = "config.json"
GENERATION = "generation_config.json"


def save_pretrained(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    plan: Plan,
    protocol: Protocol | None = None,
    config: Any = None,
    max_shard_size: int | str = "5GB",
    registry: Registry | None = None,
) -> None:
    """Writes a pruned transformers model to a folder that `load_pretrained` reads.

    Args:
        model: The pruned model, a ``transformers.PreTrainedModel``.
        folder: Where it goes; made if it isn't there.
        plan: The plan from the unpruned model to this one.
        protocol: How the model came about, stored beside the plan.
        config: The configuration of the unpruned model; None for the model's own, if that wasn't changed.
        max_shard_size: See ``prunekit.save``.
        registry: Where replacements are found; None for the default registry.

    Raises:
        ArgumentError: The model is not one of transformers', or the configuration is not that of the unpruned model;
            nothing was written.
        CheckpointError: See ``prunekit.save``.
    """
    transformers = library()
    if not isinstance(model, transformers.PreTrainedModel):
        raise ArgumentError("The model is not one of transformers'.", why=f"got {type(model).__name__}")
    dense = type(model.config).from_dict((config or whole_config(model.config, plan)).to_dict())
    dense.architectures = [type(model).__name__]
    dense.torch_dtype = model.dtype
    try:
        plan.apply(empty_model(named_architecture(transformers, dense, str(folder)), dense), registry=registry)
    except PlanError as error:
        raise ArgumentError(
            "The configuration is not that of the unpruned model.",
            where=error.where,
            why=error.why,
            hint="pass config=, a copy of model.config that was made before pruning",
        ) from error
    place = Path(folder)
    save(model, place, plan=plan, protocol=protocol, max_shard_size=max_shard_size)
    dense.save_pretrained(str(place))
    if model.can_generate():
        model.generation_config.save_pretrained(str(place))


def load_pretrained(folder: str | os.PathLike[str], *, registry: Registry | None = None) -> nn.Module:
    """Builds the model that `save_pretrained` wrote; nothing is downloaded, and no code in the folder is run.

    The class is the one that the configuration names, out of transformers itself. It is built on the meta device, so
    that the weights are in memory once; dtypes are those of the file.

    Args:
        folder: What `save_pretrained` wrote, or what `prune_checkpoint` made of a model's folder, with its
            ``config.json``.
        registry: Where replacements are found; None for the default registry.

    Returns:
        The pruned model, in eval mode, on the CPU.

    Raises:
        CheckpointError: The folder holds no such model, or its class isn't part of transformers.
    """
    transformers = library()
    place = Path(folder)
    if not (place / CONFIG).is_file():
        raise CheckpointError("The folder holds no configuration.", where=str(place / CONFIG))
    try:
        config = transformers.AutoConfig.from_pretrained(str(place), local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError, KeyError) as error:
        raise CheckpointError("The configuration can't be read.", where=str(place), why=str(error)[:300]) from error
    model = load(
        empty_model(named_architecture(transformers, config, str(place)), config), place, registry=registry, assign=True
    )
    if (place / GENERATION).is_file():
        generation: Any = transformers.GenerationConfig.from_pretrained(str(place), local_files_only=True)
        model.generation_config = generation
    return model.eval()


def library() -> Any:
    """Imports transformers.

    Raises:
        ArgumentError: It, or accelerate, isn't installed.
    """
    try:
        import accelerate  # noqa: F401  # both are needed, and told at once
        import transformers
    except ImportError as error:
        raise ArgumentError(
            "transformers can't be imported.", why=str(error), hint='pip install "prunekit[hf]"'
        ) from error
    return transformers


def named_architecture(transformers: Any, config: Any, where: str) -> type[nn.Module]:
    """Finds the class that a configuration names."""
    name = next(iter(config.architectures or ()), "")
    found = getattr(transformers, name, None) if name else None
    if not isinstance(found, type) or not issubclass(found, transformers.PreTrainedModel):
        raise CheckpointError(
            "The class of the model isn't part of transformers.",
            where=where,
            why=f"its configuration names {json.dumps(name)}",
            hint="build the model with your own code, and fill it with prunekit.load",
        )
    return found


def empty_model(architecture: type[nn.Module], config: Any) -> nn.Module:
    """Builds a model whose parameters are on the meta device, and whose buffers are real."""
    import accelerate

    with accelerate.init_empty_weights(include_buffers=False):
        model: Any = architecture(config)
    model.tie_weights()  # every assignment of a parameter made a new one above
    made: nn.Module = model
    return made
