"""Rehearsal: a cut is run without data before it is made, and what has to change with it is found."""
