"""Constants of Torch-Pruning's tracer; prunekit has no such limits, and nothing reads them."""

INDEX_MAPPING_PLACEHOLDER = None
MAX_RECURSION_DEPTH = 500
MAX_VALID_DIM = 100
