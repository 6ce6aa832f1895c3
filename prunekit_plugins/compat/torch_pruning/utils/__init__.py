"""Counting, measuring, printing and drawing."""

from prunekit_plugins.compat.torch_pruning.utils import benchmark, compute_mat_grad, op_counter, utils
from prunekit_plugins.compat.torch_pruning.utils.utils import (
    TORCH_BATCHNORM,
    TORCH_CONV,
    TORCH_LINEAR,
    TORCH_PRELU,
    count_ops_and_params,
    count_params,
    draw_computational_graph,
    draw_dependency_graph,
    draw_groups,
    flatten_as_list,
    module2type,
    print_tool,
)

__all__ = [
    "TORCH_BATCHNORM",
    "TORCH_CONV",
    "TORCH_LINEAR",
    "TORCH_PRELU",
    "benchmark",
    "compute_mat_grad",
    "count_ops_and_params",
    "count_params",
    "draw_computational_graph",
    "draw_dependency_graph",
    "draw_groups",
    "flatten_as_list",
    "module2type",
    "op_counter",
    "print_tool",
    "utils",
]
