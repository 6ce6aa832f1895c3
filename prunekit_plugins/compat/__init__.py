"""Drop-in modules for programs that were written for other tools."""
