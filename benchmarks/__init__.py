"""Benchmarks that a user can run; they print tables and never gate tests."""
