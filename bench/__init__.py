"""Benchmarks: programs, never tests. Their figures stand in docs/LOG.md with the command that gave them."""
