"""Op rules: what is known about an operation, as one value, and the table that finds it.

The core holds no rule: they come from plugins (hook ``prunekit_op_rules``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import attrs
import torch

from prunekit_core.errors import ArgumentError
from prunekit_core.program.linear_forms import Addition, Centring, Reading
from prunekit_core.program.op_call import OpCall, Outputs
from prunekit_core.program.scaling import Scaling
from prunekit_core.torch_private.operators import overload_of, packet_name

Ties = Callable[[OpCall], Outputs]
"""Ties the axes of an operation's tensors and returns those of its outputs. Raises `AxisMismatchError` where the
operation can't be understood; then the engine pins everything it touched, with that text as the reason."""
Likeness = Callable[[Mapping[str, Any]], "torch.Tensor | tuple[torch.Tensor | torch.dtype, Sequence[int]] | None"]
"""Tells from the named arguments of an operation which of them its only output is like: a tensor for shape, dtype and
memory format, a tensor (or a dtype) and a shape for a contiguous output of that dtype, None where the operation has to
be run."""
ZeroTest = Callable[[Any, int], bool]
"""Tells of an operation's operands (`prunekit_core.groups.zeros.Operands`) and a dim of its output whether the output
is zero where units along that dim were removed."""


class Elementwise:
    """The type of `ELEMENTWISE`."""


ELEMENTWISE = Elementwise()
"""Every element of the result is a function of the elements at its place: what it makes of zeros is tried out."""


def _names(given: str | Iterable[str]) -> tuple[str, ...]:
    """Argument names in one order; a single one stands for itself."""
    return (given,) if isinstance(given, str) else tuple(sorted(set(given)))


def _name_set(given: str | Iterable[str]) -> frozenset[str]:
    return frozenset(_names(given))


def _read_only(given: Mapping[str, str]) -> Mapping[str, str]:
    return MappingProxyType(dict(given)) if isinstance(given, Mapping) else given


def _wrong(field: attrs.Attribute[Any], value: object, wanted: str) -> ArgumentError:
    return ArgumentError(
        "An op rule has a wrong value.", where=field.name, why=f"it must be {wanted}, and is {value!r}"
    )


def _check_function(rule: OpRule, field: attrs.Attribute[Any], value: object) -> None:
    if not callable(value):
        raise _wrong(field, value, "a function")


def _check_zeros(rule: OpRule, field: attrs.Attribute[Any], value: object) -> None:
    if isinstance(value, type) or not (callable(value) or isinstance(value, Elementwise)):
        raise _wrong(field, value, "ELEMENTWISE or a function")


def _is_a(kind: type) -> Callable[[OpRule, attrs.Attribute[Any], object], None]:
    def check(rule: OpRule, field: attrs.Attribute[Any], value: object) -> None:
        if not isinstance(value, kind):
            raise _wrong(field, value, f"of type {kind.__name__}")

    return check


def _check_names(rule: OpRule, field: attrs.Attribute[Any], value: Iterable[str]) -> None:
    if not all(_is_name(name) for name in value):
        raise _wrong(field, value, "names of arguments")


def _check_factors(rule: OpRule, field: attrs.Attribute[Any], value: Sequence[str]) -> None:
    _check_names(rule, field, value)
    if value and rule.scaling is None:
        raise _wrong(field, value, "empty where scaling isn't said")


def _check_sizes(rule: OpRule, field: attrs.Attribute[Any], value: object) -> None:
    holds = isinstance(value, Mapping) and all(_is_name(name) and _is_text(why) for name, why in value.items())
    if not holds:
        raise _wrong(field, value, "a mapping of names of arguments to reasons")


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value.isidentifier()


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


_if_given = attrs.validators.optional


@attrs.frozen(eq=False)
class OpRule:
    """What is known about an operation: how it ties axes, and what else follows from its mathematics.

    What is left out isn't known, and nothing is concluded from it: the operation runs to tell its output's shape,
    constants aren't made up for across it, its result isn't taken for zero.

    Attributes:
        ties: Function of one `OpCall`. It ties the axes of the tensors and returns those of the outputs: one list of
            axes, or one such list per output (outputs that aren't in the list are new and pinned). None is for
            operations without outputs.
        like: From the named arguments, the shape, dtype and memory format of the only output, so that the operation
            needn't be run on tensors without data while it is recorded. See `Likeness`.
        scaling: How the result follows when operands are multiplied by a positive factor.
        factors: Arguments that the result, or what ``scaling`` says of it, is proportional to where they are plain
            numbers (for `Scaling.QUOTIENT`: inversely proportional).
        zeros: Where the result is zero: `ELEMENTWISE`, or a function of the `Operands` and a dim of the output.
            Without it ``scaling`` tells: what only moves elements or adds them up keeps zeros, nothing else is zero.
        reads: How the operation is ``y = W x + b`` with a parameter ``W``, for statistics of ``x`` and fits of ``W``.
        centres: Which running mean the operation subtracts.
        adds: Which two tensors the operation adds.
        numbers: Integer arguments whose values are ordinary numbers of units, such as a zero point, which lies along
            channels as a bias does. Values of other integer parameters and buffers are taken for positions, so those
            are pinned.
        positions: Arguments whose values the rule follows where they are positions along an axis that the program
            chooses from (`OpCall.domain`). Where any other argument holds such positions, that axis is pinned.
        sizes: Arguments that say nothing but the shape of an output, each with the reason why. When a smaller program
            is compared with the recorded one, every argument has to be the same but for what `OpCall.expect` states
            and for these: the shapes of outputs are compared anyway.

    Raises:
        ArgumentError: A value is of the wrong type.
    """

    ties: Ties = attrs.field(validator=_check_function)
    like: Likeness | None = attrs.field(default=None, validator=_if_given(_check_function))
    scaling: Scaling | None = attrs.field(default=None, validator=_if_given(_is_a(Scaling)))
    factors: tuple[str, ...] = attrs.field(default=(), converter=_names, validator=_check_factors)
    zeros: ZeroTest | Elementwise | None = attrs.field(default=None, validator=_if_given(_check_zeros))
    reads: Reading | None = attrs.field(default=None, validator=_if_given(_is_a(Reading)))
    centres: Centring | None = attrs.field(default=None, validator=_if_given(_is_a(Centring)))
    adds: Addition | None = attrs.field(default=None, validator=_if_given(_is_a(Addition)))
    numbers: frozenset[str] = attrs.field(default=frozenset(), converter=_name_set, validator=_check_names)
    positions: frozenset[str] = attrs.field(default=frozenset(), converter=_name_set, validator=_check_names)
    sizes: Mapping[str, str] = attrs.field(factory=dict, converter=_read_only, validator=_check_sizes)


Rule = OpRule | Ties
"""What stands for a rule: an `OpRule`, or a function that ties axes, of which nothing else is known."""


def as_rule(given: Rule) -> OpRule:
    """Returns the rule that a value stands for: a bare function is its ``ties``."""
    return given if isinstance(given, OpRule) else OpRule(given)


@attrs.frozen(eq=False)
class ModuleOp:
    """The operation that stands for a module which isn't looked into; it brings its rule.

    Its arguments are those of the module's forward, by name, and the module's own parameters and buffers, by dotted
    name.

    Attributes:
        name: ``"opaque::"`` and the dotted name of the class that was declared opaque.
        rule: Ties the axes of the arguments.
        run: Runs the module on real arguments, with sizes in its attributes ((dotted path, attribute) to value) set
            for this run only.
    """

    name: str
    rule: OpRule
    run: Callable[[Mapping[str, Any], Mapping[tuple[str, str], Any]], Any]

    def __call__(self, **arguments: Any) -> Any:
        """Runs the module as it is."""
        return self.run(arguments, {})


class RuleTable:
    """Finds the rule of an operation: by name before by tag; of the higher rank; by the more specific name.

    From specific to general the names are: the exact overload, the name without one, the ordinary operation's for an
    in-place one.

    Args:
        rules: Key to rule. A key is a qualified name (``"aten::add.Tensor"`` or ``"aten::add"``) or a ``torch.Tag``.
        ranks: Key to rank; without one, 0.
    """

    def __init__(
        self, rules: Mapping[str | torch.Tag, Rule], ranks: Mapping[str | torch.Tag, int] | None = None
    ) -> None:
        self._rules = {key: as_rule(rule) for key, rule in rules.items()}
        self._ranks = dict(ranks or {})
        self._cache: dict[Any, OpRule | None] = {}

    def find(self, op: Any) -> OpRule | None:
        """Returns the rule for a ``torch._ops.OpOverload`` or a `ModuleOp`, or None."""
        if isinstance(op, ModuleOp):
            return op.rule
        if op not in self._cache:
            key = self.key(op)
            self._cache[op] = None if key is None else self._rules[key]
        return self._cache[op]

    def has(self, op: Any) -> bool:
        """Tells whether an operation has a rule."""
        return self.find(op) is not None

    def key(self, op: Any) -> str | torch.Tag | None:
        """Returns the key under which the rule of an operation was found."""
        keys = self.keys(op)
        return keys[0] if keys else None

    def keys(self, op: Any) -> list[str | torch.Tag]:
        """Lists the keys under which an operation has rules; the first one's is used."""
        known = [key for key in rule_keys(op) if key in self._rules]
        if len(known) > 1:  # sorting is stable: of equal rank, the more specific name stays first
            known.sort(key=lambda key: (isinstance(key, torch.Tag), -self._ranks.get(key, 0)))
        return known


def scaling_of(rules: RuleTable, op: Any) -> Scaling | None:
    """Returns how the result of an operation scales; None where its rule says nothing of it, or it has none."""
    rule = rules.find(op)
    return None if rule is None else rule.scaling


def addition_of(rules: RuleTable, op: Any) -> Addition | None:
    """Returns how an operation adds two tensors; None where its rule says nothing of it, or it has none."""
    rule = rules.find(op)
    return None if rule is None else rule.adds


def rule_keys(op: Any) -> list[str | torch.Tag]:
    """Lists the keys that may name an operation, most specific first."""
    if isinstance(op, ModuleOp):
        return [op.name]
    packet = packet_name(op)
    keys: list[str | torch.Tag] = [f"{packet}.{overload_of(op)}", packet]
    if packet.endswith("_") and not packet.endswith("__"):
        keys.append(packet[:-1])
    return [*keys, *sorted(op.tags, key=lambda tag: tag.name)]
