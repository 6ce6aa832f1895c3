"""Files: safetensors, shards, plans in their metadata, and cuts of files on disk."""
