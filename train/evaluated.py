"""Whether a run is evaluated already: by this very program, of these members, with these recordings."""

import hashlib
import json
from pathlib import Path
from typing import Final

import model
import train
from train.acquaintance import SPEAKERS_FILE
from train.config import RECIPE_FILE, Recipe, plain_recipe
from train.prepare import Prepared
from train.report import CARD_FILE, PAGE_FILE, RESULTS_FILE

EVALUATED_FILE: Final = "evaluated.json"
_FOLDERS: Final = ("checkpoint", "predictions")
_FILES: Final = (RESULTS_FILE, PAGE_FILE, CARD_FILE, SPEAKERS_FILE, RECIPE_FILE)
"""What an evaluation leaves beside them."""
_PROGRAM: Final = (".py", ".css")


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
        for rows in test.frames.values():
            for frames in rows:  # another recording has other frames from the first to the last
                digest.update(str(frames.shape).encode() + frames[:1].tobytes() + frames[-1:].tobytes())
    for confidence in prepared.word_confidence.values():  # the tables hold it
        digest.update(confidence.tobytes())
    for package in (train, model):
        folder = Path(str(package.__file__)).parent
        for path in sorted(found for found in folder.rglob("*") if found.suffix in _PROGRAM):
            digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


def is_evaluated(out: Path, key: str) -> bool:
    """Whether a run's folder has everything that an evaluation of this key has left."""
    mark = out / EVALUATED_FILE
    if not mark.is_file():
        return False
    told = json.loads(mark.read_text(encoding="utf-8"))
    return bool(told["key"] == key and all((out / name).is_file() for name in told["files"]))


def forget(out: Path) -> None:
    """Before an evaluation: what one that is killed has left must not count."""
    (out / EVALUATED_FILE).unlink(missing_ok=True)


def remember(out: Path, key: str) -> None:
    """After one."""
    folders = (path for name in _FOLDERS for path in (out / name).rglob("*") if path.is_file())
    files = sorted(str(path.relative_to(out)) for path in (*folders, *(out / name for name in _FILES)))
    (out / EVALUATED_FILE).write_text(json.dumps({"key": key, "files": files}, indent=1), encoding="utf-8")
