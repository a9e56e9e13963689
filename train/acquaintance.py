"""Whom an ensemble has heard before it is tested: the speakers of every step that made it.

A run on one corpus keeps its speakers apart by itself. A run that begins with another one has also heard those of the other.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from train.errors import LeakageError, RunError

SPEAKERS_FILE: Final = "speakers.json"
_NAMED: Final = 5
"""Speakers that a message names."""


@dataclass(frozen=True, slots=True)
class Acquaintance:
    """The speakers of one step.

    Attributes:
        corpus: whose they are.
        learned: names of those that weights or statistics were learned from, with labels or without.
        selecting: names of those that selected or calibrated.
    """

    corpus: str
    learned: tuple[str, ...]
    selecting: tuple[str, ...] = ()


def of_corpus(known: Iterable[Acquaintance], corpus: str) -> frozenset[str]:
    """The speakers of a corpus that some step has heard."""
    return frozenset(name for step in known if step.corpus == corpus for name in (*step.learned, *step.selecting))


def assert_unheard(known: Iterable[Acquaintance], corpus: str, tested: Iterable[str]) -> None:
    """Checks that nobody is tested on who made the ensemble.

    Raises:
        LeakageError: naming the corpus and the speakers.
    """
    if both := sorted(of_corpus(known, corpus) & set(tested)):
        named = ", ".join(both[:_NAMED]) + (", ..." if len(both) > _NAMED else "")
        raise LeakageError(
            f"{len(both)} speakers of {corpus} would be tested on, and have trained or selected what it begins with "
            f"({named}): divide {corpus} as that run did (split, split_seed, fractions), or begin with another run"
        )


def write_speakers(run: Path, known: Sequence[Acquaintance]) -> None:
    """Writes the steps of a run, the first one first."""
    plain = {"format": 1, "steps": [asdict(step) for step in known]}
    (run / SPEAKERS_FILE).write_text(json.dumps(plain, indent=1), encoding="utf-8")


def read_speakers(run: Path) -> tuple[Acquaintance, ...] | None:
    """The steps of a run; None for one from before runs kept them.

    Raises:
        RunError: if the file is damaged.
    """
    path = run / SPEAKERS_FILE
    if not path.is_file():
        return None
    try:
        steps = json.loads(path.read_text(encoding="utf-8"))["steps"]
        return tuple(Acquaintance(s["corpus"], tuple(s["learned"]), tuple(s["selecting"])) for s in steps)
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is not a list of steps with their speakers ({error!r}): make the run again") from error
