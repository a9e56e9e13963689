"""CREMA-D: 91 actors, twelve sentences, six emotions; voice-only ratings as soft targets.

Source: Cao et al. (2014), "CREMA-D: Crowd-sourced Emotional Multimodal Actors Dataset", doi:10.1109/TAFFC.2014.2336244.
Licence: Open Database License 1.0.

Layout: `ACTOR_SENTENCE_EMOTION_LEVEL.(opus|wav|flac)`, `votes.csv` (clip and rater counts A D F H N S), `actors.csv`.
"""

import csv
from collections import Counter
from pathlib import Path
from typing import Final

from model.labels import CLASSES
from train.corpora.label_maps import canonical
from train.errors import CorpusError
from train.manifest import Clip, Manifest

_VOTE_COLUMNS: Final = ("A", "D", "F", "H", "N", "S")
AUDIO_SUFFIXES: Final = (".opus", ".wav", ".flac", ".mp3")


def read_cremad(root: Path) -> Manifest:
    """Reads the corpus from its folder.

    Raises:
        CorpusError: if a table is missing or no clip has votes.
    """
    votes = _votes(root / "votes.csv")
    genders = _genders(root / "actors.csv")
    clips: list[Clip] = []
    dropped: Counter[str] = Counter()
    for path in sorted(path for path in root.iterdir() if path.suffix in AUDIO_SUFFIXES):
        if path.stem not in votes:
            dropped["clip without votes"] += 1
            continue
        actor, _, emotion, _ = path.stem.split("_")
        clips.append(
            Clip(
                id=path.stem,
                corpus="cremad",
                audio=path,
                speaker=f"cremad-{actor}",
                votes=votes[path.stem],
                intended=canonical("cremad-intended", emotion),
                gender=genders.get(actor, ""),
            )
        )
    dropped["votes without clip"] = len(votes) - len(clips)
    if not clips:
        raise CorpusError(f"{root} holds no CREMA-D clip with votes: expected files such as 1001_DFA_ANG_XX.wav")
    return Manifest(tuple(clips), {reason: count for reason, count in dropped.items() if count})


def _votes(path: Path) -> dict[str, tuple[float, ...]]:
    if not path.is_file():
        raise CorpusError(f"{path} is missing: CREMA-D needs its table of votes (clip,A,D,F,H,N,S)")
    table: dict[str, tuple[float, ...]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            counts = dict.fromkeys(CLASSES, 0.0)
            for column in _VOTE_COLUMNS:
                name = canonical("cremad", column)
                assert name is not None
                counts[name] += float(row[column])
            table[row["clip"]] = tuple(counts.values())
    return table


def _genders(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {row["ActorID"]: row["Sex"].lower() for row in csv.DictReader(file)}
