"""RAVDESS speech: 24 actors, two sentences, eight emotions, no ratings: the acted emotion is the label.

Source: Livingstone & Russo (2018), doi:10.1371/journal.pone.0196391. Licence: CC BY-NC-SA 4.0, so it evaluates models
and never enters a bundle that ships.

Layout: `MODALITY-CHANNEL-EMOTION-INTENSITY-STATEMENT-REPETITION-ACTOR.(opus|wav|flac)`.
"""

from collections import Counter
from pathlib import Path

from model.labels import CLASSES
from train.corpora.cremad import AUDIO_SUFFIXES
from train.corpora.label_maps import canonical
from train.errors import CorpusError
from train.manifest import Clip, Manifest

_SAME_RECORDING = "03-01-03-01-02-02-07"
"""Actor 7's second repetition is a copy of the first (03-01-03-01-02-01-07)."""


def read_ravdess(root: Path) -> Manifest:
    """Reads the corpus from its folder.

    Raises:
        CorpusError: if the folder holds no RAVDESS clip.
    """
    if not root.is_dir():
        raise CorpusError(f"{root} is no folder: expected RAVDESS clips such as 03-01-05-01-01-01-12.wav")
    clips: list[Clip] = []
    dropped: Counter[str] = Counter()
    for path in sorted(path for path in root.iterdir() if path.suffix in AUDIO_SUFFIXES):
        if path.stem == _SAME_RECORDING:
            dropped["copy of another recording"] += 1
            continue
        fields = path.stem.split("-")
        if len(fields) != 7:
            dropped["not named as a clip"] += 1
            continue
        emotion, actor = fields[2], fields[6]
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
            )
        )
    if not clips:
        raise CorpusError(f"{root} holds no RAVDESS clip: expected files such as 03-01-05-01-01-01-12.wav")
    return Manifest(tuple(clips), dict(dropped))
