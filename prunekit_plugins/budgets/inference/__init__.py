"""What an inference needs of a model: the parameters of one token, the cache of keys and values."""
