"""One trial: a network is built, pruned, and compared with oracles that don't share the library's analysis."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn
from torch.nn import functional as F

import prunekit as pk
from tests.programs import pictures, tokens
from tests.programs.spec import Block

TOLERANCE = 1e-9


def make(family: str, blocks: tuple[Block, ...], head: int, seed: int) -> tuple[nn.Module, torch.Tensor]:
    """Builds a network in float64 with every parameter and statistic at random, and an input for it."""
    torch.manual_seed(seed)
    net: nn.Module
    if family == "pictures":
        net = pictures.PictureNet(blocks, head).double()
        x = torch.randn(2, 3, pictures.SIDE, pictures.SIDE, dtype=torch.float64)
    else:
        net = tokens.TokenNet(blocks, head).double()
        numbers = getattr(net, "numbers")  # noqa: B009 - an attribute of one of the two networks
        shape = (2, tokens.TOKENS)
        x = torch.randint(7, shape) if numbers else torch.randn(*shape, 6, dtype=torch.float64)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 1.5)
            for name, tensor in module.named_parameters(recurse=False):
                if name.endswith("bias"):
                    tensor.normal_(std=0.3)
                elif name == "weight" and tensor.dim() == 1:
                    tensor.uniform_(0.5, 1.5)
    return net.eval(), x


def state_of(model: nn.Module) -> dict[str, object]:
    """Everything that an aborted cut must leave alone: tensors (by value and identity) and plain attributes."""
    found: dict[str, object] = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name == "_modules":
                found[f"{path}/modules"] = [(key, id(child)) for key, child in value.items()]
            elif name in ("_parameters", "_buffers"):
                for key, tensor in value.items():
                    if tensor is not None:
                        found[f"{path}.{key}"] = (id(tensor), tuple(tensor.shape), tensor.detach().clone())
            elif not name.startswith("_"):
                found[f"{path}:{name}"] = copy.copy(value)
    return found


def same_state(before: dict[str, object], after: dict[str, object]) -> bool:
    """Tells whether two states are the same to the last bit."""
    if before.keys() != after.keys():
        return False
    for key, old in before.items():
        new = after[key]
        if isinstance(old, tuple) and len(old) == 3 and isinstance(old[2], torch.Tensor):
            assert isinstance(new, tuple)
            if old[:2] != new[:2] or not torch.equal(old[2], new[2]):
                return False
        elif callable(old):
            if old is not new:
                return False
        elif old != new:
            return False
    return True


def masked(original: nn.Module, pruned: nn.Module, plan: pk.Plan) -> nn.Module:
    """Makes the original with zeros for everything that was removed, its norms taken over what is kept.

    Statistics over kept channels need no analysis: the plan says which elements of a norm's weight stay.
    """
    full = copy.deepcopy(original)
    plan.mask(full)
    cuts = {cut.parameter: plan.positions(cut) for cut in plan.parameters}
    for path, module in full.named_modules():
        positions = cuts.get(f"{path}.weight", {}).get(0)
        if positions is None or not isinstance(module, nn.LayerNorm | nn.RMSNorm | nn.GroupNorm):
            continue
        small = pruned.get_submodule(path)
        module.forward = _over_kept(module, positions, getattr(small, "num_groups", None))  # type: ignore[method-assign]
    return full


def _over_kept(norm: nn.Module, positions: torch.Tensor, groups: int | None):  # type: ignore[no-untyped-def]
    def forward(x: torch.Tensor) -> torch.Tensor:
        weight = norm.weight[positions]
        if groups is not None:
            part = F.group_norm(x[:, positions], groups, weight, norm.bias[positions], norm.eps)
            return torch.zeros_like(x).index_copy(1, positions, part)
        part = x[..., positions]
        if isinstance(norm, nn.RMSNorm):
            part = F.rms_norm(part, weight.shape, weight, norm.eps)
        else:
            part = F.layer_norm(part, weight.shape, weight, norm.bias[positions], norm.eps)
        return torch.zeros_like(x).index_copy(x.dim() - 1, positions, part)

    return forward


def relative(expected: torch.Tensor, found: torch.Tensor) -> float:
    """Largest difference relative to the largest expected value."""
    if expected.shape != found.shape:
        return math.inf
    return float((expected - found).abs().max() / expected.abs().max().clamp(min=1e-12))


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters."""
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def runs_both_ways(model: nn.Module, x: torch.Tensor, shape: torch.Size) -> None:
    """Forward and backward in train mode; every gradient has the shape of its parameter."""
    model.train()
    output = model(x)
    assert output.shape == shape
    output.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.shape == parameter.shape, name


def compare(original: nn.Module, pruned: nn.Module, plan: pk.Plan, x: torch.Tensor, *, exact: bool) -> None:
    """Holds a pruned network against the library's check and, where zeros are enough, against a masked original."""
    with torch.no_grad():
        before, after = original(x), pruned(x)
    assert after.shape == before.shape
    assert torch.isfinite(after).all()
    verdict = pk.check_exact(original, pruned, plan, x)
    assert verdict, str(verdict)
    if exact:
        with torch.no_grad():
            error = relative(masked(original, pruned, plan)(x), after)
        assert error < TOLERANCE, f"differs from the masked original by {error:.2e}"
    runs_both_ways(copy.deepcopy(pruned), x, before.shape)
