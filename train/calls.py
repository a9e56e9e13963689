"""Clips dealt into calls: in which order a channel would have heard them, for training and judging adaptation to channels.

A corpus is a heap of clips; the daemon hears utterances one after the other. Every speaker's clips are dealt into calls, each
clip into exactly one, and follow each other there in a random order. A call may be one-sided: people who are angry are often
angry throughout, and a model that always heard balanced calls would take that mood for their voice.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from model.adaptation import FULL_WEIGHT, Adaptation, History
from model.features import Frames
from train.dataset import FUNCTIONALS, Examples

Calls = list[npt.NDArray[np.int64]]
"""Rows of a set of examples, in the order in which each call hears them."""

_MOOD: Final = 0.5
"""Concentration of the Dirichlet distribution that one-sided calls draw their emotions from: a few dominate."""


def deal(examples: Examples, rng: np.random.Generator, calls: int = 1, *, one_sided: bool = False) -> Calls:
    """Deals every speaker's clips into `calls` calls; a call that got none is left out.

    Args:
        examples: the clips.
        rng: decides who goes where, and the order.
        calls: per speaker.
        one_sided: every call prefers some emotions; else a clip goes anywhere.
    """
    speakers = np.array(examples.speakers)
    moods = examples.dominant
    dealt: Calls = []
    for speaker in np.unique(speakers):
        rows = rng.permutation(np.flatnonzero(speakers == speaker))
        taste = rng.dirichlet(np.full(moods.max() + 2, _MOOD), size=calls) if one_sided else np.ones((calls, 1))
        for_row = taste[:, moods[rows] if one_sided else np.zeros(len(rows), np.int64)]
        edges = np.cumsum(for_row / for_row.sum(axis=0), axis=0)
        goes = (rng.random(len(rows)) > edges).sum(axis=0).clip(max=calls - 1)
        dealt += [rows[goes == call] for call in range(calls)]
    return [rows for rows in dealt if len(rows)]


def reference_of_training(examples: Examples) -> Frames:
    """Mean functionals of the training recordings, `float32 [S, d]`."""
    total = np.zeros(examples.frames[FUNCTIONALS][0].shape, np.float64)
    for functionals in examples.frames[FUNCTIONALS]:
        total += functionals
    return (total / len(examples)).astype(np.float32)


def heard_in_calls(examples: Examples, adaptation: Adaptation, calls: Calls) -> Examples:
    """The examples with functionals adapted to what their call held before them.

    Raises:
        ValueError: if a clip is in no call or in several.
    """
    if sorted(np.concatenate(calls)) != list(range(len(examples))):
        raise ValueError(f"{len(examples)} clips are dealt into calls, each once: some were left out or dealt twice")
    rows: Sequence[npt.NDArray[np.float16]] = examples.frames[FUNCTIONALS]
    found: list[npt.NDArray[np.float16]] = list(rows)
    for call in calls:
        history = History()
        for row in call:
            frames = rows[row].astype(np.float32)
            found[row] = adaptation.adapted(frames, history).astype(np.float16)
            history = adaptation.heard(history, frames, FULL_WEIGHT)
    return replace(examples, frames={**examples.frames, FUNCTIONALS: found})
