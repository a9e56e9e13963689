"""MELD: dialogues of the series "Friends", cut into utterances with seven emotions.

Source: Poria et al. (2019), "MELD: A Multimodal Multi-Party Dataset for Emotion Recognition in Conversations",
arXiv:1810.02508.

Layout: `train_sent_emo.csv`, `dev_sent_emo.csv`, `test_sent_emo.csv`, and the clips as they unpack, `train_splits/`,
`dev_splits_complete/`, `output_repeated_splits_test/`, each with `dia0_utt0.mp4` or audio of that name.

The six main characters speak in all three published parts: a split by speaker, or a recipe that asks for the published split
with its overlap, is needed (`published_split`). One label an utterance is published, no votes.
"""

import re
from collections import Counter
from pathlib import Path
from typing import Final

from model.labels import CLASSES
from train.corpora.label_maps import LABEL_MAPS, LABEL_SETS, canonical
from train.corpora.options import CorpusOptions
from train.corpora.recordings import NO_RECORDING, recordings
from train.corpora.tables import Problems, Row, read_csv
from train.errors import CorpusError
from train.manifest import Clip, Manifest

_COLUMNS: Final = ("Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID")
_FOLDERS: Final = {
    "train": ("train_splits",),
    "dev": ("dev_splits_complete", "dev_splits"),
    "test": ("output_repeated_splits_test", "test_splits"),
}
_SEVERAL: Final = re.compile(r"\band\b|[/&,+]|^(all|both|everyone|everybody|others|together)$", re.IGNORECASE)
"""Speakers who are several: their utterance has no one voice."""


def read_meld(root: Path, options: CorpusOptions) -> Manifest:
    """Reads the corpus from its folder.

    Args:
        root: the folder.
        options: `label_set` is 7 or 4 (angry, happy, sad, neutral).

    Raises:
        CorpusError: if a table is missing, rows are wrong (all are named), or no utterance has a recording.
    """
    sets = LABEL_SETS["meld"]
    classes = sets[options.label_set or next(iter(sets))]
    problems = Problems()
    dropped: Counter[str] = Counter()
    clips: list[Clip] = []
    for split, folders in _FOLDERS.items():
        audio = {path.stem: path for folder in reversed(folders) for path in recordings(root / folder)}
        seen: set[str] = set()
        for row in read_csv(root / f"{split}_sent_emo.csv", _COLUMNS, problems):
            name = f"dia{_whole(row, 'Dialogue_ID')}_utt{_whole(row, 'Utterance_ID')}"
            if name in seen:
                row.wrong("Utterance_ID", "listed once a dialogue")
            seen.add(name)
            speaker = " ".join(row.required("Speaker").split())
            label = row.get("Emotion").lower()
            if label not in LABEL_MAPS["meld"]:
                row.wrong("Emotion", f"one of {', '.join(LABEL_MAPS['meld'])}")
                continue
            consensus = canonical("meld", label)
            if name not in audio:
                dropped[NO_RECORDING] += 1
            elif _SEVERAL.search(speaker):
                dropped["several speakers at once"] += 1
            elif consensus not in classes:
                dropped[f"label {label}: not in the label set of {len(classes)}"] += 1
            else:
                clips.append(
                    Clip(
                        id=f"{split}_{name}",
                        corpus="meld",
                        audio=audio[name],
                        speaker=f"meld-{speaker.lower()}",
                        votes=tuple(float(consensus == other) for other in CLASSES),
                        consensus=consensus,
                        language="en",
                        split=split,
                        transcript=_repaired(row.get("Utterance")),
                        session=_episode(row),
                    )
                )
    problems.refuse()
    if not clips:
        raise CorpusError(
            f"{root} holds no MELD recording: expected train_splits/dia0_utt0.mp4, left out: {dict(dropped)}"
        )
    return Manifest(tuple(sorted(clips, key=lambda clip: clip.id)), dict(dropped))


def _whole(row: Row, column: str) -> str:
    if not row.get(column).isdecimal():
        row.wrong(column, "a whole number")
    return row.get(column)


def _episode(row: Row) -> str:
    season, episode = row.get("Season"), row.get("Episode")
    return f"season {season} episode {episode}" if season and episode else ""


def _repaired(text: str) -> str:
    """The published tables hold Windows-1252 punctuation read as Latin-1: U+0092 is an apostrophe."""
    return re.sub("[\x80-\x9f]", lambda match: match[0].encode("latin-1").decode("cp1252", errors="ignore"), text)
