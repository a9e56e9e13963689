"""One manifest format for every corpus: a row per clip, and speaker-disjoint splits.

A manifest says what the annotators said; what the model is trained towards (`target`) is decided here and nowhere else.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.labels import CLASS_INDEX
from train.errors import LeakageError


@dataclass(frozen=True, slots=True)
class Clip:
    """One recording of one speaker.

    Attributes:
        id: unique in the corpus.
        corpus: name of the corpus.
        audio: the file.
        speaker: unique in the corpus; splits never share one.
        votes: annotators per canonical class.
        intended: the class the speaker was asked for, None where nobody was.
        attributes: arousal, valence, dominance in 1..7; NaN where nobody rated.
        gender: "female", "male" or "".
    """

    id: str
    corpus: str
    audio: Path
    speaker: str
    votes: tuple[float, ...]
    intended: str | None = None
    attributes: tuple[float, float, float] = (float("nan"),) * 3
    gender: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """Clips of a corpus and what was left out of it.

    Attributes:
        clips: in the order of their ids.
        dropped: reason -> number of rows.
    """

    clips: tuple[Clip, ...]
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def speakers(self) -> list[str]:
        """Speakers in sorted order."""
        return sorted({clip.speaker for clip in self.clips})

    def of_speakers(self, speakers: Iterable[str]) -> "Manifest":
        """The clips of some speakers."""
        wanted = set(speakers)
        return Manifest(tuple(clip for clip in self.clips if clip.speaker in wanted))


def target(clip: Clip, intended_votes: float) -> npt.NDArray[np.float32]:
    """Soft target `float32 [8]`, sum 1: the annotators' votes, the actor counted as `intended_votes` annotators.

    Raises:
        ValueError: if nobody voted and the actor does not count.
    """
    votes = np.array(clip.votes, np.float64)
    if clip.intended is not None:
        votes[CLASS_INDEX[clip.intended]] += intended_votes
    if votes.sum() <= 0:
        raise ValueError(f"clip {clip.id!r} has no votes: it cannot be a training target")
    shares: npt.NDArray[np.float32] = (votes / votes.sum()).astype(np.float32)
    return shares


def dominant(votes: npt.NDArray[np.floating]) -> int | None:
    """Index of the class with most votes; None without consensus (a tie for the first place: "XO")."""
    best = np.flatnonzero(votes >= votes.max() - 1e-6)
    return int(best[0]) if len(best) == 1 else None


@dataclass(frozen=True, slots=True)
class Split:
    """Speaker-disjoint parts of a corpus."""

    train: Manifest
    dev: Manifest
    test: Manifest

    def __post_init__(self) -> None:
        assert_disjoint({"train": self.train, "dev": self.dev, "test": self.test})


def split_speakers(manifest: Manifest, dev_fraction: float, test_fraction: float, seed: int) -> Split:
    """Splits a corpus by speaker: the same speakers fall the same way whatever else is in the manifest."""
    ranked = sorted(manifest.speakers, key=lambda speaker: _rank(speaker, seed))
    tests = round(test_fraction * len(ranked))
    devs = round(dev_fraction * len(ranked))
    return Split(
        train=manifest.of_speakers(ranked[tests + devs :]),
        dev=manifest.of_speakers(ranked[tests : tests + devs]),
        test=manifest.of_speakers(ranked[:tests]),
    )


def speaker_folds(manifest: Manifest, folds: int, seed: int) -> list[Manifest]:
    """Cuts a manifest into `folds` parts that share no speaker, all of about one size."""
    ranked = sorted(manifest.speakers, key=lambda speaker: _rank(speaker, seed))
    parts = [manifest.of_speakers(ranked[fold::folds]) for fold in range(folds)]
    assert_disjoint({f"fold {index}": part for index, part in enumerate(parts)})
    return parts


def assert_disjoint(parts: dict[str, Manifest]) -> None:
    """Checks that no speaker stands in two parts.

    Raises:
        LeakageError: naming the parts and the speakers.
    """
    names = list(parts)
    for index, first in enumerate(names):
        for second in names[index + 1 :]:
            shared = sorted(set(parts[first].speakers) & set(parts[second].speakers))
            if shared:
                raise LeakageError(f"{first} and {second} share the speakers {shared[:5]}: split by speaker")


def _rank(speaker: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{speaker}".encode()).hexdigest()
