"""Fields of a configuration that say how many layers there are, and what each of them is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from prunekit.plugin import Plan
from prunekit_plugins.integrations.config_search import Build, configs_in

Setting = tuple[tuple[str, ...], Any, Any]
"""Names of the configurations around a field and its own, its value before, and after."""


@attrs.frozen
class Depth:
    """What a configuration says of layers that are gone.

    Attributes:
        settings: Fields that change.
        notes: What no field says.
    """

    settings: tuple[Setting, ...] = ()
    notes: tuple[str, ...] = ()

    def changed(self) -> dict[str, tuple[int | None, int]]:
        """Returns the fields with their values before and after; of lists, how many values they have."""
        return {".".join(names): (_amount(old), _amount(new)) for names, old, new in self.settings}

    def set(self, config: Any) -> Callable[[], None]:
        """Changes a configuration in place; returns what puts it back."""
        places = [(_holder(config, names), names[-1], new) for names, _, new in self.settings]
        before = [(holder, name, getattr(holder, name)) for holder, name, _ in places]
        for place in places:
            setattr(*place)

        def undo() -> None:
            for place in before:
                setattr(*place)

        return undo


def find_depth(now: Any, plan: Plan, build: Build, kind: type[Any]) -> Depth:
    """Finds the fields that say how many layers a pruned model has.

    A number counts if a model that is built with the smaller one has as many layers as are left. Lists with a value for
    each layer are cut at the same places.

    Args:
        now: The configuration of the pruned model: that of the unpruned one, but for what the plan changed of it.
        plan: The plan that led to it.
        build: Builds a model from a configuration.
        kind: The class of configurations.
    """
    settings: list[Setting] = []
    notes: list[str] = []
    plain, whole = vars(kind()), whole_config(now, plan)
    for deletion in plan.entries.deletions:
        path = plan.renaming.after(deletion.container) or deletion.container
        left = [number for number in range(deletion.size) if number not in deletion.entries]
        for around, config in configs_in(whole, kind):
            lists = [
                ((*around, name), value, type(value)(value[number] for number in left))
                for name, value in vars(config).items()
                if isinstance(value, list | tuple) and len(value) == deletion.size and name not in plain
            ]
            counts = [
                ((*around, name), value, len(left))
                for name, value in vars(config).items()
                if type(value) is int and value == deletion.size
            ]
            found = _said(now, [(count, *lists) for count in counts], settings, build, path, len(left))
            if found is not None:
                settings.extend(found)
                break
        else:
            notes.append(f"no field says that {deletion.container} has {len(left)} entries, not {deletion.size}")
    return Depth(tuple(settings), tuple(notes))


def _said(
    config: Any,
    options: Sequence[Sequence[Setting]],
    known: Sequence[Setting],
    build: Build,
    path: str,
    size: int,
) -> Sequence[Setting] | None:
    """Returns the first settings with which a list of a model that is built has a size."""
    for option in options:
        trial = copy.deepcopy(config)
        Depth((*known, *option)).set(trial)
        try:
            built = build(trial).get_submodule(path)
        except Exception:  # whatever a model raises that can't be built like that
            continue
        if len(built._modules) == size:
            return option
    return None


def _holder(config: Any, names: Sequence[str]) -> Any:
    for name in names[:-1]:
        config = getattr(config, name)
    return config


def _amount(value: Any) -> int:
    return value if isinstance(value, int) else len(value)


def whole_config(config: Any, plan: Plan) -> Any:
    """Returns a copy of a pruned model's configuration with the lists and numbers that it had before the plan."""
    whole = copy.deepcopy(config)
    for change in plan.entries.changes:
        path, names = change.place
        if not path and names[0] == "config":
            holder = _holder(whole, names[1:])
            value = getattr(holder, names[-1])
            setattr(holder, names[-1], change.undone(value))
    for edit in plan.edits:
        *around, name = edit.attribute.split(".")
        if not edit.module and around[:1] == ["config"]:
            holder = _holder(whole, (*around[1:], name))
            if getattr(holder, name) == edit.new:
                setattr(holder, name, edit.old)
    return whole


def gone_modules(plan: Plan) -> list[str]:
    """Says which modules are exchanged for ones without parameters, which no configuration says."""
    renaming = plan.renaming
    places = {stub.module: renaming.after(stub.module) for stub in plan.stubs}
    lost = [now for path, now in places.items() if now and any(name.startswith(f"{path}.") for name in plan.gone)]
    more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
    return (
        [f"the configuration can't say that a part of the model is gone: {', '.join(lost[:3])}{more}"] if lost else []
    )
