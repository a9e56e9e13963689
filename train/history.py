"""What happens in a stage, epoch by epoch, and the learning curves of a run, read from the notes that its stages leave."""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

META: Final = "meta-classifier"
"""Stands where the curves of stages 1 and 2 have a member's name."""
_NOTES: Final = re.compile(r"(?P<member>.+?)(?:-without-fold-(?P<fold>\d+))?\.(?P<stage>stage\d)\.json")
_L2: Final = "l2"
"""Stands in the rows of a fit (`train.linear`), which has strengths in the place of epochs."""
_META_NOTES: Final = re.compile(r"seed-(?P<seed>-?\d+)\.stage3\.json")


@dataclass(slots=True)
class History:
    """What happened in a stage: a row per epoch, and which epoch was kept.

    Attributes:
        rows: one per epoch, or per strength that a linear member was fitted with.
        best_epoch: the one that was kept; -1 where none was better than what the stage began with.
        steps: of the optimizer.
        start_score: of what the stage began with, where that competes with the epochs; else below every score.
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = -1
    steps: int = 0
    start_score: float = -1.0

    @property
    def best_score(self) -> float:
        """Score of the epoch that is kept; that of the start, or below every score, before there is one."""
        return self.rows[self.best_epoch]["dev_macro_f1"] if self.best_epoch >= 0 else self.start_score


def write_meta_histories(folder: Path, histories: Mapping[int, History]) -> None:
    """Notes of stage 3, a file per seed; those of an earlier recipe's seeds are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("seed-*.stage3.json"):
        path.unlink()
    for seed, history in histories.items():
        (folder / f"seed-{seed}.stage3.json").write_text(json.dumps(asdict(history), indent=1), encoding="utf-8")


def meta_curves(folder: Path) -> list[dict[str, Any]]:
    """A row per run of stage 3, in the order of their seeds, of the same form as `learning_curves`, and the seed."""
    found = []
    for path in folder.glob("seed-*.stage3.json"):
        name = _META_NOTES.fullmatch(path.name)
        if name is not None:
            notes = json.loads(path.read_text(encoding="utf-8"))
            found.append({"member": META, "fold": None, "stage": "stage3", "seed": int(name["seed"]), **_curve(notes)})
    return sorted(found, key=lambda row: int(row["seed"]))


def learning_curves(folder: Path, members: tuple[str, ...], keys: Collection[str]) -> list[dict[str, Any]]:
    """A row per member, fold and stage: epoch by epoch the loss and the held-out macro-F1, and which epoch was kept.

    Args:
        folder: where the members' weights and notes are.
        members: the names of the recipe's members, in its order.
        keys: of the stages that are shown; what an earlier run has left in the folder has others.
    """
    found = []
    for path in sorted(folder.glob("*.stage*.json")):
        name = _NOTES.fullmatch(path.name)
        notes = json.loads(path.read_text(encoding="utf-8"))
        if name is None or notes["key"] not in keys:
            continue
        if not notes["rows"] or _L2 in notes["rows"][0]:  # a stage of no epochs kept what it began with; a fit has none
            continue
        found.append(
            {
                "member": name["member"],
                "fold": None if name["fold"] is None else int(name["fold"]),
                "stage": name["stage"],
                **_curve(notes),
            }
        )
    return sorted(found, key=lambda row: (members.index(row["member"]), row["fold"] is not None, row["fold"] or 0))


def linear_fits(folder: Path, members: tuple[str, ...], keys: Collection[str]) -> list[dict[str, Any]]:
    """A row per linear member and fold: the strengths that were tried, each with its held-out macro-F1, and which was kept.

    Args:
        folder: where the members' weights and notes are.
        members: the names of the recipe's members, in its order.
        keys: of the fits that are shown.
    """
    found = []
    for path in folder.glob("*.stage1.json"):
        name = _NOTES.fullmatch(path.name)
        notes = json.loads(path.read_text(encoding="utf-8"))
        if name is None or notes["key"] not in keys or not notes["rows"] or _L2 not in notes["rows"][0]:
            continue
        tried, best = [row[_L2] for row in notes["rows"]], notes["best_epoch"]
        found.append(
            {
                "member": name["member"],
                "fold": None if name["fold"] is None else int(name["fold"]),
                "l2": tried,
                "dev_macro_f1": [row["dev_macro_f1"] for row in notes["rows"]],
                "kept": tried[best] if best >= 0 else None,
                "examples": notes["rows"][0]["examples"],
                "steps": notes["steps"],
            }
        )
    return sorted(found, key=lambda row: (members.index(row["member"]), row["fold"] is not None, row["fold"] or 0))


def _curve(notes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "loss": [row["loss"] for row in notes["rows"]],
        "dev_macro_f1": [row["dev_macro_f1"] for row in notes["rows"]],
        "best_epoch": notes["best_epoch"],
        "steps": notes["steps"],
    }
