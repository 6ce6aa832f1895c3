"""Dependencies: one layer that loses channels because another one does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import prunekit as pk
from prunekit import plugin
from prunekit_plugins.compat.torch_pruning.dependency.node import Node
from prunekit_plugins.compat.torch_pruning.unavailable import refuse


class Dependency(plugin.Dependency):
    """A layer that loses something together with the root of a group.

    Args:
        trigger: The pruning function of the source.
        handler: The pruning function of the target; None where the target can't be pruned by itself.
        source: Where the group starts.
        target: The layer or parameter concerned.

    Attributes:
        layer: The module (or parameter) of the target.
        pruning_fn: The handler.
    """

    def __init__(
        self,
        trigger: Any,
        handler: Any,
        source: Node,
        target: Node,
        *,
        role: pk.Role = pk.Role.OUT,
        name: str = "",
        parameter: str = "weight",
    ) -> None:
        super().__init__(target.module, name, role, handler, parameter)
        vars(self).update(trigger=trigger, handler=handler, source=source, target=target)

    def is_triggered_by(self, pruning_fn: Any) -> bool:
        """Tells whether pruning the source with a function leads to this dependency."""
        return bool(pruning_fn == vars(self)["trigger"])

    def __call__(self, idxs: Sequence[int]) -> Any:
        """Prunes the target alone; `Group.prune` prunes all layers of a group together.

        Raises:
            UnavailableError: The target has no pruning function of its own.
        """
        if self.pruning_fn is None:
            raise refuse(
                f"Pruning {self.name or 'this module'} by itself", "its channels have no numbers", "use group.prune()"
            )
        return self.pruning_fn(self.layer, idxs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Dependency) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash((id(self.layer), self.role))

    def _key(self) -> tuple[Any, ...]:
        own = vars(self)
        return (id(own["source"].module), id(self.layer), own["trigger"], own["handler"], self.role)

    def __str__(self) -> str:
        own = vars(self)
        trigger, handler = (getattr(own[name], "__name__", "pruning") for name in ("trigger", "handler"))
        return f"{trigger} on {own['source'].name} => {handler} on {own['target'].name}"

    __repr__ = __str__
