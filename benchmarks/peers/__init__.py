"""Other pruning tools on the same work: see ``docs/results.md``."""
