"""The cut of a declared axis: planned with the configurations that follow, made, and undone if anything raises."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import attrs

from prunekit_core.graph.graph import Graph
from prunekit_core.modules.transaction import Transaction
from prunekit_core.plans.optimizers import Optimizers
from prunekit_core.plans.plan import Plan
from prunekit_core.program.examples import Example
from prunekit_plugins.vocabulary import configuration
from prunekit_plugins.vocabulary.configuration import Change


@attrs.frozen(eq=False)
class DeclaredCut:
    """A cut that is proven, and not made yet.

    Attributes:
        graph: The model, analysed; cuts of it are rehearsed with the changed configurations.
        plan: The plan.
        changes: Fields of configurations that follow.
    """

    graph: Graph
    plan: Plan
    changes: Sequence[Change]

    @classmethod
    def of(
        cls,
        graph: Graph,
        kept: Mapping[str, tuple[int, ...]],
        changes: Sequence[Change],
        exchanged: Callable[[Example], Example],
    ) -> DeclaredCut:
        """Proves a cut by rehearsing it.

        Args:
            graph: The model, analysed.
            kept: Kept units of its groups.
            changes: Fields of configurations that follow.
            exchanged: Returns example inputs for the smaller model.

        Raises:
            RehearsalError: The program can't express it.
        """
        changed = configuration.rehearsed(graph, changes, exchanged)
        plan = changed.draft(kept)
        edits = [edit for change in changes if (edit := change.edit()) is not None]
        tables = [table for change in changes if (table := change.table_edit()) is not None]
        return cls(changed, attrs.evolve(plan, edits=(*plan.edits, *edits), tables=tuple(tables)), changes)

    @contextlib.contextmanager
    def made(self, optimizer: Optimizers | None) -> Iterator[Transaction]:
        """Makes the cut; the model is as it was if the block raises, or an interrupt was held back during it.

        Args:
            optimizer: What trains the model.

        Yields:
            The transaction, whose changes are made; others may be added and committed.
        """
        transaction = Transaction()
        try:
            with transaction:
                self.graph.apply_within(transaction, self.plan, optimizer)
                configuration.make(self.changes, transaction)
                transaction.commit()
                yield transaction
        except BaseException:  # an interrupt, too: without the result nobody could use the model
            transaction.undo()
            raise
