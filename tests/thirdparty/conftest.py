"""The example package's own tests run where it is installed, not here."""

collect_ignore = ["prunekit-example"]
