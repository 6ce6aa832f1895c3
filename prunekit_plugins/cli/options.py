"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="torchvision:NAME, timm:NAME, hf:FOLDER or package.module:factory. Random weights, no download.",
        show_default=False,
    ),
]
OptionalModel = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="torchvision:NAME, timm:NAME, hf:FOLDER or package.module:factory. A --recipe names it, too.",
        show_default=False,
    ),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="SIZES",
        help="Shape of an example input: 1,3,224,224, or 1,16:int64. Repeat it for several inputs.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Block = Annotated[
    list[str] | None,
    typer.Option("--block", metavar="PLUGIN", help="Leave a plugin out. May be repeated.", show_default=False),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Settings; without it prunekit.toml, or [tool.prunekit] in pyproject.toml, here or above.",
        show_default=False,
    ),
]
Report = Annotated[
    Path | None,
    typer.Option("--report", metavar="FILE", help="Where a report goes: .html, .md or .json.", show_default=False),
]
All = Annotated[bool, typer.Option("--all", help="List everything; don't join lines of repeated blocks.")]
