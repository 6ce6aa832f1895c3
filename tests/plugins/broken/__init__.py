"""Plugins whose objects are wrong on purpose; a line that raises is marked with the name of its case."""
