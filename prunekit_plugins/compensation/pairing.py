"""Which consumers of a pruned model are compensated: those that lost features, with their counterparts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import attrs

from prunekit_core.plans.plan import Plan
from prunekit_plugins.calibration.batches import Batch
from prunekit_plugins.calibration.observation import Seen, Watched
from prunekit_plugins.compensation.gathering import Pair
from prunekit_plugins.compensation.layer_fit import Correspondence
from prunekit_plugins.compensation.rows.steady import Steadiness, steadiness
from prunekit_plugins.compensation.side_by_side import SideBySide
from prunekit_plugins.compensation.streams import StreamListener
from prunekit_plugins.compensation.takeovers import Takeover
from prunekit_plugins.compensation.uses import Consumer, find_consumers, match

NOT_FOLLOWED = "it isn't seen to be added to the sum that lost the branch"
UNTOLD = "which tokens it is sent changes with the cut, and can't be told, so there is nothing to fit it to"


@attrs.define(eq=False)
class Pairs:
    """The consumers that lost features or take over branches.

    Attributes:
        steady: Those that see the same rows in both models, in the order in which they run.
        picked: Those that see other ones, such as experts, each with the number of steady ones that run before it.
        left: Others, with the reason why they are left alone.
    """

    steady: list[Pair] = attrs.field(factory=list)
    picked: list[tuple[int, Pair]] = attrs.field(factory=list)
    left: dict[str, str] = attrs.field(factory=dict)

    @property
    def all(self) -> list[Pair]:
        """All of them."""
        return [*self.steady, *(pair for _, pair in self.picked)]

    def mixtures(self, most: int) -> list[list[Pair]]:
        """Returns those that see other rows, together where no steady one runs between them.

        Args:
            most: How many groups there are at most; neighbours are put together.
        """
        numbers = sorted({number for number, _ in self.picked})
        place = {number: index * min(most, len(numbers)) // len(numbers) for index, number in enumerate(numbers)}
        return [[pair for number, pair in self.picked if place[number] == one] for one in sorted({*place.values()})]


def find_pairs(both: SideBySide, plan: Plan, takeovers: Mapping[str, Takeover]) -> Pairs:
    """Finds the consumers that are compensated.

    Afterwards only consumers that see the same rows in both models are shown and numbered.

    Args:
        both: The two models.
        plan: What leads from one to the other.
        takeovers: By the name of a weight of the original, the branches that its consumer takes over.

    Raises:
        PlanError: The models don't run the same program.
    """
    pairs = Pairs()
    rows = steadiness(both.original, lambda: both.pruned, plan.renaming, both.batches())
    if rows is not None:
        both.watch(rows.steady, frozenset(_renamed(plan, rows.steady)))
    batch = next(iter(both.batches()))
    watched = both.pruned
    matched = match(find_consumers(both.original, batch), find_consumers(watched, batch), plan)
    reached = _reached(watched, batch, matched, takeovers)
    for old, new in matched:
        takeover = takeovers.get(old.site.parameter)
        if takeover is not None and new.orders[0] not in reached:
            pairs.left |= dict.fromkeys(takeover.branches, f"{new.site.name}: {NOT_FOLLOWED}")
            takeover = None
        pair = _pair(pairs, plan, old, new, takeover)
        if pair is not None and old.places != new.places:
            pairs.left[new.site.name] = "the places at which it works were cut as well, so they can't be compared"
        elif pair is not None:
            pairs.steady.append(pair)
    if rows is not None:
        _find_picked(pairs, both, plan, rows)
    return pairs


def _pair(pairs: Pairs, plan: Plan, old: Consumer, new: Consumer, takeover: Takeover | None) -> Pair | None:
    """Returns a consumer with its counterpart; None where it is left alone, with the reason unless it lost nothing."""
    correspondence = Correspondence.of(old.site, plan)
    if not correspondence.lost and takeover is None:
        return None
    if new.others:
        pairs.left[new.site.name] = f"its weight has other uses: {new.others[0]}"
        return None
    return Pair(old, new, correspondence, takeover)


def _find_picked(pairs: Pairs, both: SideBySide, plan: Plan, rows: Steadiness) -> None:
    """Adds the consumers that see other rows, from the first batch on which each of them runs in both models."""
    steady, done = frozenset(_renamed(plan, rows.steady)), set[str]()
    waiting = {*rows.picked, *rows.lost}
    for batch in both.batches():
        if not waiting:
            break
        before = {one.site.name: one for one in find_consumers(both.original, batch, every=True)}
        after = {one.site.name: one for one in find_consumers(both.pruned, batch, every=True)}
        numbers = sorted(order for one in after.values() if one.site.parameter in steady for order in one.orders)
        for name, old in before.items():
            parameter = old.site.parameter
            new = after.get(attrs.evolve(old.site, parameter=plan.renaming.after(parameter) or "").name)
            if parameter not in waiting or new is None or name in done:
                continue
            done.add(name)
            pair = _pair(pairs, plan, old, new, None)
            if pair is not None and parameter in rows.lost:
                pairs.left[new.site.name] = UNTOLD
            elif pair is not None:
                pairs.picked.append((sum(number < new.orders[0] for number in numbers), pair))
        waiting -= {before[name].site.parameter for name in done if name in before}
    pairs.picked.sort(key=lambda one: one[0])


def _renamed(plan: Plan, names: Iterable[str]) -> Iterable[str]:
    return (new for name in names if (new := plan.renaming.after(name)) is not None)


def _reached(
    watched: Watched,
    batch: Batch,
    matched: Sequence[tuple[Consumer, Consumer]],
    takeovers: Mapping[str, Takeover],
) -> set[int]:
    """Runs a batch and lists the consumers that arrive at the sums where they take over branches."""
    follow = {
        new.orders[0]: takeovers[old.site.parameter]
        for old, new in matched
        if old.site.parameter in takeovers and len(old.orders) == len(new.orders) == 1
    }
    reached: set[int] = set()
    if follow:
        watched.run_into(
            batch, StreamListener(watched, batch, _ignore, follow=follow, arrive=lambda one: reached.add(one.order))
        )
    return reached


def _ignore(seen: Seen) -> None:
    """Looks at nothing."""
