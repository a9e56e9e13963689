"""GoEmotions: English comments labelled with the emotion of their WORDS.

Source: Demszky et al. (2020), "GoEmotions: A Dataset of Fine-Grained Emotions", arXiv:2005.00547. Licence: CC BY 4.0.

Layout: `train.tsv`, `dev.tsv` (text, comma-separated label ids, comment id) and `labels.txt` (a label a line).
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from train.corpora.label_maps import canonical
from train.errors import CorpusError


@dataclass(frozen=True, slots=True)
class Sentence:
    """A text and the one canonical emotion that its words carry."""

    id: str
    text: str
    emotion: str


@dataclass(frozen=True, slots=True)
class Sentences:
    """Texts of one part of the corpus, and reason -> number of rows left out."""

    rows: tuple[Sentence, ...]
    dropped: dict[str, int]


def read_goemotions(root: Path, part: str, classes: Iterable[str]) -> Sentences:
    """Reads the sentences whose labels agree on one of `classes`.

    Args:
        root: the corpus' folder.
        part: "train" or "dev".
        classes: canonical classes that are wanted.

    Raises:
        CorpusError: if a file is missing.
    """
    table, names = root / f"{part}.tsv", root / "labels.txt"
    for path in (table, names):
        if not path.is_file():
            raise CorpusError(f"{path} is missing: GoEmotions needs train.tsv, dev.tsv and labels.txt")
    labels = names.read_text(encoding="utf-8").split()
    wanted = set(classes)
    rows: list[Sentence] = []
    dropped: Counter[str] = Counter()
    for line in table.read_text(encoding="utf-8").splitlines():
        text, ids, comment = line.split("\t")
        emotions = {canonical("goemotions", labels[int(index)]) for index in ids.split(",")}
        emotion = emotions.pop()
        if emotion is None or None in emotions:
            dropped["a label that names no emotion itself"] += 1
        elif emotions:
            dropped["labels of several classes"] += 1
        elif emotion not in wanted:
            dropped["class that the corpus of speech does not have"] += 1
        else:
            rows.append(Sentence(comment, text, emotion))
    return Sentences(tuple(rows), dict(dropped))
