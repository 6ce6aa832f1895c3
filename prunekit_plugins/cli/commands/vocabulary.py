"""``prunekit vocabulary``: a transformers folder with fewer tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunekit.plugin import ArgumentError
from prunekit_plugins.cli import options
from prunekit_plugins.cli.output import Output
from prunekit_plugins.cli.project import project_registry
from prunekit_plugins.integrations.folder_vocabulary import prune_folder_vocabulary


def vocabulary(
    folder: Annotated[
        Path, typer.Argument(help="Folder with config.json, weights and tokenizer.json.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)],
    keep_text: Annotated[
        list[Path] | None,
        typer.Option(help="A text file: the tokens of its lines stay. May be given several times.", show_default=False),
    ] = None,
    keep_ids: Annotated[
        Path | None,
        typer.Option(help="A file of ids that stay, with spaces or lines between them.", show_default=False),
    ] = None,
    block: options.Block = None,
    config: options.Config = None,
    plugin: options.Plugins = None,
    as_json: options.Json = False,
) -> None:
    """Keep the tokens that texts use in a transformers folder: model, tokenizer and configurations."""
    kept = _kept(keep_text or [], keep_ids)
    output = Output(as_json)
    registry = project_registry(block, config, plugin)
    with output.working(f"pruning {folder}"):
        result = prune_folder_vocabulary(folder, out, kept, registry=registry)
    for line in str(result).splitlines():
        output.line(line)
    output.line(f"written: {out}", good=True)
    preview = result.plan.preview()
    output.result(
        {
            "source": str(folder),
            "out": str(out),
            "ids": {"before": result.size, "after": len(result), "added": len(result.added)},
            "params": {"before": preview.params_before, "after": preview.params_after},
            "notes": list(result.notes),
        }
    )


def _kept(texts: list[Path], ids: Path | None) -> list[int | str]:
    """Reads what is kept.

    Raises:
        ArgumentError: Nothing is named, a file can't be read, or holds something else than ids.
    """
    if not texts and ids is None:
        raise ArgumentError("Nothing says which tokens stay.", hint="--keep-text corpus.txt, or --keep-ids ids.txt")
    kept: list[int | str] = [line for file in texts for line in _text(file).splitlines() if line]
    for word in [] if ids is None else _text(ids).split():
        if not word.isdecimal():
            raise ArgumentError("--keep-ids names a file of ids.", where=str(ids), why=f"got {word!r}")
        kept.append(int(word))
    return kept


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError("The file can't be read.", where=str(file), why=str(error)) from error
