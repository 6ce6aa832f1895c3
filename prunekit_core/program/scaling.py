"""How the result of an operation follows when its operands are multiplied, as op rules say it."""

from __future__ import annotations

import enum


class Scaling(enum.Enum):
    """How the result of an operation follows when its operands are multiplied by a positive factor.

    It is what lets a constant that follows a size (an attention's temperature) be made up for in the weights.
    """

    MOVED = "moved"
    """Elements are only moved, copied or left out: every element of a result is one of an operand."""
    WHOLE = "whole"
    """It scales with its first tensor as a whole, in one factor for all (elements that are picked by position)."""
    REDUCED = "reduced"
    """It scales with its tensor; what is combined (over ``dim``, with ``keepdim``) has to be scaled alike."""
    SUM = "sum"
    """It scales when all its tensors do, booleans aside. ``other``, ``value``, ``min`` and ``max`` count as tensors
    where they are numbers; ``alpha`` multiplies the second tensor."""
    WRITTEN = "written"
    """It scales when all its tensors do, in one factor for all (what is written, or added, by position)."""
    PRODUCT = "product"
    """It scales with each of its tensors, and with the number ``other``."""
    QUOTIENT = "quotient"
    """It scales with its first tensor, and inversely with its second or with the number ``other``."""
    POWER = "power"
    """It scales with a power of its only tensor, the same for each element (a root, a square, a reciprocal)."""
    CONSTANT = "constant"
    """Attention: it scales with the third tensor only; ``scale`` multiplies the product of the first two."""
    MATRIX = "matrix"
    """A matrix product over the last dim of the first tensor and the last but one of the second; scales with both."""
    MULTILINEAR = "multilinear"
    """It scales with each of its tensors; what is summed over has to be scaled alike."""
    ADDED_MATRIX = "added_matrix"
    """``beta`` times the first tensor, and ``alpha`` times the matrix product of the second and the third."""
    ROWS = "rows"
    """It scales with the rows of ``weight`` and ``bias``: an element of the result belongs to one row. The part without
    the bias also scales with ``input``."""
    CHANNELS = "channels"
    """It scales with the elements of ``weight`` and ``bias``, which lie along dim 1 of the result."""
    ALONG = "along"
    """It scales with the elements of ``weight`` and ``bias``, which lie along the last dims of the result."""
    NUMBERS = "numbers"
    """Its tensors only lend their shape, dtype and device; it scales with its number, if it has one."""
    ZEROS = "zeros"
    """All its elements are zero: they stay what they are whatever they are multiplied with."""
