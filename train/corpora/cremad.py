"""CREMA-D: 91 actors, twelve sentences, six emotions; voice-only ratings as soft targets.

Source: Cao et al. (2014), "CREMA-D: Crowd-sourced Emotional Multimodal Actors Dataset", doi:10.1109/TAFFC.2014.2336244.
Licence: Open Database License 1.0.

Layout, as published: `AudioWAV/ACTOR_SENTENCE_EMOTION_LEVEL.wav`, `finishedResponses.csv` (a row per response, of which those
to the voice alone count), `VideoDemographics.csv`. Or, tabulated: `ACTOR_SENTENCE_EMOTION_LEVEL.(opus|wav|flac)`, `votes.csv`
(clip and voice-only rater counts A D F H N S), `actors.csv`.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from model.labels import CLASSES
from train.corpora.label_maps import LABEL_MAPS, LABEL_SETS, canonical
from train.corpora.options import CorpusOptions
from train.corpora.recordings import recordings
from train.corpora.tables import GENDERS, Problems, read_csv
from train.errors import CorpusError
from train.manifest import Clip, Manifest

_VOICE_ONLY: Final = "1"
"""The query type of responses to the sound alone; 2 is the face, 3 both."""
_SENTENCES: Final = {
    "IEO": "It's eleven o'clock.",
    "TIE": "That is exactly what happened.",
    "IOM": "I'm on my way to the meeting.",
    "IWW": "I wonder what this is about.",
    "TAI": "The airplane is almost full.",
    "MTI": "Maybe tomorrow it will be cold.",
    "IWL": "I would like a new alarm clock.",
    "ITH": "I think I have a doctor's appointment.",
    "DFA": "Don't forget a jacket.",
    "ITS": "I think I've seen this before.",
    "TSI": "The surface is slick.",
    "WSI": "We'll stop in a couple of minutes.",
}


def read_cremad(root: Path, options: CorpusOptions) -> Manifest:
    """Reads the corpus from its folder.

    With fewer than all classes, a clip is kept if the actor was asked for one of them. Raters who heard another emotion are
    then votes for something else.

    Args:
        root: the folder.
        options: `label_set` is 6 or 4 (angry, happy, sad, neutral).

    Raises:
        CorpusError: if a table is missing, rows are wrong (all are named), or no clip has votes.
    """
    sets = LABEL_SETS["cremad"]
    classes = sets[options.label_set or next(iter(sets))]
    problems = Problems()
    votes = _votes(root, problems)
    genders = _genders(root, problems)
    problems.refuse()
    clips: list[Clip] = []
    dropped: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    found = 0
    for path in recordings(root / "AudioWAV" if (root / "AudioWAV").is_dir() else root):
        if path.stem not in votes:
            dropped["clip without votes"] += 1
            continue
        parts = path.stem.split("_")
        if len(parts) != 4 or parts[2] not in LABEL_MAPS["cremad-intended"]:
            known = " ".join(LABEL_MAPS["cremad-intended"])
            raise CorpusError(f"{path}: a clip is named 1001_DFA_ANG_XX with one of {known}, got {path.stem!r}")
        found += 1
        actor, sentence, emotion, _ = parts
        intended = canonical("cremad-intended", emotion)
        if intended not in classes:
            dropped[f"label {emotion}: not in the label set of {len(classes)}"] += 1
            continue
        heard = tuple(count if name in classes else 0.0 for name, count in zip(CLASSES, votes[path.stem], strict=True))
        other = sum(votes[path.stem]) - sum(heard)
        if other and not any(heard):
            heard = tuple(float(name == intended) for name in CLASSES)
            notes["clip without a vote for a class of the label set: the intended emotion is its target"] += 1
        clips.append(
            Clip(
                id=path.stem,
                corpus="cremad",
                audio=path,
                speaker=f"cremad-{actor}",
                votes=heard,
                other_votes=other,
                intended=intended,
                gender=genders.get(actor, ""),
                language="en",
                transcript=_SENTENCES.get(sentence),
            )
        )
    dropped["votes without clip"] = len(votes) - found
    if not clips:
        raise CorpusError(f"{root} holds no CREMA-D clip with votes: expected files such as 1001_DFA_ANG_XX.wav")
    return Manifest(tuple(clips), dict(+dropped), dict(notes))


def _votes(root: Path, problems: Problems) -> dict[str, tuple[float, ...]]:
    """Clip -> voice-only raters per canonical class."""
    table: dict[str, tuple[float, ...]] = {}
    if (root / "votes.csv").is_file():
        for row in read_csv(root / "votes.csv", ("clip", *LABEL_MAPS["cremad"]), problems):
            for column in LABEL_MAPS["cremad"]:
                row.required(column)
            table[row.required("clip")] = _in_order({c: row.number(c, 0.0) for c in LABEL_MAPS["cremad"]})
        return table
    if not (root / "finishedResponses.csv").is_file():
        raise CorpusError(
            f"{root / 'votes.csv'} is missing, and so is finishedResponses.csv: CREMA-D needs one of them"
        )
    counts: dict[str, Counter[str]] = {}
    for row in read_csv(root / "finishedResponses.csv", ("queryType", "clipName", "respEmo"), problems):
        if row.get("queryType") != _VOICE_ONLY:
            continue
        if row.get("respEmo") not in LABEL_MAPS["cremad"]:
            row.wrong("respEmo", f"one of {' '.join(LABEL_MAPS['cremad'])}")
            continue
        counts.setdefault(row.required("clipName"), Counter())[row.get("respEmo")] += 1
    return {clip: _in_order(heard) for clip, heard in counts.items()}


def _in_order(heard: Mapping[str, float]) -> tuple[float, ...]:
    votes = dict.fromkeys(CLASSES, 0.0)
    for code, count in heard.items():
        name = canonical("cremad", code)
        assert name is not None, "every code of this corpus has a class"
        votes[name] += count
    return tuple(votes.values())


def _genders(root: Path, problems: Problems) -> dict[str, str]:
    """Actor -> gender, from whichever table is there."""
    for path in (root / "actors.csv", root / "VideoDemographics.csv"):
        if path.is_file():
            rows = read_csv(path, ("ActorID", "Sex"), problems)
            return {row.get("ActorID"): row.choice("Sex", GENDERS) for row in rows}
    return {}
