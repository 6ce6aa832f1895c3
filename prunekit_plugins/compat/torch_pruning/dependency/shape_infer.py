"""Shape inference of Torch-Pruning's tracer; prunekit records shapes."""

from __future__ import annotations

from prunekit_plugins.compat.torch_pruning.unavailable import unavailable

_WHY = "prunekit records the shape of every tensor and infers none"
_HINT = "use DependencyGraph.get_out_channels, or graph.analysis"

infer_channels_between = unavailable("infer_channels_between", _WHY, _HINT)
infer_in_channels_recursively = unavailable("infer_in_channels_recursively", _WHY, _HINT)
infer_out_channels_recursively = unavailable("infer_out_channels_recursively", _WHY, _HINT)
init_shape_information = unavailable("init_shape_information", _WHY, _HINT)
