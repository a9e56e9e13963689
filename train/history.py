"""The learning curves of a run, read from the notes that its stages leave beside their weights."""

import json
import re
from pathlib import Path
from typing import Any, Final

_NOTES: Final = re.compile(r"(?P<member>.+?)(?:-without-fold-(?P<fold>\d+))?\.(?P<stage>stage\d)\.json")


def learning_curves(folder: Path, members: tuple[str, ...]) -> list[dict[str, Any]]:
    """A row per member, fold and stage: epoch by epoch the loss and the held-out macro-F1, and which epoch was kept.

    Args:
        folder: where the members' weights and notes are.
        members: the names of the recipe's members; notes of others, from an earlier recipe, are left out.
    """
    found = []
    for path in sorted(folder.glob("*.stage*.json")):
        name = _NOTES.fullmatch(path.name)
        if name is None or name["member"] not in members:
            continue
        notes = json.loads(path.read_text(encoding="utf-8"))
        found.append(
            {
                "member": name["member"],
                "fold": None if name["fold"] is None else int(name["fold"]),
                "stage": name["stage"],
                "loss": [row["loss"] for row in notes["rows"]],
                "dev_macro_f1": [row["dev_macro_f1"] for row in notes["rows"]],
                "best_epoch": notes["best_epoch"],
                "steps": notes["steps"],
            }
        )
    return sorted(found, key=lambda row: (members.index(row["member"]), row["fold"] is not None, row["fold"] or 0))
