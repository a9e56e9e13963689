"""How tests share the machine when several processes run them."""

from pathlib import Path
from typing import Final

import pytest

_HERE: Final = Path(__file__).parent
_QUIET: Final = frozenset({"model", "train", "export"})
"""Tests that only compute: whatever runs beside them, they give the same."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file stays in one process; files that run servers on time stay in one and the same, one after the other."""
    for item in items:
        file = item.path.relative_to(_HERE)
        item.add_marker(pytest.mark.xdist_group(str(file) if file.parts[0] in _QUIET else "servers"))
