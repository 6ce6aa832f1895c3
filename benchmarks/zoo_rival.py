"""One model of the zoo with Torch-Pruning, in its own environment; `zoo.py --rival` starts it there.

It gets the hints that its own example scripts pass: layers that make outputs are ignored, attention layers are given
their number of heads, and afterwards the attributes that those scripts set by hand are set.
"""

from __future__ import annotations

import importlib
import json
import time
import traceback
import warnings
from typing import Any

import torch
import zoo_models
from torch import nn

QUERIES = ("query", "q_proj", "q_lin", "q", "query_proj")
KEYS = ("key", "value", "k_proj", "v_proj", "k_lin", "v_lin", "k", "v", "key_proj", "value_proj")
PACKED = ("qkv", "to_qkv", "query_key_value", "c_attn", "Wqkv", "qkv_proj")
COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")


def tell(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def tensors(value: Any) -> list[torch.Tensor]:
    """Finds the tensors of an output, whatever holds them."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in tensors(item)]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors(item)]
    return []


def call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def heads_of(module: nn.Module) -> int | None:
    for place in (module, getattr(module, "config", None)):
        for name in COUNTS:
            if isinstance(getattr(place, name, None), int):
                return int(getattr(place, name))
    return None


def head_hints(model: nn.Module) -> dict[nn.Module, int]:
    found: dict[nn.Module, int] = {}
    for module in model.modules():
        heads = heads_of(module)
        for name in (*QUERIES, *KEYS, *PACKED) if heads else ():
            layer = getattr(module, name, None)
            if isinstance(layer, nn.Linear):
                shared = getattr(getattr(module, "config", None), "num_key_value_heads", None) or heads
                found[layer] = shared if name in KEYS else heads
    return found


def set_attributes(model: nn.Module, heads: dict[Any, int]) -> None:
    """Sets what the example scripts set after pruning."""
    for module in model.modules():
        for name in (*QUERIES, *PACKED):
            layer = getattr(module, name, None)
            if not isinstance(layer, nn.Linear) or layer not in heads:
                continue
            width = layer.out_features // (3 if name in PACKED else 1)
            for attribute, value in (
                ("all_head_size", width),
                ("attn_dim", width),
                ("attention_head_size", width // heads[layer]),
            ):
                if hasattr(module, attribute):
                    setattr(module, attribute, value)
            if hasattr(module, "head_dim"):
                module.head_dim = width // heads[layer]
            for attribute in COUNTS:
                if hasattr(module, attribute):
                    setattr(module, attribute, heads[layer])
    if type(model).__name__ == "VisionTransformer" and hasattr(model, "conv_proj"):
        model.hidden_dim = model.conv_proj.out_channels  # type: ignore[union-attr]


def measure(family: str, name: str) -> None:
    tp = importlib.import_module("torch_pruning")
    torch.manual_seed(0)
    example = zoo_models.FAMILIES[family].build(name)
    model, inputs = example.model.eval(), example.inputs
    size = sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        outputs = tensors(call(model, inputs))
    before = [tuple(tensor.shape) for tensor in outputs]
    ends = {shape[1] if len(shape) > 3 else shape[-1] for shape in before if len(shape) > 1}
    ignored = [
        module
        for module in model.modules()
        if (isinstance(module, nn.Linear) and module.out_features in ends)
        or (isinstance(module, nn.Conv2d) and module.out_channels in ends)
    ]
    heads = head_hints(model)
    began = time.process_time()
    pruner = tp.pruner.MagnitudePruner(
        model,
        inputs,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=ignored,
        num_heads=heads,
        output_transform=tensors,
    )
    pruner.step()
    set_attributes(model, dict(pruner.num_heads))
    left = sum(p.numel() for p in model.parameters()) / size
    tell(prune_s=round(time.process_time() - began, 2), left=round(left, 4))
    with torch.no_grad():
        after = [tuple(tensor.shape) for tensor in tensors(call(model, inputs))]
    tell(shapes_kept=after == before or example.free_outputs)
    model.train()
    trained = tensors(example.train(model) if example.train else call(model, inputs))
    sum(t.float().sum() for t in trained if t.is_floating_point() and t.requires_grad).backward()  # type: ignore[union-attr]
    tell(backward=True)


def work(family: str, name: str, groups: int, threads: int, quick: bool) -> None:
    """Measures one model; an error is a result, too."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    try:
        measure(family, name)
    except Exception as error:
        traceback.print_exc()
        print(flush=True)
        tell(failed=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
