"""Layers with operations of their own, and everything that prunekit needs to know to prune them."""

from prunekit_example.layers import Net, ScaledSwish, SoftClip

__all__ = ["Net", "ScaledSwish", "SoftClip"]
