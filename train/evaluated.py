"""Whether a run is evaluated already: by this very program, of these members, with these recordings."""

import hashlib
import json
from pathlib import Path
from typing import Final

import model
import train
from train.config import Recipe, plain_recipe
from train.predictions import predictions_file
from train.prepare import Prepared
from train.report import CARD_FILE, PAGE_FILE, RESULTS_FILE

EVALUATED_FILE: Final = "evaluated.json"
_CHECKPOINT: Final = "checkpoint/ensemble.json"


def evaluation_key(recipe: Recipe, prepared: Prepared, stack: str) -> str:
    """Names everything that decides the results of a run, our own code too: another version evaluates anew.

    Args:
        recipe: all of it.
        prepared: the recordings that are tested with.
        stack: key of the meta-classifiers and, through it, of the members.
    """
    digest = hashlib.sha256(f"{stack} {prepared.training.content}".encode())
    told = (plain_recipe(recipe), prepared.dropped, prepared.notes, prepared.genders)
    digest.update(json.dumps(told, sort_keys=True).encode())
    for name, test in prepared.test.items():
        digest.update("\n".join((name, *test.ids, *test.speakers)).encode())
        for values in (test.targets, test.attributes, test.intended, prepared.votes[name]):
            digest.update(values.tobytes())
    for package in (train, model):
        folder = Path(str(package.__file__)).parent
        for path in sorted(folder.rglob("*.py")):
            digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


def is_evaluated(out: Path, prepared: Prepared, key: str) -> bool:
    """Whether a run's folder has everything that an evaluation of this key leaves."""
    left = [RESULTS_FILE, PAGE_FILE, CARD_FILE, _CHECKPOINT, *map(predictions_file, prepared.test)]
    mark = out / EVALUATED_FILE
    if not mark.is_file() or not all((out / name).is_file() for name in left):
        return False
    return bool(json.loads(mark.read_text(encoding="utf-8"))["key"] == key)


def forget(out: Path) -> None:
    """Before an evaluation: what one that is killed has left must not count."""
    (out / EVALUATED_FILE).unlink(missing_ok=True)


def remember(out: Path, key: str) -> None:
    """After one."""
    (out / EVALUATED_FILE).write_text(json.dumps({"key": key}), encoding="utf-8")
