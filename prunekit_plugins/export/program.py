"""Programs of ``torch.export``, which run without the model's code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunekit_plugins.checkpoints.destination import check_format
from prunekit_plugins.export.comparison import Comparison, appearing, arguments_of, compare, exporting, tensors_of


def export_program(
    model: nn.Module, example_inputs: Any, path: str | os.PathLike[str], *, tolerance: float | None = None
) -> Comparison:
    """Writes a model as a program of ``torch.export`` (``.pt2``), reads it back, and compares it with the model.

    Args:
        model: Any model; it is exported in eval mode.
        example_inputs: A tensor, a tuple or list of positional inputs, or a dict of keyword inputs. Sizes in the
            program are those of the inputs.
        path: File to write; it appears whole or not at all, and only if the outputs agree.
        tolerance: Largest relative error that is accepted; None for 1e-4 in single precision (others: `TOLERANCES`).

    Returns:
        The comparison.

    Raises:
        ExportError: The exporter refuses the model, or the outputs differ.
        ArgumentError: The file can't be made.
    """
    args, kwargs = arguments_of(example_inputs)
    check_format(Path(path), own="torch-export")
    with appearing(path) as temporary:
        # the exporter wants to know the name, which has to end in .pt2
        written = temporary.with_name("program.pt2")
        with exporting(model, "torch.export"):
            expected = tensors_of(model(*args, **kwargs))
            torch.export.save(torch.export.export(model, args, kwargs), str(written))
            found = tensors_of(torch.export.load(str(written)).module()(*args, **kwargs))
        error, accepted = compare(found, expected, tolerance, "torch.export")
        os.replace(written, temporary)
        size = temporary.stat().st_size
    return Comparison(error, accepted, len(found), size)
