"""Nested tuples, lists and dicts of tensors. Relied on: ``torch.utils._pytree``."""

from torch.utils import _pytree as pytree

__all__ = ["pytree"]
