"""What a doctor looks at, and what it says."""

from __future__ import annotations

import enum

import attrs

Pair = tuple[float, float]
"""A number before and after pruning."""


class Disease(enum.Enum):
    """Why a layer takes longer than its multiply-accumulates say."""

    PINNED = "pinned"
    """It couldn't shrink as much as the rest."""
    UNALIGNED = "odd sizes"
    """Its new sizes aren't multiples that the hardware likes."""
    DEPTHWISE = "depthwise"
    """It multiplies every channel by itself, which reuses nothing that was read."""
    FIXED = "fixed cost"
    """Calling it costs more than what it does."""
    MEMORY = "memory-bound"
    """It waits for memory, not for arithmetic."""
    STAYS = "what stays"
    """Branches are gone, but much of the time is spent in layers that went with none of them."""
    WIDTH = "width"
    """Whole branches gone, for as many multiply-accumulates, would have saved more time than narrower layers."""


ADVICE = {
    Disease.PINNED: "prunekit inspect says more; prune more elsewhere, or take it out of ignored_layers",
    Disease.UNALIGNED: 'prune with align="auto"',
    Disease.DEPTHWISE: "count on less: leave its block wider and prune others, or set a target on latency",
    Disease.FIXED: "use larger batches, torch.compile or fewer layers; narrower ones won't be faster",
    Disease.STAYS: "use larger batches or torch.compile, prune these by width, or set a target on latency",
    Disease.WIDTH: 'prune by depth: branch_ratio=0.25, or by="depth" with the target',
    Disease.MEMORY: "fuse it with its neighbours (torch.compile), use half precision, or set a target on latency",
}


@attrs.frozen
class LayerFacts:
    """A layer before and after pruning.

    Attributes:
        path: Dotted path; empty for what the model does outside its layers.
        kind: Name of its class.
        seconds: Measured time of its own, without the layers inside it.
        macs: Multiply-accumulates.
        traffic: Bytes that its operations read and write.
        sizes: Channels in and out that changed, after pruning, by parameter dim.
        depthwise: Whether it is a depthwise convolution.
        pinned: Parameter dims that couldn't shrink, with the reason.
        gone: Whether it went as a whole, with a branch; what stands in its place may take time.
    """

    path: str
    kind: str
    seconds: Pair
    macs: Pair
    traffic: Pair
    sizes: dict[str, int]
    depthwise: bool
    pinned: dict[str, str]
    gone: bool = False


@attrs.frozen
class BranchFacts:
    """A branch that can be switched off, in the model before pruning.

    Attributes:
        name: Its name.
        seconds: Time of the layers that run for it only.
        macs: Multiply-accumulates that are done for it only.
    """

    name: str
    seconds: float
    macs: float


@attrs.frozen
class Facts:
    """A model before and after pruning, on one machine.

    Attributes:
        layers: Its layers, by path.
        multiple: The multiple that the device likes.
        why: Where that comes from.
        balance: Multiply-accumulates that the device does while it moves a byte.
        overhead: Seconds that calling a layer takes at least.
        branches: Branches that can go; empty where the plan takes some out.
    """

    layers: dict[str, LayerFacts]
    multiple: int
    why: str
    balance: float
    overhead: float
    branches: tuple[BranchFacts, ...] = ()

    @property
    def by_depth(self) -> float:
        """How many times faster the model would be without as many branches as do the multiply-accumulates saved.

        All branches count alike; zero where they don't do so many.
        """
        macs, seconds = sum(one.macs for one in self.branches), sum(one.seconds for one in self.branches)
        part = (self.macs[0] - self.macs[1]) / macs if macs else 1.0
        left = self.seconds[0] - part * seconds
        return self.seconds[0] / left if 0 <= part < 1 and left > 0 else 0.0

    @property
    def seconds(self) -> Pair:
        """Time of all layers together."""
        return _sums([layer.seconds for layer in self.layers.values()])

    @property
    def macs(self) -> Pair:
        """Multiply-accumulates of all layers together."""
        return _sums([layer.macs for layer in self.layers.values()])

    @property
    def shallower(self) -> bool:
        """Whether whole layers are gone."""
        return any(layer.gone for layer in self.layers.values())

    @property
    def narrowed(self) -> float:
        """Fraction of their multiply-accumulates that the layers still do which aren't gone as a whole."""
        before, after = _sums([layer.macs for layer in self.layers.values() if not layer.gone])
        return after / before if before else 1.0

    @property
    def speed_up(self) -> float:
        """How many times faster the pruned model is."""
        return self.seconds[0] / self.seconds[1]

    @property
    def hoped_for(self) -> float:
        """How many times fewer multiply-accumulates it has."""
        return self.macs[0] / self.macs[1] if self.macs[1] else 1.0

    def share(self, layer: LayerFacts) -> Pair:
        """Fraction of the time that a layer takes."""
        before, after = self.seconds
        return layer.seconds[0] / before, layer.seconds[1] / after


def _sums(pairs: list[Pair]) -> Pair:
    return sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)


@attrs.frozen
class Finding:
    """Something that keeps a layer from being faster.

    Attributes:
        layer: Path of the layer; empty for what the model does outside its layers.
        disease: What it is.
        text: The same in words, with numbers.
        share: Fraction of the time that the layer takes, before and after.
    """

    layer: str
    disease: Disease
    text: str
    share: Pair

    @property
    def advice(self) -> str:
        """What to change."""
        return ADVICE[self.disease]
