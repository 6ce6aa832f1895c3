"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="torchvision:NAME, timm:NAME (random weights), hf:FOLDER, timm:FOLDER (with its weights) or "
        "package.module:factory.",
        show_default=False,
    ),
]
OptionalModel = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="torchvision:NAME, timm:NAME, hf:FOLDER, timm:FOLDER or package.module:factory. A --recipe names it, too.",
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
Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        metavar="CODE",
        help="A plugin that isn't installed: package.module, or a file. May be repeated.",
        show_default=False,
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Settings; without it prunekit.toml, or the table tool.prunekit in pyproject.toml, here or above.",
        show_default=False,
    ),
]
Report = Annotated[
    Path | None,
    typer.Option("--report", metavar="FILE", help="Where a report goes: .html, .md or .json.", show_default=False),
]
All = Annotated[bool, typer.Option("--all", help="List everything; don't join lines of repeated blocks.")]
Calibration = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        help="Choose and repair by data: package.module:batches, a .safetensors, .npy or .pt file of inputs, or a .txt "
        "for hf:FOLDER.",
        show_default=False,
    ),
]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Examples of a batch, where DATA is a file; 16 by default.")]
MaxBatches = Annotated[int | None, typer.Option("--batches", min=1, help="Use this many calibration batches at most.")]
Compensation = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="What repairs the weights that stay: merge_experts and least_squares by default, or none. Repeatable.",
        show_default=False,
    ),
]
Stages = Annotated[int | None, typer.Option(help="In how many stages layers are repaired.", show_default=False)]
BatchNorm = Annotated[
    bool | None,
    typer.Option(
        "--batchnorm/--no-batchnorm", help="Estimate batch norms anew on the data; done by default.", show_default=False
    ),
]
BranchRatio = Annotated[
    float | None,
    typer.Option(
        help="Fraction of the branches to remove (attention, feed-forwards, residual blocks); none by default.",
        show_default=False,
    ),
]
Branches = Annotated[
    list[str] | None,
    typer.Option(
        "--branch",
        metavar="NAME",
        help="Remove this branch, or all branches in this module. Repeatable.",
        show_default=False,
    ),
]
BranchImportance = Annotated[
    str | None,
    typer.Option(
        metavar="NAME[,ARG=VALUE]",
        help="The criterion that ranks branches; output_change with --calibration, else magnitude.",
        show_default=False,
    ),
]
ExpertImportance = Annotated[
    str | None,
    typer.Option(
        metavar="NAME[,ARG=VALUE]",
        help="The criterion that ranks experts; rerouting with --calibration.",
        show_default=False,
    ),
]
By = Annotated[
    str | None,
    typer.Option(help="What meets a --target: width (units), depth (branches) or both.", show_default=False),
]
KeepFirst = Annotated[
    int | None, typer.Option(min=0, help="So many branches stay at the start of the program.", show_default=False)
]
KeepLast = Annotated[int | None, typer.Option(min=0, help="So many stay at its end.", show_default=False)]
KeepNames = Annotated[
    bool | None,
    typer.Option(
        "--keep-names/--renumber",
        help="Layers without branches stay in their lists, and all others keep their numbers.",
        show_default=False,
    ),
]
Allocation = Annotated[
    str | None,
    typer.Option(help="How a target is shared out: uniform, global, greedy, dp or estimated.", show_default=False),
]
Uniform = Annotated[
    bool | None,
    typer.Option(
        "--uniform/--no-uniform",
        help="Layers of one structure keep the same sizes; what a folder of transformers asks for.",
        show_default=False,
    ),
]
FreeOutputs = Annotated[
    list[str] | None,
    typer.Option(
        "--free-output",
        metavar="NAME",
        help="An output that may lose units, by its name in the report, such as cache. Repeatable.",
        show_default=False,
    ),
]
Heads = Annotated[
    bool | None,
    typer.Option("--heads/--no-heads", help="Whole attention heads may go; they stay by default.", show_default=False),
]
HeadDims = Annotated[
    bool | None,
    typer.Option(
        "--head-dims/--no-head-dims", help="Heads may get narrower, all alike; they do by default.", show_default=False
    ),
]
HeadRatio = Annotated[
    float | None, typer.Option(help="Fraction of the heads to remove, with --heads.", show_default=False)
]
ExpertRatio = Annotated[
    float | None,
    typer.Option(
        help="Fraction of the experts of each layer to remove; none by default, but for a --target with --calibration.",
        show_default=False,
    ),
]
MaxRatio = Annotated[float | None, typer.Option(help="Largest fraction that any group loses.", show_default=False)]
Serve = Annotated[
    str | None,
    typer.Option(
        metavar="PROFILE[,ARG=VALUE]",
        help="Where the model is served: transformers (for hf:FOLDER by default), gguf, mlx, onnx, vllm, sglang, "
        "tensorrt-llm (vllm,tensor_parallel=2,group=128), or none.",
        show_default=False,
    ),
]
Workload = Annotated[
    str | None,
    typer.Option(
        metavar="NAME=VALUE,...",
        help="The calls that costs are counted for, if not one call on the inputs: batch=8,length=512,decode=128, or "
        "some of these.",
        show_default=False,
    ),
]
Component = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Of a pipeline of diffusers, the component to prune; by default the one that takes the noise away.",
        show_default=False,
    ),
]
PushToHub = Annotated[
    str | None,
    typer.Option(
        metavar="USER/NAME",
        help="Upload the folder to this repository of the Hugging Face hub in the end.",
        show_default=False,
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the model in the folder that --out names.")]
MaxShardSize = Annotated[
    str | None, typer.Option(help="Bytes of a file in a folder at most, such as 5GB.", show_default=False)
]
