"""Linear assignment: which rows go with which columns so that the costs are least."""

from __future__ import annotations

import math

import torch


def assign(costs: torch.Tensor) -> torch.Tensor:
    """Gives each row a column of its own so that the sum of the costs is least.

    Shortest augmenting paths with potentials (Jonker and Volgenant, *A Shortest Augmenting Path Algorithm for Dense and
    Sparse Linear Assignment Problems*, Computing 38, 1987). Rows that have the least cost of a column take it at the
    start; each other row is one path, whose steps are operations on tensors ``[n]``.

    Args:
        costs: Tensor ``[n, n]`` of finite numbers.

    Returns:
        Tensor ``[n]``, int64, on the CPU: the column of each row.
    """
    if not costs.numel():
        return torch.empty(0, dtype=torch.int64, device="cpu")
    search = _Search(costs.detach().to("cpu", torch.float64))
    search.take_least()
    for row in [row for row, column in enumerate(search.column_of) if column < 0]:
        search.augment(row)
    return torch.tensor(search.column_of, dtype=torch.int64, device="cpu")


class _Search:
    """Prices ``p`` of rows and ``q`` of columns with ``p[i] + q[j] <= costs[i, j]``, equal where ``i`` has ``j``."""

    def __init__(self, costs: torch.Tensor) -> None:
        self._costs, self._columns = costs, costs.min(0).values
        self._rows = torch.zeros_like(self._columns)
        self.column_of, self._row_of = [-1] * len(costs), [-1] * len(costs)

    def take_least(self) -> None:
        """Gives each column the row with its least cost, if that has none yet."""
        for column, row in enumerate(self._costs.argmin(0).tolist()):
            if self.column_of[row] < 0:
                self.column_of[row], self._row_of[column] = column, row

    def augment(self, row: int) -> None:
        """Finds the shortest path from a row without a column to a column without a row, and exchanges along it."""
        costs, start = self._costs, row
        length = torch.full_like(self._columns, math.inf)
        before = torch.full_like(self._columns, -1, dtype=torch.int64)
        done = torch.zeros_like(before, dtype=torch.bool)
        so_far = 0.0
        while True:
            there = so_far + costs[row] - self._rows[row] - self._columns
            nearer = ~done & (there < length)
            length, before[nearer] = torch.where(nearer, there, length), row
            column = int(length.masked_fill(done, math.inf).argmin())
            so_far = float(length[column])
            if self._row_of[column] < 0:
                break
            done[column], row = True, self._row_of[column]
        gaps = (so_far - length)[done]
        self._columns[done] -= gaps
        self._rows[[self._row_of[one] for one in done.nonzero().flatten().tolist()]] += gaps
        self._rows[start] += so_far
        while column >= 0:
            row = int(before[column])
            self._row_of[column], column, self.column_of[row] = row, self.column_of[row], column
