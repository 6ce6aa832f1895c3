"""Watching a model read: what every consumer is given and returns while a batch runs.

The forward runs on a real shadow of the model, which shares its parameters' storage, in eval mode: the model isn't
touched, and every use of a parameter is seen, whether a module is called or a function.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

import attrs
import torch
from torch import nn

from prunekit_core.errors import ArgumentError, CheckpointError, PlanError
from prunekit_core.modules.surgery import tensor_at
from prunekit_core.modules.tree import modules_in, named_tensors
from prunekit_core.plugins.registry import Registry
from prunekit_core.program.linear_forms import Reading, Site, find_site
from prunekit_core.record.listener import Listener
from prunekit_core.record.programs import swap_modules
from prunekit_core.record.shadow import Shadow
from prunekit_core.record.valueless import Valueless, device_for
from prunekit_plugins.calibration.batches import Batch
from prunekit_plugins.calibration.residual_adds import ResidualAdd, ResidualAdds

Loss = Callable[[Any, Any], torch.Tensor]
"""``loss(outputs, batch)`` returns a scalar, the mean over the examples of the batch."""
CHUNK = 1 << 23
"""Elements of columns that are made at a time."""


@attrs.frozen
class Run:
    """A parameter of one dim, or a run of it: a bias may be a part of a packed one.

    Attributes:
        parameter: Canonical dotted name.
        start: The first of its positions.
        stop: The one after the last; None for all that there are.
    """

    parameter: str
    start: int = 0
    stop: int | None = None

    @property
    def rows(self) -> slice:
        """Its positions."""
        return slice(self.start, self.stop)


@attrs.frozen(eq=False)
class Seen:
    """One consumer at work.

    Attributes:
        order: Its number among the consumers of this forward.
        site: What it multiplies by.
        bias: The parameter, or the run of one, that it adds; None where there is none, or it is no parameter.
        module: Dotted path of the innermost module that was running.
        reading: How it reads.
        arguments: Its arguments.
        output: What it returned.
        batch: The batch that runs.
    """

    order: int
    site: Site
    bias: Run | None
    module: str
    reading: Reading
    arguments: Mapping[str, Any]
    output: torch.Tensor
    batch: Batch

    @property
    def channel_dim(self) -> int:
        """The dim of the output that its channels lie along."""
        kernel = 0 if self.reading.channels_last else self.arguments[self.reading.weight].dim() - 2
        return self.output.dim() - 1 - kernel

    @property
    def samples(self) -> int:
        """Number of vectors of channels that it put out."""
        return self.output.numel() // self.output.shape[self.channel_dim]

    def chunks(self, targets: torch.Tensor | None = None) -> Iterator[Chunk]:
        """Yields the samples that count, some at a time.

        Args:
            targets: Tensor of the shape of the output that is read as targets in the same order; None for no targets.
        """
        source = self.arguments[self.reading.source]
        weight = self.arguments[self.reading.weight]
        batched = source.dim() > (1 if self.reading.channels_last else weight.dim() - 1)
        if not batched:
            source, targets = source[None], None if targets is None else targets[None]
        wider = 1
        for size in weight.shape[2:]:
            wider *= size
        step = max(1, CHUNK * len(source) // max(1, source.numel() * wider))
        counted = self.batch.counted(tuple(source.shape[:-1])) if self.reading.channels_last else None
        for start in range(0, len(source), step):
            part = source[start : start + step]
            features = self.reading.features(part, self.arguments)
            places = torch.arange(start, start + len(part), device="cpu")
            places = places.repeat_interleave(features.shape[1] // len(part))
            wanted = None
            if targets is not None:
                wanted = self.reading.outputs(targets[start : start + step], self.arguments)
            if counted is not None:
                keep = counted[start : start + step].flatten().to(features.device)
                features = features[:, keep]
                wanted = None if wanted is None else wanted[:, keep]
                places = places[keep.cpu()]
            yield Chunk(features, wanted, places * self.batch.size // len(source))


@attrs.frozen(eq=False)
class Chunk:
    """Some samples of what a consumer read.

    Attributes:
        features: Tensor ``[groups, samples, features]``.
        targets: Tensor ``[groups, samples, outputs]``, or None.
        examples: Tensor ``[samples]``: which example of the batch each comes from, as far as that can be told.
    """

    features: torch.Tensor
    targets: torch.Tensor | None
    examples: torch.Tensor


class Enough(Exception):  # noqa: N818  # no error: it ends a forward whose rest isn't needed
    """Raised by whoever watches to end the forward."""


_Value = TypeVar("_Value")
Look = Callable[[Seen], None]
Total = Callable[[ResidualAdd], None]


class WatchingListener(Listener):
    """The listener that recognises consumers.

    Args:
        watched: The model that runs.
        batch: The batch that runs.
        look: Called with every consumer once it ran.
        summed: Numbers of consumers whose sums are shown as well.
        total: Called with each of those sums.
        every: Whether all consumers are shown, whichever of them are watched.
    """

    def __init__(
        self,
        watched: Watched,
        batch: Batch,
        look: Look,
        summed: Collection[int] = (),
        total: Total | None = None,
        *,
        every: bool = False,
    ) -> None:
        shadow, rules = watched.shadow, watched.rules
        self.rules, self.look = rules, look
        self._watched = None if every else watched.consumers
        self._summed, self._total, self._sums = summed, total, ResidualAdds(rules) if summed else None
        self.parameters: dict[str, torch.Tensor] = {}
        self._real: dict[str, torch.Tensor] = {}
        self._shadow, self._valueless, self._batch = shadow, shadow.valueless, batch
        self._order = 0
        self._casts: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # by identity: with the parameter of that dtype

    @property
    def casting(self) -> bool:
        """Whether a parameter was cast in this forward."""
        return bool(self._casts)

    def go_on(self, consumers: int) -> None:
        """Takes up a forward in which some consumers ran before; call it after `start`."""
        self._order = consumers

    def start(self, tensors: Mapping[str, torch.Tensor], inputs: Any) -> None:
        """Notes the parameters."""
        self._casts = {}
        self.parameters = {name: t for name, t in tensors.items() if isinstance(t, nn.Parameter)}
        self._real = {
            n: t for n, t in self.parameters.items() if self._valueless is None or not self._valueless.holds(t)
        }

    def operation(self, op: Any, module: str, arguments: Mapping[str, Any], outputs: Any) -> None:
        """Shows a consumer, or a sum, to whoever watches."""
        for found in self._sums.operation(op, arguments, outputs) if self._sums is not None else ():
            if self._total is not None:
                self._total(found)
        seen = self.consumer(op, module, arguments, outputs)
        if seen is None:
            self.note_cast(arguments, outputs)
            return
        if self._sums is not None:
            self._sums.consumer(seen.order, seen.output, follow=seen.order in self._summed)
        self.look(seen)

    def consumer(self, op: Any, module: str, arguments: Mapping[str, Any], outputs: Any) -> Seen | None:
        """Recognises an operation that multiplies what it reads by (a part of) a parameter; None for others."""
        rule = self.rules.find(op)
        reading = None if rule is None else rule.reads
        if reading is None:
            return None
        weight, source = arguments[reading.weight], arguments[reading.source]
        if not isinstance(weight, torch.Tensor) or weight.dim() < 2 or source.dtype != weight.dtype:
            return None
        weight = self._before_cast(weight)
        names, groups = self._shadow.names, reading.groups(arguments)
        site = find_site(weight, names, self._behind(weight), reading, groups) if groups else None
        if site is None or site.parameter not in self.parameters:
            return None
        if self._watched is not None and site.parameter not in self._watched:
            return None
        bias = self._before_cast(arguments.get(reading.bias) if reading.bias else None)
        named = names.get(id(bias), "")
        known = Run(named) if named in self.parameters else None
        if known is None and isinstance(bias, torch.Tensor):
            known = find_run(bias, self._behind(bias))
        order, self._order = self._order, self._order + 1
        return Seen(order, site, known, module, reading, arguments, outputs, self._batch)

    def note_cast(self, arguments: Mapping[str, Any], outputs: Any) -> bool:
        """Notes what a parameter, or a view of one, becomes in another dtype, as under autocast.

        Returns:
            Whether the operation is such a cast.
        """
        tensors = [value for value in arguments.values() if isinstance(value, torch.Tensor)]
        if len(tensors) != 1 or not isinstance(outputs, torch.Tensor) or not outputs.is_floating_point():
            return False
        (source,) = tensors
        if not source.is_floating_point() or source.dtype == outputs.dtype or source.shape != outputs.shape:
            return False
        stored = {one.untyped_storage().data_ptr() for one in self._behind(source).values()}
        if id(source) not in self._shadow.names and source.untyped_storage().data_ptr() not in stored:
            return False
        self._casts[id(outputs)] = (outputs, source)
        return True

    def _before_cast(self, tensor: _Value) -> _Value | torch.Tensor:
        return self._casts[id(tensor)][1] if id(tensor) in self._casts else tensor

    def _behind(self, tensor: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """The parameters that a tensor may be a view of."""
        return (self._valueless.behind(tensor) if self._valueless is not None else None) or self._real


def find_run(bias: torch.Tensor, parameters: Mapping[str, torch.Tensor]) -> Run | None:
    """Finds the parameter that a bias is a run of; None where it is of none."""
    store = bias.untyped_storage().data_ptr()
    for name, parameter in parameters.items():
        if parameter.dim() == 1 and bias.dim() == 1 and parameter.untyped_storage().data_ptr() == store:
            start = int(bias.storage_offset()) - int(parameter.storage_offset())
            if bias.stride() == parameter.stride() and 0 <= start <= len(parameter) - len(bias):
                return Run(name, start, start + len(bias))
    return None


class Values(Protocol):
    """Where values of parameters and buffers come from."""

    def __contains__(self, name: str) -> bool:
        """Tells whether the values of a tensor are there, by its canonical name."""

    def read(self, name: str) -> torch.Tensor:
        """Reads them: a tensor of its own memory."""


class Watched:
    """A model whose consumers can be watched.

    Args:
        model: The model; it is not touched. What is done to its parameters in place later is seen; a cut isn't.
        registry: Where rules and replacements are found.
        values: Where the values of tensors on the meta device come from, one at a time; None where there are none.
        consumers: Names of the parameters whose consumers are shown and numbered; None for all.

    Attributes:
        consumers: See the argument; it may be set later.
        shadow: The shadow that runs.
        rules: The op rules.
        device: Where batches belong; None where the model lies on several devices.

    Raises:
        ArgumentError: The model is on the meta device, and nobody said where its values are.
        CheckpointError: They lack something that is on the meta device.
    """

    def __init__(
        self,
        model: nn.Module,
        registry: Registry,
        values: Values | None = None,
        consumers: Collection[str] | None = None,
    ) -> None:
        _check_values(model, values)
        self.consumers = consumers
        devices = {device_for(model) if tensor.is_meta else tensor.device for tensor in model.parameters()}
        self.device = devices.pop() if len(devices) == 1 else None
        self.rules = registry.op_rules
        valueless = None if values is None else Valueless(values.read, device_for(model))
        self.shadow = Shadow(model, fake=False, valueless=valueless)
        swap_modules(self.shadow.module, registry)
        self.shadow.watch(registry.opaque)

    def values(self, name: str) -> torch.Tensor:
        """Returns the values of a parameter or buffer by its canonical name, detached."""
        tensor, valueless = tensor_at(self.shadow.module, name), self.shadow.valueless
        return valueless.read(name, tensor) if valueless is not None and valueless.holds(tensor) else tensor.detach()

    def stored_name(self, tensor: torch.Tensor) -> str | None:
        """Returns the canonical name of a tensor whose values lie elsewhere than in memory; None for any other one.

        Args:
            tensor: A tensor without values, or the values that an operation was given for it.
        """
        name, valueless = self.shadow.names.get(id(tensor)), self.shadow.valueless
        if name is None or valueless is None or not valueless.holds(tensor_at(self.shadow.module, name)):
            return None
        return name

    def loaded(self, names: Iterable[str]) -> contextlib.AbstractContextManager[Mapping[str, torch.Tensor]]:
        """Reads values that lie elsewhere than in memory for an operation, which is seen to use them.

        Args:
            names: Canonical names of the tensors.
        """
        valueless = self.shadow.valueless
        if valueless is None:  # asked once per operation: nothing here may take as long as there are layers
            return contextlib.nullcontext({})
        wanted = {name: tensor_at(self.shadow.module, name) for name in names}
        return valueless.loaded(wanted, self.shadow.names) if wanted else contextlib.nullcontext({})

    def parameters(self) -> dict[str, nn.Parameter]:
        """Returns the shadow's parameters of real numbers, by canonical name."""
        tensors = self.shadow.tensors().items()
        return {name: t for name, t in tensors if isinstance(t, nn.Parameter) and t.is_floating_point()}

    @contextlib.contextmanager
    def differentiable(self, parameters: Iterable[torch.Tensor]) -> Iterator[nn.Module]:
        """Gives the shadow in eval mode, with gradients by some of its parameters; puts it back afterwards."""
        chosen = list(parameters)
        try:
            for tensor in chosen:
                tensor.requires_grad_(True)
            yield self.shadow.module.train(False)
        finally:
            for tensor in chosen:
                tensor.requires_grad_(False)
            self.shadow.reset()

    def run(self, batch: Batch, look: Look, summed: Collection[int] = (), total: Total | None = None) -> Any:
        """Runs one batch in eval mode.

        Args:
            batch: The batch.
            look: Called with every consumer once it ran; may raise `Enough` to end the forward.
            summed: Numbers of consumers whose sums are shown as well.
            total: Called with each of those sums, after `look` was with the consumer; may raise `Enough`, too.

        Returns:
            The outputs of the model; None after `Enough`.

        Raises:
            ArgumentError: The forward raised on this batch; its exception is the cause.
        """
        return self.run_into(batch, WatchingListener(self, batch, look, summed, total))

    def run_into(self, batch: Batch, listener: Listener) -> Any:
        """Runs one batch in eval mode into a listener; see `run`."""
        try:
            return self.shadow.run(batch.example, listener, self.rules, training=False)
        except Enough:
            return None
        except PlanError:  # of a listener that compares two programs
            raise
        except Exception as error:
            raise ArgumentError(
                "The model's forward pass raised on a calibration batch.",
                where=batch.where,
                why=f"{type(error).__name__}: {str(error)[:400]}",
                hint="batches are model inputs; with targets in them, say which part is read: "
                "Batches(loader, inputs=lambda batch: batch[0])",
            ) from error


def scalar_loss(loss: Any, where: str) -> torch.Tensor:
    """Returns the value of a loss as a tensor without dims.

    Args:
        loss: What a function that computes a loss returned.
        where: The batch, for the message.

    Raises:
        ArgumentError: It is no tensor with one element, or has no gradients.
    """
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or not loss.requires_grad:
        raise ArgumentError(
            "The loss must be a scalar tensor that depends on the parameters.", where=where, why=f"{loss!r}"
        )
    return loss.reshape(())


def _check_values(model: nn.Module, values: Values | None) -> None:
    """Raises an error where something on the meta device has no values."""
    empty = [
        name for name, tensor in named_tensors(model).items() if tensor.is_meta and not (values and name in values)
    ]
    if values is None and any(isinstance(tensor_at(model, name), nn.Parameter) for name in empty):
        raise ArgumentError(
            "A model on the meta device has no values to run with.",
            where=empty[0],
            why="its weights are elsewhere: on disk, or with a library that loads them when a layer runs",
            hint="build the model on the meta device and name the checkpoint that holds them: weights=...",
        )
    attributes = [
        f"{path}.{key}" if path else key
        for path, module in modules_in(model).items()
        for key, value in vars(module).items()
        if isinstance(value, torch.Tensor) and value.is_meta
    ]
    if empty or attributes:
        raise CheckpointError(
            "The checkpoint lacks values that the model runs with.",
            where=", ".join([*empty, *attributes][:4]),
            why="they are on the meta device and in no file",
            hint="build the model so that they are real, for example under accelerate's init_empty_weights()",
        )
