"""IEMOCAP: ten actors in five sessions of two, scripted and improvised; three raters a turn and more.

Source: Busso et al. (2008), "IEMOCAP: interactive emotional dyadic motion capture database", doi:10.1007/s10579-008-9076-6.

Layout: `Session1..5/dialog/EmoEvaluation/DIALOG.txt`, `Session1..5/dialog/transcriptions/DIALOG.txt` (optional) and
`Session1..5/sentences/wav/DIALOG/TURN.wav`. An evaluation file holds, per turn::

    [6.2901 - 8.2357]   Ses01F_impro01_F000   neu   [2.5000, 2.5000, 2.5000]
    C-E2:   Neutral;    ()
    C-E3:   Neutral; Anger;   (curious)
    A-E3:   val 3; act 2; dom  2;   ()

The summary's numbers are valence, activation, dominance on 1..5. Raters named E are outsiders; F and M are the actors rating
themselves, whom the published consensus leaves out, and so do the votes here.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from model.labels import CLASSES
from train.corpora.label_maps import LABEL_MAPS, LABEL_SETS, canonical, why_dropped
from train.corpora.options import CorpusOptions
from train.corpora.recordings import NO_RECORDING
from train.corpora.tables import Problems
from train.errors import CorpusError
from train.manifest import Clip, Manifest, rescale

_SCALE: Final = (1.0, 5.0)
_SUMMARY: Final = re.compile(r"\[\d+\.\d+ - \d+\.\d+\]\t(\S+)\t(\S+)\t\[([\d.]+), ([\d.]+), ([\d.]+)\]")
_TURN: Final = re.compile(r"(Ses\d\d)[FM]_.+_([FM])[^_]+")
"""Session and, from the LAST part, who speaks: the letter after the session's number says who wore the markers."""
_RATER: Final = re.compile(r"([CA])-(E\d+|[FM]\d*):\s*(.*?)\s*(\(.*)?")
_RATING: Final = re.compile(r"(val|act|dom)\s*([\d.]+)")
_TRANSCRIPT: Final = re.compile(r"(\S+) \[[\d.]+-[\d.]+\]:\s*(.*)")


@dataclass(slots=True)
class _Turn:
    """One turn as its evaluation file has it; ratings are (arousal, valence, dominance) on 1..5."""

    id: str
    label: str
    summary: tuple[float, ...]
    choices: list[list[str]] = field(default_factory=list)
    ratings: list[dict[str, float]] = field(default_factory=list)


def read_iemocap(root: Path, options: CorpusOptions) -> Manifest:
    """Reads the corpus from its folder.

    A turn whose published label is a class of the label set is kept, and so is one on which the raters did not agree ("xxx"),
    if one of them voted for a class of the set. A rater who names two emotions gives half a vote to each.

    Args:
        root: the folder that holds `Session1`.
        options: `label_set` is 4 (angry, happy with excited, sad, neutral), 5 (and surprise) or 6 (and fear).

    Raises:
        CorpusError: if the folder is not the corpus or lines are wrong (all are named).
    """
    sets = LABEL_SETS["iemocap"]
    classes = sets[options.label_set or next(iter(sets))]
    problems = Problems()
    dropped: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    clips: list[Clip] = []
    for path in sorted(root.glob("Session[1-5]/dialog/EmoEvaluation/Ses*.txt")):
        folder = path.parents[2] / "sentences" / "wav" / path.stem
        words = _transcripts(path.parents[1] / "transcriptions" / path.name)
        for turn in _turns(path, problems, notes):
            audio = folder / f"{turn.id}.wav"
            reason = _why_not(turn, classes, audio)
            if reason:
                dropped[reason] += 1
                continue
            clips.append(_clip(turn, audio, classes, words.get(turn.id), notes))
    problems.refuse()
    if not clips:
        raise CorpusError(
            f"{root} holds no IEMOCAP turn: expected Session1/dialog/EmoEvaluation/Ses01F_impro01.txt and "
            f"Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav; left out: {dict(dropped)}"
        )
    return Manifest(tuple(sorted(clips, key=lambda clip: clip.id)), dict(dropped), dict(notes))


def _why_not(turn: _Turn, classes: Sequence[str], audio: Path) -> str:
    """Why a turn is left out, "" where it is not."""
    if not audio.is_file():
        return NO_RECORDING
    name = canonical("iemocap", turn.label)
    if name is not None:
        return "" if name in classes else f"label {turn.label}: not in the label set of {len(classes)}"
    if turn.label != "xxx":
        return f"label {turn.label}: {why_dropped('iemocap', turn.label)}"
    return "" if any(_votes(turn, classes)[0]) else "label xxx: no vote for a class of the label set"


def _clip(turn: _Turn, audio: Path, classes: Sequence[str], words: str | None, notes: Counter[str]) -> Clip:
    match = _TURN.fullmatch(turn.id)
    assert match, "turns of another form are refused when they are read"
    session, sex = match.groups()
    votes, other = _votes(turn, classes)
    consensus = canonical("iemocap", turn.label)
    if not any(votes):  # the published label stands where raters' lines do not
        votes = [float(name == consensus) for name in CLASSES]
        notes["turn without raters' votes: the published label is its target"] += 1
    if consensus is None:
        notes["turn without agreement (XO)"] += 1
    arousal, valence, dominance = (rescale(value, *_SCALE) for value in _attributes(turn, notes))
    return Clip(
        id=turn.id,
        corpus="iemocap",
        audio=audio,
        speaker=f"iemocap-{session}{sex}",
        votes=tuple(votes),
        other_votes=other,
        consensus=consensus,
        attributes=(arousal, valence, dominance),
        gender="female" if sex == "F" else "male",
        language="en",
        transcript=words,
        session=session,
    )


def _votes(turn: _Turn, classes: Sequence[str]) -> tuple[list[float], float]:
    """Votes per canonical class and for anything else; every rater has one vote."""
    votes, other = [0.0] * len(CLASSES), 0.0
    for labels in turn.choices:
        for label in labels:
            name = canonical("iemocap-votes", label)
            if name in classes:
                votes[CLASSES.index(name)] += 1.0 / len(labels)
            else:
                other += 1.0 / len(labels)
    return votes, other


def _attributes(turn: _Turn, notes: Counter[str]) -> Iterator[float]:
    """Mean rating of arousal, valence, dominance; the summary's where no rater's line has one; NaN where neither has."""
    low, high = _SCALE
    for key, published in zip(("act", "val", "dom"), turn.summary, strict=True):
        given = [ratings[key] for ratings in turn.ratings if key in ratings] or [published]
        inside = [rating for rating in given if low <= rating <= high]
        if len(inside) < len(given):
            notes["rating outside 1..5, not used"] += len(given) - len(inside)
        yield sum(inside) / len(inside) if inside else math.nan


def _turns(path: Path, problems: Problems, notes: Counter[str]) -> list[_Turn]:
    turns: list[_Turn] = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if line.startswith("["):
            turn = _summary(path, number, line.rstrip(), problems)
            turns += [turn] if turn else []
        elif (rater := _RATER.fullmatch(line)) and turns:
            if rater[2].startswith("E"):
                _rate(turns[-1], rater[1], rater[3], path, number, problems)
        elif line.strip() and not line.startswith("%"):
            notes["line of an evaluation that is neither turn nor rating, not used"] += 1
    return turns


def _summary(path: Path, number: int, line: str, problems: Problems) -> _Turn | None:
    match = _SUMMARY.fullmatch(line)
    if not match or not _TURN.fullmatch(match[1]):
        form = "'[6.29 - 8.23]<tab>Ses01F_impro01_F000<tab>neu<tab>[2.5, 2.5, 2.5]'"
        problems.add(path, number, f"a turn must look like {form}, got {line!r:.100}")
        return None
    if match[2] not in LABEL_MAPS["iemocap"]:
        problems.add(path, number, f"label must be one of {' '.join(LABEL_MAPS['iemocap'])}, got {match[2]!r}")
        return None
    valence, activation, dominance = (float(match[index]) for index in (3, 4, 5))
    return _Turn(match[1], match[2], (activation, valence, dominance))


def _rate(turn: _Turn, kind: str, text: str, path: Path, number: int, problems: Problems) -> None:
    if kind == "A":
        turn.ratings.append({name: float(value) for name, value in _RATING.findall(text)})
        return
    labels = [label.strip() for label in text.split(";") if label.strip()]
    known = LABEL_MAPS["iemocap-votes"]
    for label in labels:
        if label not in known:
            problems.add(path, number, f"a rater's emotion must be one of {', '.join(known)}, got {label!r}")
    if labels and all(label in known for label in labels):
        turn.choices.append(labels)


def _transcripts(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return {match[1]: match[2].strip() for line in lines if (match := _TRANSCRIPT.fullmatch(line))}
