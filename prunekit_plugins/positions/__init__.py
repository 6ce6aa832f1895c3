"""Positions: fewer rows in tables that hold a learnt embedding of each position."""

from prunekit_plugins.positions.call import prune_positions
from prunekit_plugins.positions.result import PositionsResult

__all__ = ["PositionsResult", "prune_positions"]
