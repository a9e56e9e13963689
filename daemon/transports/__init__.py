"""Transports: bytes and frames of a protocol to and from a call, and nothing else."""
