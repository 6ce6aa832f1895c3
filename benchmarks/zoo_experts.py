"""Experts of one mixture of the zoo, in a process of its own: half of them leave every layer, evenly and unevenly.

`zoo.py --experts` starts it. What is left is compared with the original run by plain PyTorch, whose routers can't
choose the experts that left: logits at minus infinity, and correction biases as well (a sigmoid of minus infinity is a
score of zero, which can be chosen). Nothing of prunekit's own comparison takes part. Where all layers keep the same
number, the model is saved and loaded by transformers alone.
"""

from __future__ import annotations

import copy
import random
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
import model_types
import torch
import zoo_models
import zoo_worker
from model_types import mixtures
from torch import nn
from torch.overrides import TorchFunctionMode
from zoo_depth import TOLERANCE, difference, without_gradients

import prunekit as pk
from prunekit_core.program.outputs import output_tensors
from prunekit_core.record.recorder import check_recordable
from prunekit_plugins.integrations.configuration import update_config


class NotLocatedError(Exception):
    """A router doesn't take part in the run as a linear layer, so that its logits can't be changed."""


class CantChoose(TorchFunctionMode):
    """Sets logits of routers to minus infinity.

    Args:
        barred: Weights of routers ``[experts, width]`` with the rows that can't be chosen.
    """

    def __init__(self, barred: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        super().__init__()
        self._barred = barred
        self.seen: set[int] = set()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs a function, and changes what the linear layer of a router returns."""
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if function is nn.functional.linear:
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            for place, (rows, gone) in enumerate(self._barred):
                if weight.shape == rows.shape and torch.equal(weight.float(), rows.float()):
                    self.seen.add(place)
                    return result.index_fill(-1, gone, -torch.inf)
        return result


def removed(plan: pk.Plan) -> dict[str, dict[int, torch.Tensor]]:
    """Lists the positions that a plan takes out of parameters and buffers, by dim."""
    found = {}
    for cut in plan.parameters:
        kept = {dim: set(torch.as_tensor(places).tolist()) for dim, places in plan.positions(cut).items()}
        found[cut.parameter] = {
            dim: torch.tensor([place for place in range(cut.shape[dim]) if place not in places])
            for dim, places in kept.items()
        }
    return found


def can_t_choose(original: nn.Module, plan: pk.Plan, run: Callable[[nn.Module], list[torch.Tensor]]) -> Any:
    """Runs the original with experts that can't be chosen."""
    model = check_recordable(copy.deepcopy(original))
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    barred = []
    for name, by_dim in removed(plan).items():
        tensor = tensors[name]
        for dim, gone in by_dim.items():
            if tensor.ndim == 2 and dim == 0 and is_router(tensor):
                barred.append((tensor.detach().clone(), gone))
            elif tensor.shape[dim] == tensor.numel() and "bias" in name and tensor.is_floating_point():
                tensor.data.index_fill_(dim, gone, -torch.inf)
    with CantChoose(barred) as mode:
        found = without_gradients(lambda: run(model))
    if len(mode.seen) < len(plan.kept):
        raise NotLocatedError(f"{len(mode.seen)} of {len(plan.kept)} routers are linear layers")
    return found


def is_router(tensor: torch.Tensor) -> bool:
    """Whether a parameter has a row for each expert (and one or two that stand for none): no other size is near."""
    return tensor.ndim == 2 and mixtures.EXPERTS <= tensor.shape[0] <= mixtures.EXPERTS + 2


def routers_in(model: nn.Module) -> list[str]:
    """Names the weights of routers: of the modules that hold no stack of weights, whose biases look alike."""
    stacks = {name.rpartition(".")[0] for name, tensor in model.named_parameters() if tensor.ndim == 3}
    named = model.named_parameters()
    return [name for name, tensor in named if is_router(tensor) and name.rpartition(".")[0] not in stacks]


@attrs.frozen(eq=False)
class Mixture:
    """A mixture with one implementation of its experts.

    Attributes:
        model: The model.
        inputs: What it is called with.
        graph: Its graph.
        whole: Its outputs.
    """

    model: nn.Module
    inputs: Any
    graph: pk.Graph
    whole: Sequence[torch.Tensor]

    def run(self, model: nn.Module) -> list[torch.Tensor]:
        """Returns the outputs of a copy of a model."""
        torch.manual_seed(0)
        return output_tensors(zoo_worker.call(copy.deepcopy(model), copy.deepcopy(self.inputs)))

    def groups(self) -> dict[str, int]:
        """Returns the groups of experts, with their sizes."""
        return {group.name: group.size for group in self.graph.groups() if group.kind is pk.Kind.EXPERTS}

    def tried(self, *, uneven: bool) -> tuple[dict[str, Any], nn.Module | None, pk.Plan | None]:
        """Takes half of the experts out of each layer, or out of every other one, and a quarter out of the rest."""
        generator, units = random.Random(0), dict[str, tuple[int, ...]]()  # those that stay
        for place, (name, size) in enumerate(self.groups().items()):
            count = size // 4 if uneven and place % 2 else size // 2
            units[name] = tuple(sorted(generator.sample(range(size), size - count)))
        try:
            plan = self.graph.draft(units)
        except pk.PrunekitError as error:
            text = "; ".join(filter(None, (error.where, error.why or error.headline)))
            return {"verdict": "refused", "why": text[:300]}, None, None
        small = plan.apply(copy.deepcopy(self.model))
        return self._compared(plan, small), small, plan

    def _compared(self, plan: pk.Plan, small: nn.Module) -> dict[str, Any]:
        try:
            expected = can_t_choose(self.model, plan, self.run)
        except NotLocatedError as error:
            check = pk.check_exact(self.model, small, plan, self.inputs)
            return {"verdict": "exact" if check.exact else "wrong", "error": check.error, "own": str(error)}
        found = {"seen": difference(self.whole, expected)}
        found["error"] = difference(expected, without_gradients(lambda: self.run(small)))
        if found["error"] <= TOLERANCE[torch.float32]:
            return {"verdict": "exact", **found}
        return {"verdict": "wrong", **found, **self._in_double(plan)}

    def _in_double(self, plan: pk.Plan) -> dict[str, Any]:
        try:
            with zoo_worker.double_precision():
                double = copy.deepcopy(self.model).double()
                either = attrs.evolve(self, model=double, inputs=zoo_worker.cast(self.inputs, torch.float64))
                expected = can_t_choose(double, plan, either.run)
                small = plan.apply(copy.deepcopy(double))
                error = difference(expected, without_gradients(lambda: either.run(small)))
        except Exception as error:  # kernels that have no double precision
            return {"float64": f"{type(error).__name__}: {str(error)[:200]}"}
        exact = error <= TOLERANCE[torch.float64]
        return {"error": error, "dtype": "float64", "verdict": "exact" if exact else "wrong"}

    def loaded(self, small: nn.Module, plan: pk.Plan) -> dict[str, Any]:
        """Compares with what transformers alone makes of a saved model."""
        pruned = copy.deepcopy(small)
        update = update_config(pruned, plan, self.inputs)
        if not update.complete:
            return {"verdict": "not said", "why": str(update)[:300]}
        with tempfile.TemporaryDirectory() as folder:
            pruned.save_pretrained(folder)  # type: ignore[operator]
            again = type(pruned).from_pretrained(folder).eval()  # type: ignore[attr-defined]
        again.config._experts_implementation = pruned.config._experts_implementation
        error = difference(*(without_gradients(lambda m=m: self.run(m)) for m in (small, again)))  # type: ignore[misc]
        return {"verdict": "exact" if error <= TOLERANCE[torch.float32] else "wrong", "error": error}


def configurations(config: Any) -> Iterator[Any]:
    """Yields a configuration and those inside of it."""
    yield config
    for name in getattr(config, "sub_configs", {}):
        if getattr(config, name, None) is not None:
            yield from configurations(getattr(config, name))


def implement(model: nn.Module, implementation: str) -> None:
    """Says by which implementation of experts a model runs."""
    for config in configurations(model.config) if implementation else ():
        config._experts_implementation = implementation


def one(example: zoo_models.Example, implementation: str, load: bool) -> dict[str, Any]:
    """Returns what became of a mixture with one implementation."""
    model, inputs = copy.deepcopy(example.model), example.inputs
    implement(model, implementation)
    began = time.process_time()
    graph = pk.Graph.of(model, inputs)
    mixture = Mixture(
        model,
        inputs,
        graph,
        without_gradients(lambda: output_tensors(zoo_worker.call(copy.deepcopy(model), copy.deepcopy(inputs)))),
    )
    groups = mixture.groups()
    found: dict[str, Any] = {"groups": groups, "analysis_s": round(time.process_time() - began, 2)}
    pinned = graph.report().pinned
    found["pins"] = {name: pinned[f"{name}[0]"] for name in routers_in(model) if f"{name}[0]" in pinned}
    if not groups:
        return found
    found["uniform"], small, plan = mixture.tried(uneven=False)
    if load and small is not None and plan is not None:
        found["stock"] = guarded(lambda: mixture.loaded(small, plan))
    if len(groups) > 1:
        found["uneven"] = mixture.tried(uneven=True)[0]
    return found


def guarded(measured: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Runs a measurement; an error is a result, too."""
    try:
        return measured()
    except Exception as error:
        traceback.print_exc()
        return {"verdict": "crash", "why": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def measure(name: str) -> None:
    """Prints what is known about one model as JSON lines."""
    torch.manual_seed(0)
    zoo_worker.tell(ran=False)
    model, inputs, _ = model_types.build(name, experts=True)
    example = zoo_models.awake(zoo_models.Example(model, inputs))
    zoo_worker.tell(ran=True, routers=len(routers_in(model)), params=sum(p.numel() for p in model.parameters()))
    results: dict[str, Any] = {}
    for place, implementation in enumerate(mixtures.implementations(name)):
        results[implementation or "own"] = guarded(lambda i=implementation, p=place: one(example, i, p == 0))  # type: ignore[misc]
        zoo_worker.tell(implementations=results)


def work(family: str, name: str, threads: int) -> None:
    """Measures one model; an error is a result, too."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    try:
        measure(name)
    except Exception as error:
        traceback.print_exc()
        zoo_worker.tell(failed=f"{type(error).__name__}: {' '.join(str(error).split())[:400]}")
