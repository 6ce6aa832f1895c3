"""From facts to findings; nothing is measured here."""

from __future__ import annotations

from prunekit_plugins.doctor.facts import Disease, Facts, Finding, LayerFacts, Pair

WORTH_TELLING = 0.02
"""Layers that take a smaller fraction of the time aren't mentioned."""
SHORT = 0.1
"""A layer falls short when the time that it has left exceeds what its work has left by this fraction."""
NAMED = 4
"""So many layers are named together."""
CALLS = 4
"""A layer that takes less than so many empty calls is dominated by being called."""


def find(facts: Facts) -> list[Finding]:
    """Finds what keeps a pruned model from being as fast as its multiply-accumulates say.

    Returns:
        Findings, those about the layers that take the most time first; none when nothing falls short.
    """
    layers = sorted(facts.layers.values(), key=lambda layer: -layer.seconds[1])
    found = [
        Finding(layer.path, disease, text, facts.share(layer))
        for layer in layers
        if facts.share(layer)[1] >= WORTH_TELLING
        for disease, text in _diseases(facts, layer)
    ]
    return [*found, *_stays(facts), *_depth(facts)]


def _stays(facts: Facts) -> list[Finding]:
    """Says so where branches are gone, and the layers that stay take more of the time than of the work."""
    left, time = 1 / facts.hoped_for, 1 / facts.speed_up
    if time <= left + SHORT or not facts.shallower:
        return []
    many = max(facts.macs[1], 1)
    rest = {layer.path: facts.share(layer)[1] for layer in facts.layers.values() if not layer.gone}
    more = sorted(rest, key=lambda path: facts.layers[path].macs[1] / many - rest[path])[:NAMED]
    named = ", ".join(f"{path or 'outside layers'} {rest[path]:.0%}" for path in more)
    text = f"{left:.0%} of the MACs are left, and {time:.0%} of the time; of that take {named}"
    return [Finding("", Disease.STAYS, text, (1.0, 1.0))]


def _depth(facts: Facts) -> list[Finding]:
    """Says so where branches gone, for the same multiply-accumulates, would make the model faster."""
    if facts.by_depth <= facts.speed_up * (1 + SHORT):
        return []
    text = (
        f"with {1 / facts.hoped_for:.0%} of the MACs it is {facts.speed_up:.2f} times faster; without branches that do "
        f"as many it would be about {facts.by_depth:.2f} times ({len(facts.branches)} can go)"
    )
    return [Finding("", Disease.WIDTH, text, (1.0, 1.0))]


def _diseases(facts: Facts, layer: LayerFacts) -> list[tuple[Disease, str]]:
    found: list[tuple[Disease, str]] = []
    overall = facts.narrowed
    if facts.shallower and overall >= 1:  # whole branches went, and layers that stay are as they were
        return found
    work = layer.macs[1] / layer.macs[0] if layer.macs[0] else _fraction(layer.traffic)
    left = layer.seconds[1] / layer.seconds[0] if layer.seconds[0] else 1.0
    if layer.pinned and work > overall + SHORT:
        reasons = "; ".join(f"{where}: {why}" for where, why in layer.pinned.items())
        whole = "the layers that stay have" if overall != 1 / facts.hoped_for else "the model has"
        text = f"{work:.0%} of its work is left where {whole} {overall:.0%} ({reasons})"
        found.append((Disease.PINNED, text))
    if left <= min(work, overall) + SHORT and not layer.depthwise:
        return found
    odd = {where: size for where, size in layer.sizes.items() if size % facts.multiple}
    if odd and left > work + SHORT:
        sizes = ", ".join(f"{where} = {size}" for where, size in odd.items())
        found.append((Disease.UNALIGNED, f"{sizes}: no multiples of {facts.multiple} ({facts.why})"))
    intensity = layer.macs[1] / max(layer.traffic[1], 1)
    if layer.depthwise:
        share, counted = facts.share(layer)[1], layer.macs[1] / max(facts.macs[1], 1)
        if share > 2 * counted:
            text = f"{counted:.1%} of the MACs take {share:.1%} of the time; {intensity:.2f} MACs per byte"
            found.append((Disease.DEPTHWISE, text))
    elif not layer.traffic[1]:
        found.append((Disease.FIXED, f"takes {layer.seconds[1] * 1e6:.0f} us, and runs no operation itself"))
    elif layer.seconds[1] < CALLS * facts.overhead:
        text = f"takes {layer.seconds[1] * 1e6:.0f} us, an empty call {facts.overhead * 1e6:.0f} us"
        found.append((Disease.FIXED, text))
    elif intensity < facts.balance and left > overall + SHORT:
        text = f"{intensity:.2f} MACs per byte, this device does {facts.balance:.1f} in the time of one; "
        found.append((Disease.MEMORY, text + f"{_fraction(layer.traffic):.0%} of its bytes are left"))
    return found


def _fraction(pair: Pair) -> float:
    return pair[1] / pair[0] if pair[0] else 1.0
