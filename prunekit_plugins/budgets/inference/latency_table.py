"""Times of a model's operations that were measured on another machine, as a file that travels."""

from __future__ import annotations

import contextlib
import contextvars
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from prunekit_core.errors import CheckpointError, many
from prunekit_core.files import write_text
from prunekit_plugins.checkpoints.tensorfile import CHECK_PATH, NO_FILE

FORMAT = 1

_given: contextvars.ContextVar[LatencyTable | None] = contextvars.ContextVar("latency_table", default=None)


@attrs.frozen(eq=False)
class LatencyTable:
    """What operations of a model take on some machine.

    Attributes:
        machine: Node, device, number of threads and version of PyTorch.
        seconds: Operation with its arguments, by their shapes and dtypes, to seconds.
        alone: Operations that can't be run by themselves; they count nothing.
        factor: How many times as long the model takes as its operations together.
    """

    machine: Mapping[str, Any]
    seconds: Mapping[str, float]
    alone: frozenset[str]
    factor: float

    def look_up(self, key: str, missing: list[str]) -> float | None:
        """Returns the seconds of an operation, None for one that can't be run by itself; others are added to a list."""
        if key not in self.seconds and key not in self.alone:
            missing.append(key)
        return self.seconds.get(key)

    def with_more(self, other: LatencyTable) -> LatencyTable:
        """Returns the operations of both tables, which are of one model on one machine."""
        return attrs.evolve(self, seconds={**other.seconds, **self.seconds}, alone=self.alone | other.alone)

    def refuse(self, missing: list[str]) -> CheckpointError:
        """Words the error for operations of a model that the table lacks."""
        return CheckpointError(
            "The table of latencies lacks operations of this model.",
            where=str(self.machine.get("device", "")),
            why=f"{many(len(missing), 'operation', 'operations')} with these shapes and dtypes, first: {missing[0]}",
            hint="measure this model, in this dtype, with these inputs and this workload: "
            "prunekit bench MODEL --latency-table FILE, or write_latency_table",
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it to a file, as JSON; the file appears whole or not at all."""
        data = {**attrs.asdict(self), "alone": sorted(self.alone), "format": FORMAT}
        write_text(Path(path), json.dumps(data, indent=0, sort_keys=True))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LatencyTable:
        """Reads what `save` wrote.

        Raises:
            CheckpointError: There is no such file, or it holds no table of latencies.
        """
        file = Path(path)
        if not file.is_file():
            raise CheckpointError(NO_FILE, where=str(file), hint=CHECK_PATH)
        try:
            data: Any = json.loads(file.read_text(encoding="utf-8"))
            if data["format"] != FORMAT:
                raise CheckpointError("The table of latencies is of another version.", where=str(file))
            seconds = {str(key): float(value) for key, value in data["seconds"].items()}
            return cls(dict(data["machine"]), seconds, frozenset(data["alone"]), float(data["factor"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, CheckpointError):
                raise
            why = f"{type(error).__name__}: {error}"
            raise CheckpointError(
                "The file is no table of latencies.",
                where=str(file),
                why=why,
                hint="prunekit bench MODEL --latency-table FILE writes one",
            ) from error


@contextlib.contextmanager
def latencies_from(table: LatencyTable | None) -> Iterator[None]:
    """Has latencies read from a table, and nothing measured; None for what this machine measures."""
    token = _given.set(table)
    try:
        yield
    finally:
        _given.reset(token)


def table_given() -> LatencyTable | None:
    """Returns the table that latencies are read from; None where they are measured."""
    return _given.get()
