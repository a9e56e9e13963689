"""RAVDESS speech: 24 actors, two sentences, eight emotions, no ratings: the acted emotion is the label.

Source: Livingstone & Russo (2018), doi:10.1371/journal.pone.0196391. Licence: CC BY-NC-SA 4.0, so it evaluates models
and never enters a bundle that ships.

Layout, with or without folders `Actor_01`: `MODALITY-CHANNEL-EMOTION-INTENSITY-STATEMENT-REPETITION-ACTOR.(opus|wav|flac)`.
"""

from collections import Counter
from pathlib import Path
from typing import Final

from model.labels import CLASSES
from train.corpora.label_maps import LABEL_MAPS, canonical
from train.corpora.recordings import recordings_below
from train.errors import CorpusError
from train.manifest import Clip, Manifest

_SAME_RECORDING = "03-01-03-01-02-02-07"
"""Actor 7's second repetition is a copy of the first (03-01-03-01-02-01-07)."""
_SPEECH: Final = ["03", "01"]
"""Modality and channel: sound alone, spoken."""
_STATEMENTS: Final = {"01": "Kids are talking by the door.", "02": "Dogs are sitting by the door."}


def read_ravdess(root: Path) -> Manifest:
    """Reads the corpus from its folder.

    Raises:
        CorpusError: if the folder holds no RAVDESS clip, or a clip's name has a code that the corpus does not have.
    """
    if not root.is_dir():
        raise CorpusError(f"{root} is no folder: expected RAVDESS clips such as 03-01-05-01-01-01-12.wav")
    clips: list[Clip] = []
    dropped: Counter[str] = Counter()
    for _, path in sorted(recordings_below(root).items()):
        if path.stem == _SAME_RECORDING:
            dropped["copy of another recording"] += 1
            continue
        fields = path.stem.split("-")
        if len(fields) != 7:
            dropped["not named as a clip"] += 1
            continue
        if fields[:2] != _SPEECH:
            dropped["video or song"] += 1
            continue
        emotion, actor = fields[2], fields[6]
        if emotion not in LABEL_MAPS["ravdess"] or not actor.isdecimal():
            raise CorpusError(f"{path}: the third part is 01..08 and the last the actor's number, got {path.stem!r}")
        name = canonical("ravdess", emotion)
        clips.append(
            Clip(
                id=path.stem,
                corpus="ravdess",
                audio=path,
                speaker=f"ravdess-{actor}",
                votes=tuple(float(name == other) for other in CLASSES),
                intended=name,
                gender="male" if int(actor) % 2 else "female",
                language="en",
                transcript=_STATEMENTS.get(fields[4]),
            )
        )
    if not clips:
        raise CorpusError(f"{root} holds no RAVDESS clip: expected files such as 03-01-05-01-01-01-12.wav")
    return Manifest(tuple(clips), dict(dropped))
