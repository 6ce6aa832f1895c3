"""Module trees as they are: tensors by name, copies, cuts, and changes that are made together or not at all."""
