"""One manifest format for every corpus: a row per clip, and splits that share no speaker.

A manifest says what the annotators said; what the model is trained towards (`target`) is decided here and nowhere else.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from model.labels import ATTRIBUTE_RANGE, CLASS_INDEX
from train.errors import CorpusError, LeakageError

_TIE: Final = 1e-6
"""Votes that differ by less are equal."""


@dataclass(frozen=True, slots=True)
class Clip:
    """One recording of one speaker.

    Attributes:
        id: unique in the corpus.
        corpus: name of the corpus.
        audio: the file.
        speaker: unique in the corpus; splits never share one. See `unknown_speaker` for a voice that nobody named.
        votes: annotators per canonical class; they need not be whole numbers.
        intended: the class the speaker was asked for, None where nobody was.
        attributes: arousal, valence, dominance in 1..7; NaN where nobody rated.
        gender: "female", "male" or "" where the corpus does not tell.
        consensus: the class the corpus publishes as agreed; None where its annotators did not agree ("XO") or none is
            published.
        other_votes: votes for emotions that have no canonical class, or none in the label set that was asked for.
        language: ISO 639-1 code, "" where the corpus does not tell.
        split: the part of the corpus' own published split ("train", "dev", "test", "test1", ...), "" where there is none.
        transcript: the words as the corpus publishes them, None where it does not.
        session: the recording, dialogue or episode that the clip was cut from, "" where the corpus does not tell.
        speaker_known: false where the corpus does not say who speaks.
    """

    id: str
    corpus: str
    audio: Path
    speaker: str
    votes: tuple[float, ...]
    intended: str | None = None
    attributes: tuple[float, float, float] = (float("nan"),) * 3
    gender: str = ""
    consensus: str | None = None
    other_votes: float = 0.0
    language: str = ""
    split: str = ""
    transcript: str | None = None
    session: str = ""
    speaker_known: bool = True

    @property
    def label(self) -> str | None:
        """The one class to compare a prediction with: the intended one, else the agreed one, None where there is none."""
        return self.intended or self.consensus


@dataclass(frozen=True, slots=True)
class Manifest:
    """Clips of a corpus and what was left out of it.

    Attributes:
        clips: in the order of their ids.
        dropped: reason -> number of rows that were left out.
        notes: what a reader of figures must know of the rows that were kept -> number.
    """

    clips: tuple[Clip, ...]
    dropped: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)

    @property
    def speakers(self) -> list[str]:
        """Speakers in sorted order."""
        return sorted({clip.speaker for clip in self.clips})

    @property
    def of_unknown_speaker(self) -> int:
        """Number of clips of which the corpus does not say who speaks."""
        return sum(not clip.speaker_known for clip in self.clips)

    def of_speakers(self, speakers: Iterable[str]) -> "Manifest":
        """The clips of some speakers."""
        wanted = set(speakers)
        return Manifest(tuple(clip for clip in self.clips if clip.speaker in wanted))


def unknown_speaker(corpus: str, session: str) -> str:
    """The stand-in for the unnamed voices of one recording, for clips with `speaker_known` false.

    "Unknown" is not one person: as one speaker, thousands of people would fall on one side of every split. The unnamed
    voices of one recording stay together, because they may be the same person.
    """
    return f"{corpus}-unknown-{session}"


def rescale(rating: float, low: float, high: float) -> float:
    """A rating on the scale `low`..`high` as the same point of 1..7; NaN stays NaN."""
    first, last = ATTRIBUTE_RANGE
    return first + (last - first) * (rating - low) / (high - low)


def target(clip: Clip, intended_votes: float) -> npt.NDArray[np.float32]:
    """Soft target `float32 [8]`, sum 1: the annotators' votes, the actor counted as `intended_votes` annotators.

    Raises:
        ValueError: if nobody voted and the actor does not count.
    """
    votes = _votes(clip, intended_votes)
    if votes.sum() <= 0:
        raise ValueError(f"clip {clip.id!r} has no votes: it cannot be a training target")
    shares: npt.NDArray[np.float32] = (votes / votes.sum()).astype(np.float32)
    return shares


def dominant(votes: npt.NDArray[np.floating]) -> int | None:
    """Index of the class with most votes; None without consensus (a tie for the first place: "XO")."""
    best = np.flatnonzero(votes >= votes.max() - _TIE)
    return int(best[0]) if len(best) == 1 else None


def dominant_class(clip: Clip, intended_votes: float) -> int | None:
    """As `dominant`, but votes for other emotions count: None where they are as many as those for the first class."""
    votes = _votes(clip, intended_votes)
    return None if clip.other_votes >= votes.max() - _TIE else dominant(votes)


def _votes(clip: Clip, intended_votes: float) -> npt.NDArray[np.float64]:
    votes = np.array(clip.votes, np.float64)
    if clip.intended is not None:
        votes[CLASS_INDEX[clip.intended]] += intended_votes
    return votes


@dataclass(frozen=True, slots=True)
class Split:
    """Parts of a corpus that share no speaker.

    Attributes:
        train: what members learn from.
        dev: what selects and calibrates.
        test: what no stage sees.
        allow_overlap: accept speakers on two sides, for figures of a published split that has them; say so beside the
            figures (`shared`).

    Raises:
        LeakageError: if a speaker stands on two sides and that is not allowed.
    """

    train: Manifest
    dev: Manifest
    test: Manifest
    allow_overlap: bool = False

    def __post_init__(self) -> None:
        if not self.allow_overlap:
            assert_disjoint(self.parts)

    @property
    def parts(self) -> dict[str, Manifest]:
        """The parts by name."""
        return {"train": self.train, "dev": self.dev, "test": self.test}

    @property
    def shared(self) -> dict[str, list[str]]:
        """Pair of parts ("train and test") -> speakers of both; empty unless overlap was allowed."""
        return _shared(self.parts)

    @property
    def of_unknown_speaker(self) -> dict[str, int]:
        """Part -> clips whose speaker is unknown: that they are nobody of another part cannot be checked."""
        return {name: part.of_unknown_speaker for name, part in self.parts.items() if part.of_unknown_speaker}

    @property
    def dropped(self) -> dict[str, int]:
        """Reason -> clips that the splitting left out."""
        return dict(sum((Counter(part.dropped) for part in self.parts.values()), Counter[str]()))


def split_speakers(manifest: Manifest, dev_fraction: float, test_fraction: float, seed: int) -> Split:
    """Splits a corpus by speaker: the same speakers fall the same way whatever else is in the manifest.

    Clips of unknown speakers only train, and not where a speaker of the same recording is held out: the unknown voice may be
    that speaker. Those clips are left out and counted.

    Raises:
        CorpusError: if no speaker is known.
    """
    known = {clip.speaker for clip in manifest.clips if clip.speaker_known}
    if manifest.clips and not known:
        raise CorpusError(
            "no clip tells its speaker, so no speaker can be held out: give speakers or a published split"
        )
    ranked = sorted(known, key=lambda speaker: _rank(speaker, seed))
    tests = round(test_fraction * len(ranked))
    devs = round(dev_fraction * len(ranked))
    held = set(ranked[: tests + devs])
    recordings = {clip.session for clip in manifest.clips if clip.speaker in held and clip.session}
    train, risky = [], 0
    for clip in manifest.clips:
        if not clip.speaker_known and clip.session in recordings:
            risky += 1
        elif clip.speaker not in held:
            train.append(clip)
    dropped = {"unknown speaker in a recording of a held-out speaker": risky} if risky else {}
    return Split(
        train=Manifest(tuple(train), dropped),
        dev=manifest.of_speakers(ranked[tests : tests + devs]),
        test=manifest.of_speakers(ranked[:tests]),
    )


def published_split(
    manifest: Manifest,
    dev: Sequence[str] = ("dev",),
    test: Sequence[str] = ("test", "test1", "test2", "test3"),
    dev_fraction: float = 0.1,
    seed: int = 0,
    allow_overlap: bool = False,
) -> Split:
    """The split that the corpus itself publishes; its "train" trains.

    Args:
        manifest: clips with their published part.
        dev: published parts that select; none, to draw `dev_fraction` of the training speakers instead.
        test: published parts that test. What is in no part named is left out and counted.
        dev_fraction: see `dev`.
        seed: of that draw.
        allow_overlap: accept speakers on two sides, as MELD's own split has them.

    Raises:
        CorpusError: if the corpus publishes no such parts, or a part is asked for twice.
        LeakageError: if a speaker stands on two sides and that is not allowed.
    """
    names = {"train": ("train",), "dev": tuple(dev), "test": tuple(test)}
    where = {name: part for part, several in names.items() for name in several}
    if len(where) < sum(map(len, names.values())):
        raise CorpusError(f"a published part belongs to one side, got dev = {list(dev)}, test = {list(test)}")
    clips: dict[str, list[Clip]] = {part: [] for part in names}
    dropped: Counter[str] = Counter()
    for clip in manifest.clips:
        part = where.get(clip.split)
        if part is None:
            dropped[f"published part {clip.split!r} not asked for" if clip.split else "in no published part"] += 1
        else:
            clips[part].append(clip)
    empty = [f"{part} ({', '.join(names[part])})" for part in names if names[part] and not clips[part]]
    if empty:
        found = sorted({clip.split for clip in manifest.clips if clip.split})
        raise CorpusError(f"no clip for {'; '.join(empty)}: the corpus publishes {', '.join(found) or 'no split'}")
    train = Manifest(tuple(clips["train"]))
    held = Manifest(tuple(clips["dev"]))
    if not dev:
        drawn = split_speakers(train, dev_fraction, 0.0, seed)
        train, held = drawn.train, drawn.dev
    train = Manifest(train.clips, dict(dropped + Counter(train.dropped)))
    return Split(train, held, Manifest(tuple(clips["test"])), allow_overlap)


def leave_one_session_out(manifest: Manifest) -> dict[str, Split]:
    """Session -> split that tests on it, selects on the next session in order (the first after the last), trains on the rest.

    Raises:
        CorpusError: if a clip tells no session, or there are fewer than three.
        LeakageError: if a speaker is heard in two sessions.
    """
    sessions = sorted({clip.session for clip in manifest.clips})
    if "" in sessions or len(sessions) < 3:
        raise CorpusError(f"leaving one session out needs three sessions and one for every clip, got {sessions[:10]}")
    parts = {name: Manifest(tuple(clip for clip in manifest.clips if clip.session == name)) for name in sessions}
    assert_disjoint(parts)
    splits = {}
    for index, name in enumerate(sessions):
        following = sessions[(index + 1) % len(sessions)]
        rest = tuple(clip for clip in manifest.clips if clip.session not in (name, following))
        splits[name] = Split(train=Manifest(rest), dev=parts[following], test=parts[name])
    return splits


def speaker_folds(manifest: Manifest, folds: int, seed: int) -> list[Manifest]:
    """Cuts a manifest into `folds` parts that share no speaker, all of about one size."""
    ranked = sorted(manifest.speakers, key=lambda speaker: _rank(speaker, seed))
    parts = [manifest.of_speakers(ranked[fold::folds]) for fold in range(folds)]
    assert_disjoint({f"fold {index}": part for index, part in enumerate(parts)})
    return parts


def leave_one_fold_out(manifest: Manifest, folds: int, seed: int) -> list[Split]:
    """A split per fold of speakers: it tests, the next one selects (the first after the last), the rest trains.

    Raises:
        CorpusError: if a clip's speaker is unknown, or there are fewer speakers than folds.
    """
    if unknown := manifest.of_unknown_speaker:
        raise CorpusError(f"{unknown} clips tell no speaker: folds of speakers need one for every clip")
    if not 3 <= folds <= len(manifest.speakers):
        raise CorpusError(
            f"leaving one fold out needs 3 folds or more, each with a speaker: got {folds} folds of "
            f"{len(manifest.speakers)} speakers"
        )
    parts = speaker_folds(manifest, folds, seed)
    splits = []
    for test in range(folds):
        dev = (test + 1) % folds
        training = {name for fold, part in enumerate(parts) if fold not in (test, dev) for name in part.speakers}
        splits.append(Split(train=manifest.of_speakers(training), dev=parts[dev], test=parts[test]))
    return splits


def assert_disjoint(parts: Mapping[str, Manifest]) -> None:
    """Checks that no speaker stands in two parts.

    Raises:
        LeakageError: naming the parts and the speakers.
    """
    shared = _shared(parts)
    if shared:
        lines = [f"{pair} share the speakers {names[:5]}" for pair, names in shared.items()]
        raise LeakageError(f"{'; '.join(lines)}: split by speaker")


def _shared(parts: Mapping[str, Manifest]) -> dict[str, list[str]]:
    speakers = {name: set(part.speakers) for name, part in parts.items()}
    pairs = {f"{a} and {b}": sorted(speakers[a] & speakers[b]) for a, b in combinations(speakers, 2)}
    return {pair: names for pair, names in pairs.items() if names}


def _rank(speaker: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{speaker}".encode()).hexdigest()
