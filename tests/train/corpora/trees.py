"""What the trees of made-up corpora are built from."""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path

import av
import numpy as np

from model.labels import CLASSES
from tests.train.synthetic import write_wav
from train.manifest import Clip, Manifest

SILENCE = np.zeros(1600, np.float32)
TURNS_HEADER = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"


def wav(path: Path) -> Path:
    """A tenth of a second, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_wav(path, SILENCE)
    return path


def mp4(path: Path) -> Path:
    """A tenth of a second of AAC in MP4, as MELD's clips carry their sound."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(SILENCE[None], format="fltp", layout="mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def table(path: Path, rows: Iterable[Mapping[str, object]]) -> Path:
    """A CSV file; the first row's keys are the header."""
    rows = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_dialogue(root: Path, session: int, dialogue: str, text: str) -> None:
    """A dialogue of IEMOCAP: what its raters wrote, and a recording of every turn."""
    folder = root / f"Session{session}"
    path = folder / "dialog" / "EmoEvaluation" / f"{dialogue}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(TURNS_HEADER + text, encoding="utf-8")
    for line in text.splitlines():
        if line.startswith("[") and line.count("\t") == 3:
            wav(folder / "sentences" / "wav" / dialogue / f"{line.split()[3]}.wav")


def heard(clip: Clip) -> dict[str, float]:
    """The votes that are not zero."""
    return {name: votes for name, votes in zip(CLASSES, clip.votes, strict=True) if votes}


def by_id(manifest: Manifest) -> dict[str, Clip]:
    """Clips by id."""
    assert [clip.id for clip in manifest.clips] == sorted(clip.id for clip in manifest.clips)
    return {clip.id: clip for clip in manifest.clips}
