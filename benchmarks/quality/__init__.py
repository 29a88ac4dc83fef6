"""Does learning the masks pay, and what does at a small budget: see ``docs/results.md``."""
