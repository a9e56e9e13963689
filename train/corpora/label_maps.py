"""How each corpus' own labels map to the canonical classes: the one registry of label maps.

A label that has no canonical class maps to None; readers count such rows as dropped and say so.
"""

from typing import Final

from model.labels import CLASSES

LabelMap = dict[str, str | None]

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
    "goemotions": {  # the groups of Demszky et al. (2020); "love", "pride", ... are its positive group
        **dict.fromkeys(("anger", "annoyance", "disapproval"), "angry"),
        "disgust": "disgust",
        **dict.fromkeys(("fear", "nervousness"), "fear"),
        **dict.fromkeys(("sadness", "grief", "disappointment", "remorse", "embarrassment"), "sad"),
        **dict.fromkeys(("surprise", "realization", "confusion", "curiosity"), "surprise"),
        **dict.fromkeys(
            (
                "joy",
                "admiration",
                "amusement",
                "approval",
                "caring",
                "desire",
                "excitement",
                "gratitude",
                "love",
                "optimism",
                "pride",
                "relief",
            ),
            "happy",
        ),
        "neutral": "neutral",
    },
}


def canonical(corpus: str, label: str) -> str | None:
    """The canonical class of a corpus' label, None where it has none.

    Raises:
        KeyError: if the corpus or the label is unknown: a new label is never dropped in silence.
    """
    return LABEL_MAPS[corpus][label]


assert all(name is None or name in CLASSES for labels in LABEL_MAPS.values() for name in labels.values())
