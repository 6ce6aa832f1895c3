"""Short implementations of published methods for Llama-shaped decoders, each from its paper, one per file.

Each has ``prune(model, evidence, budget)``, which cuts a copy of the model that the evidence is of. Nothing is trained.
"""
