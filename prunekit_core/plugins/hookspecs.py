"""The hooks of prunekit. Every hook takes no arguments, is called once per registry, and returns a mapping.

A plugin is a module (or object) named by an entry point of group ``prunekit``; it marks its implementations with
``prunekit.plugin.hookimpl``. Third-party plugins take precedence over built-in ones. A key that two third-party plugins
claim is an error for whoever asks for it. A hook that returns an empty mapping registers nothing. Hooks must not touch
models, print, or change global state.

A third-party plugin that can't be loaded, or with anything wrong in its hooks, contributes nothing; all others are
loaded.

The docstrings are the contract, in a fixed order; the page of hooks is made from them with
``python -m tests.docs.hook_pages``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:  # so that a plugin that brings no more than commands needs no torch to be looked at
    import torch

    from prunekit_core.plugins.layers import LayerType, Replacement
    from prunekit_core.program.rules import Rule

HOOKS = (
    "prunekit_op_rules",
    "prunekit_layer_types",
    "prunekit_importance",
    "prunekit_regularizers",
    "prunekit_schedules",
    "prunekit_pruners",
    "prunekit_budgets",
    "prunekit_compensators",
    "prunekit_replacements",
    "prunekit_allocators",
    "prunekit_weights",
    "prunekit_commands",
    "prunekit_serving_profiles",
    "prunekit_checks",
    "prunekit_settings",
)
INTERFACE = 1
"""Version of the plugin interface: it grows by one with every release in which plugins can do more than before."""
INTERFACE_NAME = "prunekit_interface"
"""The attribute with which a plugin declares the version of the interface that it needs; without it, the first one."""
DEPRECATED: dict[str, str] = {}
"""Hooks that a later release removes: what to implement instead, and in which release they go."""

hookspec = pluggy.HookspecMarker("prunekit")
hookimpl = pluggy.HookimplMarker("prunekit")


@hookspec
def prunekit_op_rules() -> Mapping[str | torch.Tag, Rule]:  # type: ignore[empty-body]
    """Rules for operations.

    Called:
        Once for each registry, when it is made.

    Returns:
        Operation to `Rule`. The key is a qualified name with overload (``"aten::add.Tensor"``), one without
        (``"aten::add"``, for all overloads), or a ``torch.Tag``. A rule is an `OpRule`, or its ``ties`` alone: a
        function of one `OpCall` that ties the axes of the arguments and returns those of the outputs.

    Empty:
        An operation that no rule knows is taken apart into those it is made of, or else pinned and reported.

    Precedence:
        Names win over tags. Among the names of an operation the plugin of the higher rank wins, whichever of them it
        uses; among those of one rank, the exact overload wins over the name without one, and that, for an in-place
        operation (``add_``), over the ordinary operation's. Among tags, the plugin of the higher rank wins. So
        ``"aten::add"`` of a third party replaces every built-in rule for an overload of it, and its rule for
        ``torch.Tag.pointwise`` replaces none that names an operation.

    Forbidden:
        A rule must not keep state from one call to the next, run the operation, or look at values.
    """


@hookspec
def prunekit_layer_types() -> Mapping[type[torch.nn.Module] | str, LayerType]:  # type: ignore[empty-body]
    """What classes of layers are, and how they are pruned.

    Called:
        Once for each registry, when it is made.

    Returns:
        Module class, or its dotted name where importing it would be costly, to `LayerType`. A layer type names the
        attributes that state sizes, the functions that prune the layer alone, how its channels are numbered, and, for
        layers that can't be looked into, their axes and shapes (`Opaque`).

    Empty:
        A layer without a type is traced through; its attributes are found by rehearsal. It can't be named as the
        start of a group.

    Precedence:
        The most specific class of a module wins. Of the same class, the plugin of the higher rank, whether it names
        the class by itself or by its dotted name, which are one key.

    Forbidden:
        ``attributes`` must not change the module, and for the present shapes it gives what the layer holds. A pruning
        function changes the layer it is given and nothing else.
    """


@hookspec
def prunekit_importance() -> Mapping[str, Callable[..., Any]]:  # type: ignore[empty-body]
    """Importance criteria: which units and branches leave first.

    Called:
        Once for each registry, when it is made.

    Returns:
        Name to a class (or function) that makes a criterion. It is called without arguments when the criterion is
        asked for by name, and with those that a project's configuration states. A criterion is called with a group
        and returns one score for each selected unit, ``[units]``, the highest staying longest; or None where it has
        nothing to say about the group. One that scores branches has a method ``branch`` that is called with a
        `BranchGroup` and returns one number, None, or what gathers a number from calibration data.

    Empty:
        The names of the others remain.

    Precedence:
        Of the same name, the plugin of the higher rank.

    Forbidden:
        A criterion must not change the model: a write by an operation of PyTorch is stopped, one past PyTorch (through
        ``tensor.numpy()``) isn't seen when pruning, only by `check_criterion`. Scores must be real and finite, on any
        device that has values (integers are taken for numbers), and follow the units, not their order.
    """


@hookspec
def prunekit_regularizers() -> Mapping[str, Callable[..., Any]]:  # type: ignore[empty-body]
    """Regularizers for sparse training.

    Called:
        Once for each registry, when it is made.

    Returns:
        Name to a class (or function) that makes a regularizer: ``make(groups, **options)``, where ``groups()`` lists
        the groups as they are now, such as ``graph.get_all_groups``. A regularizer has ``regularize()``, which is
        called between ``loss.backward()`` and ``optimizer.step()`` and adds to the gradients, and ``refresh()``,
        which is called after units were removed.

    Empty:
        The names of the others remain.

    Precedence:
        Of the same name, the plugin of the higher rank.

    Forbidden:
        ``regularize()`` must not change weights, modes or ``requires_grad``.
    """


@hookspec
def prunekit_schedules() -> Mapping[str, Callable[[float, int], list[float]]]:  # type: ignore[empty-body]
    """Schedules of pruning in steps.

    Called:
        Once for each registry, when it is made.

    Returns:
        Name to a function ``(ratio, steps) -> [0, ..., ratio]`` of ``steps + 1`` ascending cumulative ratios.

    Empty:
        The names of the others remain.

    Precedence:
        Of the same name, the plugin of the higher rank.

    Forbidden:
        A schedule must not depend on anything but its two arguments.
    """


@hookspec
def prunekit_pruners() -> Mapping[str, type[Any]]:  # type: ignore[empty-body]
    """Pruner classes.

    Called:
        Once for each registry, when it is made.

    Returns:
        Name to a class with the interface of `BasePruner`.

    Empty:
        The names of the others remain.

    Precedence:
        Of the same name, the plugin of the higher rank.

    Forbidden:
        A pruner must not touch the model before ``step`` is called.
    """


@hookspec
def prunekit_budgets() -> Mapping[str, Callable[..., float]]:  # type: ignore[empty-body]
    """Cost models: what a target may be stated in.

    Called:
        Once for each registry, when it is made.

    Returns:
        Name to a function ``(analysis, kept) -> float``: the cost of the model when only the kept units stay (how many,
        not which); or to a `CostModel`, which does the work that all candidates of a search share once.

    Empty:
        The names of the others remain.

    Precedence:
        Of the same name, the plugin of the higher rank.

    Forbidden:
        A cost must be a finite number from 0. It must not grow when units go, and must not run or change the model
        while a target is searched for.
    """


@hookspec
def prunekit_compensators() -> Mapping[str, Callable[..., Any]]:  # type: ignore[empty-body]
    """Compensators, which repair a model after the cut.

    Called:
        Once for each registry, when it is made.

    Returns:
        Name to a class (or function) that makes a compensator without arguments: a callable that takes a `Repair` and
        returns nothing.

    Empty:
        The names of the others remain.

    Precedence:
        Of the same name, the plugin of the higher rank.

    Forbidden:
        A compensator must change nothing but through the `Repair`: shapes stay, and so does the model itself. What it
        makes worse on the calibration data than the cut alone is undone.
    """


@hookspec
def prunekit_replacements() -> Mapping[str, Replacement]:  # type: ignore[empty-body]
    """Prunable equivalents for modules that can't hold a smaller shape.

    Called:
        Once for each registry, when it is made.

    Returns:
        Name to `Replacement`, for modules of exactly one class. The name is stored in plans. Its function may return
        None for a module that it can't convert, which then stays as it is, with a note in the report.

    Empty:
        Modules stay what they are.

    Precedence:
        Of the same name, and of several names for the same class, the plugin of the higher rank. Of several
        replacements that one plugin registers for one class, the first.

    Forbidden:
        A replacement must compute the same numbers around the same parameter objects; it is compared with the module on
        the example inputs. Its name must never change.
    """


@hookspec
def prunekit_allocators() -> Mapping[str, Callable[[Any], Any]]:  # type: ignore[empty-body]
    """Allocators: how a budget is shared out among the groups.

    Called:
        Once for each registry, when it is made.

    Returns:
        Name to a function ``(Problem) -> picked options``: of every choice of the problem, the number of the option
        that is taken. It is what ``allocation="name"`` stands for.

    Empty:
        The names of the others remain.

    Precedence:
        Of the same name, the plugin of the higher rank.

    Forbidden:
        What is picked must meet the budget; the largest option of a choice need not be free. An allocator must not
        run or change the model.
    """


@hookspec
def prunekit_weights() -> Mapping[str, Callable[..., Any]]:  # type: ignore[empty-body]
    """Forms of weights on disk, from which models on the meta device are scored.

    Called:
        Once for each registry, when it is made.

    Returns:
        Suffix of file names, without the dot, to a function ``(path, model)`` that opens the weights of the unpruned
        model. What it returns answers for dotted names of parameters and buffers: ``name in weights``;
        ``weights.dtype(name)``; ``weights.names(name)``, those that the tensor has there; and
        ``weights.read(name, plan)``, its values after a plan's cuts, on the CPU, in memory of their own.

    Empty:
        Only the forms of the others can be read.

    Precedence:
        Of the same suffix, the plugin of the higher rank. A path without a registered suffix, such as a folder, is
        opened by ``"safetensors"``.

    Forbidden:
        Nothing in a file may be executed. The model must not be changed.
    """


@hookspec
def prunekit_commands() -> Mapping[str, Callable[..., Any]]:  # type: ignore[empty-body]
    """Subcommands of the command line.

    Called:
        Once for each registry, when it is made.

    Returns:
        Name to a function with typer annotations; its docstring is the help text.

    Empty:
        The commands of the others remain.

    Precedence:
        Of the same name, the plugin of the higher rank.

    Forbidden:
        A command must not end the program: an `ArgumentError` ends it with exit code 2, any other `PrunekitError`
        with 1.
    """


@hookspec
def prunekit_serving_profiles() -> Mapping[str, Callable[..., Any]]:  # type: ignore[empty-body]
    """Engines that serve models: what each asks of a pruned one.

    Called:
        Once for each registry, when it is made.

    Returns:
        Name to a function ``(model, example_inputs, registry) -> ServingProfile``, or to a `ServingEngine`, which has
        the version of the engine and a load test besides. It is what ``serve="name"`` stands for.

    Empty:
        The names of the others remain.

    Precedence:
        Of the same name, the plugin of the higher rank.

    Forbidden:
        A profile must not change the model. A load test must leave nothing behind, and download nothing.
    """


@hookspec
def prunekit_checks() -> Mapping[tuple[str, Any], Callable[..., None]]:  # type: ignore[empty-body]
    """How what a plugin brings is proven, where the kit can't do it without more to go by.

    Called:
        Once for each registry, when it is made.

    Returns:
        Hook and key of something that the plugin registers, ``("prunekit_layer_types", GatedLinear)``, to a function of
        a registry. It calls a check of ``prunekit.testing`` with what the check needs (a layer and its inputs, the
        tensors of an operation, a model, options) and raises what the check raises. ``prunekit plugins NAME --check``
        and ``check_plugin`` call it instead of the check that they would make by themselves.

    Empty:
        Criteria, regularizers, schedules, pruners, cost models, compensators, allocators, serving profiles and
        commands are checked as they are. Rules, layer types, replacements and forms of weights aren't checked, which
        is reported.

    Precedence:
        Of the same hook and key, the plugin of the higher rank.

    Forbidden:
        ``prunekit.testing`` must not be imported before a check is called.
    """


@hookspec
def prunekit_settings() -> Mapping[str, type[Any]]:  # type: ignore[empty-body]
    """Settings of the plugin, which a project sets in a table of its own.

    Called:
        Once for each registry, when it is made.

    Returns:
        Name of the table, as in ``[tool.prunekit.plugin.NAME]``, to an attrs class or a dataclass whose fields are the
        settings, all with defaults. The host compares the table with the names and types of the fields (a list may
        stand for a tuple) and makes one object of the class; whatever the class raises for them is told with the file.
        The plugin's criteria, compensators, regularizers, schedules, allocators and costs get that object as the
        keyword-only argument ``settings``, where they have one, and everybody by ``registry.settings(NAME)``.

    Empty:
        The plugin has no settings, and a table for it is an error.

    Precedence:
        Of the same name, the plugin of the higher rank. Of a plugin with several tables, what it registers under the
        name of one gets that one, and everything else the first.

    Forbidden:
        A class of settings must not read files or the environment, and must be made without arguments.
    """
