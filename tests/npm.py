"""Packages of npm for tests, fetched once into pytest's cache. Without npm or its registry, tests say so and skip."""

import hashlib
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Final

import pytest

NODE: Final = shutil.which("node")
_NPM: Final = shutil.which("npm")
_CACHE: Final = Path(__file__).parents[1] / ".pytest_cache" / "npm"
_FLAGS: Final = ("--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error")
_WITHIN_S: Final = 120


def installed(*packages: str) -> Path:
    """A folder with `node_modules` that holds these packages, each `name@version`; skips the test if they cannot be had."""
    folder, problem = _fetched(packages)
    if problem:
        pytest.skip(f"needs npm's {', '.join(packages)}: {problem}")
    return folder


@cache
def _fetched(packages: tuple[str, ...]) -> tuple[Path, str]:
    folder = _CACHE / hashlib.sha256(" ".join(packages).encode()).hexdigest()[:16]
    if folder.is_dir():
        return folder, ""
    if _NPM is None or NODE is None:
        return folder, "node or npm is not installed"
    _CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_CACHE) as made:
        try:
            result = subprocess.run(
                [_NPM, "install", *_FLAGS, "--prefix", made, *packages],
                capture_output=True,
                text=True,
                timeout=_WITHIN_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return folder, f"npm took more than {_WITHIN_S} s"
        if result.returncode:
            return folder, f"npm failed: {result.stderr.strip()[-300:]}"
        try:
            # Whole or not at all: another process may do the same.
            Path(made).rename(folder)
        except OSError:
            return folder, "" if folder.is_dir() else f"{folder} cannot be made"
        Path(made).mkdir()
    return folder, ""
