"""Windows that move over spatial dims: how many fit."""

from __future__ import annotations

from collections.abc import Sequence


def each(setting: int | Sequence[int], dims: int) -> list[int]:
    """Returns one number per dim; none if none are given."""
    numbers = [setting] if isinstance(setting, int) else list(setting)
    return numbers * dims if len(numbers) == 1 else numbers


def counts(
    sizes: Sequence[int], kernels: Sequence[int], steps: Sequence[int], margins: Sequence[int], gaps: Sequence[int]
) -> list[int]:
    """Returns how many windows fit along each dim; zero or less where none does.

    Args:
        sizes: Sizes of the dims.
        kernels: Sizes of the window.
        steps: Places from one window to the next.
        margins: Places added at both ends.
        gaps: Places from one element of a window to the next (dilation).
    """
    every = zip(sizes, kernels, steps, margins, gaps, strict=True)
    return [(size + 2 * margin - gap * (kernel - 1) - 1) // step + 1 for size, kernel, step, margin, gap in every]
