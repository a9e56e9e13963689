"""The three forms that a comparison is left in: JSON, one page, Markdown."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Form = Callable[[Mapping[str, Any]], str]
"""Results as plain data -> a readable form of them."""


def results_file(stem: str) -> str:
    """Name of the JSON file of a kind of comparison ("ablation")."""
    return f"{stem}.json"


def write_comparison(folder: Path, stem: str, results: Mapping[str, Any], page: Form, markdown: Form) -> Path:
    """Writes `stem.json`, `stem.html` and `STEM.md`; returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / results_file(stem)).write_text(json.dumps(results, indent=1, allow_nan=False), encoding="utf-8")
    (folder / f"{stem.upper()}.md").write_text(markdown(results), encoding="utf-8")
    path = folder / f"{stem}.html"
    path.write_text(page(results), encoding="utf-8")
    return path
