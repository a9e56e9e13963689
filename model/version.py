"""The version of the distribution, for the `--version` of every command."""

import importlib.metadata

DISTRIBUTION = "medusa-rt"


def told(program: str) -> str:
    """What `PROGRAM --version` prints."""
    return f"{program} {importlib.metadata.version(DISTRIBUTION)}"
