"""The only list of emotion classes and attributes in the project, in canonical order."""

from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

CLASSES: Final = ("angry", "sad", "happy", "surprise", "fear", "disgust", "contempt", "neutral")
"""Emotion classes in canonical order: every vector of eight in the project has this order."""

ATTRIBUTES: Final = ("arousal", "valence", "dominance")
"""Emotion attributes in canonical order."""

ATTRIBUTE_RANGE: Final = (1.0, 7.0)
"""Lowest and highest value of an attribute (the self-assessment manikin scale)."""

CLASS_INDEX: Final = {name: index for index, name in enumerate(CLASSES)}


def class_mask(trained: Iterable[str]) -> npt.NDArray[np.bool_]:
    """`bool [8]`: true where a class was trained.

    Raises:
        ValueError: if a name is no class of ours, or none is given.
    """
    names = set(trained)
    unknown = sorted(names - set(CLASSES))
    if unknown:
        raise ValueError(f"unknown emotion classes {unknown}: the classes are {', '.join(CLASSES)}")
    if not names:
        raise ValueError("at least one emotion class must be trained")
    return np.array([name in names for name in CLASSES])
