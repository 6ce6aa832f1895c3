"""One file for each command: its options, what it calls, and what it prints."""
