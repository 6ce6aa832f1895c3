"""Index mappings of Torch-Pruning's tracer; prunekit has an algebra of axes instead."""

from __future__ import annotations

from prunekit_plugins.compat.torch_pruning.unavailable import unavailable

_WHY = "prunekit has no index mappings: views, splits and concatenations are rules on axes"
_HINT = "write a rule for the operation (docs/writing-a-plugin.md), or see where units are with group.views()"

update_concat_index_mapping = unavailable("update_concat_index_mapping", _WHY, _HINT)
update_expand_index_mapping = unavailable("update_expand_index_mapping", _WHY, _HINT)
update_flatten_index_mapping = unavailable("update_flatten_index_mapping", _WHY, _HINT)
update_index_mapping = unavailable("update_index_mapping", _WHY, _HINT)
update_reshape_index_mapping = unavailable("update_reshape_index_mapping", _WHY, _HINT)
update_slice_index_mapping = unavailable("update_slice_index_mapping", _WHY, _HINT)
update_split_index_mapping = unavailable("update_split_index_mapping", _WHY, _HINT)
update_unbind_index_mapping = unavailable("update_unbind_index_mapping", _WHY, _HINT)
