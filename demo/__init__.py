"""The demo: the whole method on a small real model."""
