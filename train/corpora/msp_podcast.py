"""MSP-Podcast: spontaneous speech from podcasts; five and more workers a clip name one of eight emotions and rate attributes.

Source: Lotfian & Busso (2019), "Building Naturalistic Emotionally Balanced Speech Corpus by Retrieving Emotional Speech from
Existing Podcast Recordings", doi:10.1109/TAFFC.2017.2736999; the challenge: Naini et al. (Interspeech 2025).

Layout: `Audios/MSP-PODCAST_0001_0008.wav`, `Labels/labels_consensus.csv` (a row per clip), `Labels/labels_detailed.csv` (a row
per clip and worker), optionally `Transcripts/MSP-PODCAST_0001_0008.txt`. Instead of the consensus table, the challenge's:
`FileName, Angry, ..., Neutral, EmoAct, EmoVal, EmoDom, Split_Set`.

Clips without agreement (X) and those agreed on another emotion (O) are kept, as the paper keeps them ("XO"): `consensus` is
None and the votes are the target. Attributes are rated on 1..7, the project's own scale.
"""

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from model.labels import ATTRIBUTE_RANGE, CLASSES
from train.corpora.label_maps import LABEL_MAPS, canonical, why_dropped
from train.corpora.options import CorpusOptions
from train.corpora.recordings import NO_RECORDING, recordings_below
from train.corpora.tables import GENDERS, SPLITS, Problems, Row, read_csv
from train.errors import CorpusError
from train.manifest import Clip, Manifest, dominant, dominant_class, unknown_speaker

_CONSENSUS: Final = "labels_consensus.csv"
_DETAILED: Final = "labels_detailed.csv"
_ATTRIBUTES: Final = ("EmoAct", "EmoVal", "EmoDom")
_CONSENSUS_COLUMNS: Final = ("FileName", "EmoClass", *_ATTRIBUTES, "SpkrID", "Gender", "Split_Set")
_CLASS_COLUMNS: Final = tuple(name for name in LABEL_MAPS["msp-podcast-votes"] if name != "Other")
_CHALLENGE_COLUMNS: Final = ("FileName", *_CLASS_COLUMNS, *_ATTRIBUTES, "Split_Set")


@dataclass(slots=True)
class _Ballot:
    """Votes of a clip per canonical class, and for anything else."""

    votes: list[float]
    other: float = 0.0


@dataclass(frozen=True, slots=True)
class _Voice:
    """Who speaks in a clip."""

    speaker: str
    known: bool
    gender: str
    podcast: str


@dataclass(frozen=True, slots=True)
class _Folder:
    """What a row of the label table is joined with, all by the clip's name."""

    root: Path
    challenge: bool
    ballots: dict[str, _Ballot]
    speakers: dict[str, Row]
    audio: dict[str, Path]


def read_msp_podcast(root: Path, options: CorpusOptions) -> Manifest:
    """Reads the corpus from its folder.

    Args:
        root: the folder.
        options: `labels` names another label table than `Labels/labels_consensus.csv`, of either layout.

    Raises:
        CorpusError: if the label table is missing, rows are wrong (all are named), or no clip is left.
    """
    labels = root / "Labels" if (root / "Labels").is_dir() else root
    table = root / options.labels if options.labels else labels / _CONSENSUS
    challenge = _is_challenge(table)
    problems = Problems()
    dropped: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    folder = _Folder(
        root=root,
        challenge=challenge,
        ballots=_worker_votes(labels / _DETAILED, problems, notes),
        speakers=_speakers(labels / _CONSENSUS, problems) if challenge else {},
        audio=recordings_below(root / "Audios"),
    )
    clips: list[Clip] = []
    seen: set[str] = set()
    for row in read_csv(table, _CHALLENGE_COLUMNS if challenge else _CONSENSUS_COLUMNS, problems):
        name = Path(row.required("FileName")).stem
        if name in seen:
            row.wrong("FileName", "listed once")
        seen.add(name)
        clip = _clip(name, row, folder)
        if isinstance(clip, str):
            dropped[clip] += 1
            continue
        clips.append(clip)
        notes.update(_notes_of(clip, challenge or name in folder.ballots))
    problems.refuse()
    if not clips:
        raise CorpusError(f"{table} labels no recording below {root / 'Audios'}; left out: {dict(dropped)}")
    return Manifest(tuple(sorted(clips, key=lambda clip: clip.id)), dict(dropped), dict(notes))


def _clip(name: str, row: Row, folder: _Folder) -> Clip | str:
    """The clip of a row, or why it is left out; the whole row is checked in either case."""
    published, consensus = _challenge_label(row) if folder.challenge else _consensus_label(row)
    ballot = folder.ballots.get(name, published)
    arousal, valence, dominance = (row.number(column, *ATTRIBUTE_RANGE) for column in _ATTRIBUTES)
    split = row.choice("Split_Set", SPLITS)
    voice = _voice(name, folder.speakers.get(name, row))
    reason = _why_not(row, ballot, name in folder.audio)
    return reason or Clip(
        id=name,
        corpus="msp-podcast",
        audio=folder.audio[name],
        speaker=voice.speaker,
        speaker_known=voice.known,
        votes=tuple(ballot.votes),
        other_votes=ballot.other,
        consensus=consensus,
        attributes=(arousal, valence, dominance),
        gender=voice.gender,
        language="en",
        split=split,
        transcript=_transcript(folder.root / "Transcripts" / f"{name}.txt"),
        session=voice.podcast,
    )


def _is_challenge(table: Path) -> bool:
    if not table.is_file():
        raise CorpusError(
            f"{table} is missing: MSP-Podcast needs labels_consensus.csv or the challenge's table of labels"
        )
    with table.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        header = {name.strip() for name in next(csv.reader(file), [])}
    return "EmoClass" not in header and set(_CLASS_COLUMNS) <= header


def _consensus_label(row: Row) -> tuple[_Ballot, str | None]:
    """One vote for the agreed class, in case there are no workers' votes; none for X."""
    code = row.get("EmoClass")
    if code and code not in LABEL_MAPS["msp-podcast"]:
        row.wrong("EmoClass", f"one of {' '.join(LABEL_MAPS['msp-podcast'])}")
        code = ""
    name = canonical("msp-podcast", code) if code else None
    return _Ballot([float(name == other) for other in CLASSES], float(code == "O")), name


def _challenge_label(row: Row) -> tuple[_Ballot, str | None]:
    shares = {canonical("msp-podcast-votes", column): row.number(column, 0.0) for column in _CLASS_COLUMNS}
    votes = np.nan_to_num(np.array([shares[name] for name in CLASSES]))
    best = dominant(votes)
    return _Ballot(votes.tolist()), None if best is None else CLASSES[best]


def _worker_votes(path: Path, problems: Problems, notes: Counter[str]) -> dict[str, _Ballot]:
    """Clip -> its workers' primary votes, from the table with columns or the one with a line of text per worker."""
    ballots: dict[str, _Ballot] = {}
    if not path.is_file():
        return ballots
    known = LABEL_MAPS["msp-podcast-votes"]
    for row in read_csv(path, ("FileName",), problems):
        primary = _primary(row)
        if primary is None:
            continue
        ballot = ballots.setdefault(Path(row.required("FileName")).stem, _Ballot([0.0] * len(CLASSES)))
        name = known.get(primary.capitalize())
        if isinstance(name, str):
            ballot.votes[CLASSES.index(name)] += 1
            continue
        ballot.other += 1
        # workers may write a word of their own, published as "Other-word"; a word without that is said apart
        notes[
            "votes for another emotion" if primary.startswith("Other") else "votes with a label that is not known"
        ] += 1
    if ballots and not any(any(ballot.votes) for ballot in ballots.values()):
        raise CorpusError(f"{path} holds no vote for {', '.join(_CLASS_COLUMNS)}: is it the table of workers?")
    return ballots


def _primary(row: Row) -> str | None:
    """The worker's primary emotion: column `EmoClass_Major`, or the second part of `EmoDetail`."""
    if "EmoClass_Major" in row.values:
        return row.required("EmoClass_Major") or None
    parts = [part.strip() for part in row.get("EmoDetail").split(";")]
    if len(parts) > 1 and parts[1]:
        return parts[1]
    row.wrong(
        "EmoDetail", "such as 'WORKER00000001; Angry; Annoyed; A:5.0; V:3.0; D:4.0;' (or a column EmoClass_Major)"
    )
    return None


def _speakers(path: Path, problems: Problems) -> dict[str, Row]:
    """The challenge's table has no speakers: they are in the consensus table, where that lies beside it."""
    if not path.is_file():
        return {}
    return {Path(row.get("FileName")).stem: row for row in read_csv(path, _CONSENSUS_COLUMNS, problems)}


def _voice(name: str, row: Row) -> _Voice:
    """Speaker and gender; the podcast is the clip's name without its last number."""
    podcast = name.rpartition("_")[0]
    speaker = row.get("SpkrID")
    known = speaker.lower() not in ("", "unknown")
    return _Voice(
        speaker=f"msp-podcast-{speaker}" if known else unknown_speaker("msp-podcast", podcast),
        known=known,
        gender=row.choice("Gender", GENDERS),
        podcast=podcast,
    )


def _why_not(row: Row, ballot: _Ballot, recorded: bool) -> str:
    """Why a row is left out, "" where it is not."""
    if not recorded:
        return NO_RECORDING
    if any(ballot.votes):
        return ""
    if ballot.other:
        return f"votes only for {why_dropped('msp-podcast-votes', 'Other')}"
    if row.get("EmoClass") == "X":
        return f"{why_dropped('msp-podcast', 'X')}, and their votes are not there"
    return "no label and no votes"


def _notes_of(clip: Clip, voted: bool) -> list[str]:
    """What a reader of figures must know of a clip."""
    best = dominant_class(clip, 0.0)
    contradicted = clip.consensus is not None and (best is None or CLASSES[best] != clip.consensus)
    said = {
        "clip of an unknown speaker": not clip.speaker_known,
        "clip without agreement (XO)": clip.consensus is None,
        "agreed class is not the one with most votes": contradicted,
        "clip without workers' votes: the agreed class is its target": not voted,
    }
    return [reason for reason, holds in said.items() if holds]


def _transcript(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else None
