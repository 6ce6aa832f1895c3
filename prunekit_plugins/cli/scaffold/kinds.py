"""What a new plugin may bring: for each kind its hook, what is registered, and how it is checked."""

from __future__ import annotations

import attrs


@attrs.frozen
class Kind:
    """A kind of thing that a plugin brings; ``$package`` stands for the name of its package.

    Attributes:
        name: As it is typed, and the name of its module and of its template.
        words: What it is, for the README.
        hook: The hook that it comes through.
        returns: What the hook returns, as an annotation.
        imports: Names that the plugin's module imports from the kind's module.
        entry: Its entry in the mapping that the hook returns, as source.
        key: Its key, as the kit writes it.
        check: The body of its check, as source; empty where the kit checks it as it is.
        checked: Names that the check imports from the kind's module.
    """

    name: str
    words: str
    hook: str
    returns: str
    imports: tuple[str, ...]
    entry: str
    key: str
    check: str = ""
    checked: tuple[str, ...] = ()


FACTORIES = "Mapping[str, Callable[..., Any]]"
KINDS = (
    Kind(
        "criterion",
        "a criterion",
        "prunekit_importance",
        FACTORIES,
        ("LargestRow",),
        '"${package}_largest_row": LargestRow',
        "${package}_largest_row",
    ),
    Kind(
        "calibrated",
        "a calibrated criterion",
        "prunekit_importance",
        FACTORIES,
        ("OutgoingEnergy",),
        '"${package}_outgoing_energy": OutgoingEnergy',
        "${package}_outgoing_energy",
    ),
    Kind(
        "layer",
        "a layer",
        "prunekit_layer_types",
        "Mapping[type[nn.Module], LayerType]",
        ("SCALED_LINEAR", "ScaledLinear"),
        "ScaledLinear: SCALED_LINEAR",
        "${package}.layer.ScaledLinear",
        "check_layer_type(ScaledLinear(5, 6), torch.randn(4, 5), registry=registry)",
        ("ScaledLinear",),
    ),
    Kind(
        "rule",
        "an operation",
        "prunekit_op_rules",
        "Mapping[str, Rule]",
        ("SWISH",),
        '"$package::swish": SWISH',
        "${package}::swish",
        "check_rule(lambda x: swish(x, 1.5), [sample(3, 4)], registry=registry)",
        ("swish",),
    ),
    Kind(
        "regularizer",
        "a regularizer",
        "prunekit_regularizers",
        FACTORIES,
        ("Shrink",),
        '"${package}_shrink": Shrink',
        "${package}_shrink",
    ),
    Kind(
        "schedule",
        "a schedule",
        "prunekit_schedules",
        "Mapping[str, Callable[[float, int], list[float]]]",
        ("quadratic",),
        '"${package}_quadratic": quadratic',
        "${package}_quadratic",
    ),
    Kind(
        "pruner",
        "a pruner",
        "prunekit_pruners",
        "Mapping[str, type[Any]]",
        ("EvenPruner",),
        '"${package}_even": EvenPruner',
        "${package}_even",
    ),
    Kind(
        "cost",
        "a cost model",
        "prunekit_budgets",
        "Mapping[str, Callable[..., float]]",
        ("int8_bytes",),
        '"${package}_int8_bytes": int8_bytes',
        "${package}_int8_bytes",
    ),
    Kind(
        "compensator",
        "a compensator",
        "prunekit_compensators",
        FACTORIES,
        ("Louder",),
        '"${package}_louder": Louder',
        "${package}_louder",
    ),
    Kind(
        "replacement",
        "a replacement",
        "prunekit_replacements",
        "Mapping[str, Replacement]",
        ("SCALE",),
        '"${package}_scale": SCALE',
        "${package}_scale",
        "check_replacement(SCALE, LabelledScale(6), torch.randn(4, 6), registry=registry)",
        ("SCALE", "LabelledScale"),
    ),
    Kind(
        "allocator",
        "an allocator",
        "prunekit_allocators",
        FACTORIES,
        ("widest_first",),
        '"${package}_widest_first": widest_first',
        "${package}_widest_first",
    ),
    Kind(
        "weights",
        "a form of weights on disk",
        "prunekit_weights",
        FACTORIES,
        ("StateDictFile",),
        '"$package": StateDictFile',
        "$package",
        'check_weights(StateDictFile, write, suffix="$package", registry=registry)',
        ("StateDictFile", "write"),
    ),
    Kind(
        "command",
        "a subcommand",
        "prunekit_commands",
        FACTORIES,
        (),
        '"$package": LazyCommand("$package.command", "groups", "Show how many units each group has.")',
        "$package",
    ),
    Kind(
        "engine",
        "a serving profile",
        "prunekit_serving_profiles",
        FACTORIES,
        ("ENGINE",),
        '"$package": ENGINE',
        "$package",
    ),
    Kind(
        "settings",
        "settings of a project",
        "prunekit_settings",
        "Mapping[str, type[Any]]",
        ("Settings",),
        '"$package": Settings',
        "$package",
    ),
)
BY_NAME = {kind.name: kind for kind in KINDS}
