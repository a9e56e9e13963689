"""How each corpus' own labels map to the canonical classes: the one registry of label maps.

A label that has no canonical class carries the reason why it is left out; readers count such rows under that reason.
`docs/corpora.md` shows these tables, and a test compares the two.
"""

from dataclasses import dataclass
from typing import Final

from model.labels import CLASSES


@dataclass(frozen=True, slots=True)
class Dropped:
    """Why a label has no canonical class."""

    reason: str


LabelMap = dict[str, str | Dropped]

_OTHER: Final = Dropped("an emotion that is none of the eight classes")
_FRUSTRATED: Final = Dropped("frustration lies between anger and sadness and is none of the eight classes")
_NO_AGREEMENT: Final = Dropped("the annotators did not agree")

LABEL_MAPS: Final[dict[str, LabelMap]] = {
    "cremad": {"A": "angry", "D": "disgust", "F": "fear", "H": "happy", "N": "neutral", "S": "sad"},
    "cremad-intended": {
        "ANG": "angry",
        "DIS": "disgust",
        "FEA": "fear",
        "HAP": "happy",
        "NEU": "neutral",
        "SAD": "sad",
    },
    "ravdess": {
        "01": "neutral",
        "02": "neutral",  # calm, a second baseline of the same corpus
        "03": "happy",
        "04": "sad",
        "05": "angry",
        "06": "fear",
        "07": "disgust",
        "08": "surprise",
    },
    "msp-podcast": {
        "A": "angry",
        "S": "sad",
        "H": "happy",
        "U": "surprise",
        "F": "fear",
        "D": "disgust",
        "C": "contempt",
        "N": "neutral",
        "O": _OTHER,
        "X": _NO_AGREEMENT,
    },
    "msp-podcast-votes": {  # also the class columns of the challenge's table
        "Angry": "angry",
        "Sad": "sad",
        "Happy": "happy",
        "Surprise": "surprise",
        "Fear": "fear",
        "Disgust": "disgust",
        "Contempt": "contempt",
        "Neutral": "neutral",
        "Other": _OTHER,
    },
    "iemocap": {
        "ang": "angry",
        "hap": "happy",
        "exc": "happy",  # as the four-class task of the literature has it
        "sad": "sad",
        "neu": "neutral",
        "sur": "surprise",
        "fea": "fear",
        "dis": "disgust",
        "fru": _FRUSTRATED,
        "oth": _OTHER,
        "xxx": _NO_AGREEMENT,
    },
    "iemocap-votes": {
        "Anger": "angry",
        "Happiness": "happy",
        "Excited": "happy",
        "Sadness": "sad",
        "Neutral": "neutral",
        "Surprise": "surprise",
        "Fear": "fear",
        "Disgust": "disgust",
        "Frustration": _FRUSTRATED,
        "Other": _OTHER,
    },
    "meld": {
        "anger": "angry",
        "sadness": "sad",
        "joy": "happy",
        "surprise": "surprise",
        "fear": "fear",
        "disgust": "disgust",
        "neutral": "neutral",
    },
    "emodb": {
        "W": "angry",  # Wut
        "T": "sad",  # Trauer
        "F": "happy",  # Freude
        "A": "fear",  # Angst
        "E": "disgust",  # Ekel
        "N": "neutral",
        "L": Dropped("boredom (Langeweile) is none of the eight classes"),
    },
    "table": {
        **{name: name for name in CLASSES},
        "anger": "angry",
        "sadness": "sad",
        "happiness": "happy",
        "joy": "happy",
        "surprised": "surprise",
        "fearful": "fear",
        "disgusted": "disgust",
        "calm": "neutral",
        "other": _OTHER,
        "no agreement": _NO_AGREEMENT,
    },
    "goemotions": {  # the labels that name an emotion itself; with milder ones, everyday sentences are not neutral any more
        "anger": "angry",
        "disgust": "disgust",
        "fear": "fear",
        **dict.fromkeys(("sadness", "grief"), "sad"),
        "surprise": "surprise",
        **dict.fromkeys(("joy", "excitement", "gratitude", "love"), "happy"),
        **dict.fromkeys(
            (
                "admiration",
                "amusement",
                "annoyance",
                "approval",
                "caring",
                "confusion",
                "curiosity",
                "desire",
                "disappointment",
                "disapproval",
                "embarrassment",
                "nervousness",
                "optimism",
                "pride",
                "realization",
                "relief",
                "remorse",
            ),
            Dropped("an attitude, or a milder emotion"),
        ),
        "neutral": "neutral",
    },
}

_FOUR: Final = ("angry", "happy", "sad", "neutral")

LABEL_SETS: Final[dict[str, dict[int, tuple[str, ...]]]] = {
    "cremad": {6: (*_FOUR, "fear", "disgust"), 4: _FOUR},
    "iemocap": {4: _FOUR, 5: (*_FOUR, "surprise"), 6: (*_FOUR, "surprise", "fear")},
    "meld": {7: (*_FOUR, "surprise", "fear", "disgust"), 4: _FOUR},
}
"""The label sets of corpora that are used with several, by number of classes; the first is the default."""


def canonical(corpus: str, label: str) -> str | None:
    """The canonical class of a corpus' label, None where it has none.

    Raises:
        KeyError: if the corpus or the label is unknown: a new label is never dropped in silence.
    """
    found = LABEL_MAPS[corpus][label]
    return None if isinstance(found, Dropped) else found


def why_dropped(corpus: str, label: str) -> str | None:
    """Why a label has no canonical class, None where it has one.

    Raises:
        KeyError: as `canonical`.
    """
    found = LABEL_MAPS[corpus][label]
    return found.reason if isinstance(found, Dropped) else None


assert all(isinstance(name, Dropped) or name in CLASSES for labels in LABEL_MAPS.values() for name in labels.values())
