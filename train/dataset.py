"""Examples, their frames where the cache keeps them, and the order in which stages draw them.

Shapes: N = examples, F = frames, d = width of a frame.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.features import Frames, padded
from model.labels import CLASSES
from model.spec import EncoderSpec
from train.cache import let_go
from train.errors import CorpusError
from train.losses import Labels
from train.manifest import Clip, dominant, dominant_class, target

TEXT = "text"
"""Name of the modality whose frames may be exchanged for another sentence's."""
FUNCTIONALS = "functionals"
"""Name of the modality that is computed from the frames of others."""
READ_BY_FUNCTIONALS: Final = ("whisper", "prosody")
"""Names of these others, in the order in which `model.features.functionals` takes their frames."""
_LENGTH_POOL = 8
"""Batches that are drawn together and sorted by length: little padding, and still a random order."""
_PASS_STEPS = 150
"""What another pass through a small member costs, in steps of one utterance: measured, docs/LOG.md."""

HalfFrames = npt.NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class Examples:
    """A set of clips with features and targets.

    Attributes:
        ids: N ids.
        frames: modality -> N arrays `float16 [F, d]`, mapped files of the cache or made.
        targets: soft targets `float32 [N, 8]`.
        attributes: `float32 [N, 3]`, NaN where missing.
        intended: index of the acted class per example, else of the agreed one, -1 where there is neither.
        speakers: N speakers.
        outvoted: `bool [N]`: as many raters heard an emotion that has no class here as heard the first class.
    """

    ids: tuple[str, ...]
    frames: Mapping[str, Sequence[HalfFrames]]
    targets: npt.NDArray[np.float32]
    attributes: npt.NDArray[np.float32]
    intended: npt.NDArray[np.int64]
    speakers: tuple[str, ...]
    outvoted: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dominant(self) -> npt.NDArray[np.int64]:
        """Index of each target's dominant class, -1 without consensus."""
        found = [None if other else dominant(row) for row, other in zip(self.targets, self.outvoted, strict=True)]
        return np.array([-1 if index is None else index for index in found], np.int64)

    def subset(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> "Examples":
        """The examples at `indices`, in that order."""
        return Examples(
            ids=tuple(self.ids[i] for i in indices),
            frames={name: [rows[i] for i in indices] for name, rows in self.frames.items()},
            targets=self.targets[indices],
            attributes=self.attributes[indices],
            intended=self.intended[indices],
            speakers=tuple(self.speakers[i] for i in indices),
            outvoted=self.outvoted[indices],
        )


def examples_of(
    clips: Sequence[Clip], features: Mapping[str, Mapping[str, HalfFrames]], intended_votes: float
) -> Examples:
    """Joins clips with their features by id.

    Args:
        clips: the clips.
        features: modality -> id -> frames.
        intended_votes: how many annotators the actor counts for.

    Raises:
        KeyError: if a clip has no features: rows are joined by id and never shifted.
    """
    return Examples(
        ids=tuple(clip.id for clip in clips),
        frames={name: [rows[clip.id] for clip in clips] for name, rows in features.items()},
        targets=np.stack([target(clip, intended_votes) for clip in clips]),
        attributes=np.array([clip.attributes for clip in clips], np.float32),
        intended=np.array([-1 if c.label is None else CLASSES.index(c.label) for c in clips], np.int64),
        speakers=tuple(clip.speaker for clip in clips),
        outvoted=np.array([c.other_votes > 0 and dominant_class(c, intended_votes) is None for c in clips], np.bool_),
    )


@dataclass(frozen=True, slots=True)
class Batch:
    """Tensors of one training step: modality -> `[B, F, d]`, modality -> `bool [B, F]`, and labels."""

    frames: dict[str, Tensor]
    masks: dict[str, Tensor]
    labels: Labels


def tensors(
    frames: Mapping[str, Sequence[HalfFrames | Frames]], encoders: Mapping[str, EncoderSpec]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Padded frames `float32 [B, F, d]` and masks of the modalities in `encoders`."""
    batches, masks = {}, {}
    for name, encoder in encoders.items():
        # What the cache gives is padded as it is, and widened all at once: torch does it in a third of numpy's time.
        is_half = all(rows.dtype == np.float16 for rows in frames[name])
        rows, stack = frames[name], encoder.stack
        values, mask = padded(rows, stack, np.float16) if is_half else padded(rows, stack, np.float32)
        let_go(frames[name])
        batches[name], masks[name] = torch.from_numpy(values).float(), torch.from_numpy(mask)
    return batches, masks


def labels_of(examples: Examples) -> Labels:
    """What `examples` are trained towards; a missing attribute is marked, its value is 0."""
    rated = ~np.isnan(examples.attributes)
    return Labels(
        torch.from_numpy(examples.targets),
        torch.from_numpy(np.where(rated, examples.attributes, 0.0).astype(np.float32)),
        torch.from_numpy(rated),
    )


def make_batch(examples: Examples, encoders: Mapping[str, EncoderSpec]) -> Batch:
    """All of `examples` as one batch."""
    return Batch(*tensors(examples.frames, encoders), labels_of(examples))


def batches_by_length(
    order: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], batch_size: int, rng: np.random.Generator
) -> Iterator[npt.NDArray[np.int64]]:
    """Cuts a random order into batches of similar length, in a random order of batches."""
    pool = batch_size * _LENGTH_POOL
    batches: list[npt.NDArray[np.int64]] = []
    for start in range(0, len(order), pool):
        part = order[start : start + pool]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches.extend(part[i : i + batch_size] for i in range(0, len(part), batch_size))
    for index in rng.permutation(len(batches)):
        yield batches[index]


def steps_of(frames: Mapping[str, Sequence[HalfFrames]], encoders: Mapping[str, EncoderSpec]) -> npt.NDArray[np.int64]:
    """Steps that a member reads of each utterance, over the modalities in `encoders`."""
    counts = [[-(-len(rows) // encoder.stack) for rows in frames[name]] for name, encoder in encoders.items()]
    total: npt.NDArray[np.int64] = np.array(counts, np.int64).sum(axis=0)
    return total


def passes_by_length(steps: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """Shares out the rows of a batch into passes of like lengths, so that padding and passes together cost least.

    No row's result depends on who shares its pass, so the batch stays one batch: one loss, one gradient, one step.

    Args:
        steps: of each row, `[B]`.
    """
    order = np.argsort(steps, kind="stable")
    cost, cut = np.zeros(len(order) + 1), np.zeros(len(order) + 1, np.int64)
    for end, longest in enumerate(steps[order], 1):
        start = np.arange(end)
        tried = cost[:end] + (end - start) * longest
        cut[end] = tried.argmin()
        cost[end] = tried[cut[end]] + _PASS_STEPS
    passes, end = [], len(order)
    while end:
        passes.append(order[cut[end] : end])
        end = int(cut[end])
    return passes[::-1]


def mix_copies(copies: Sequence[Examples], rng: np.random.Generator) -> Examples:
    """Every example as one of its copies, drawn at random at every call: the recording itself or a degraded one."""
    first = copies[0]
    drawn = rng.integers(len(copies), size=len(first))
    frames = {name: [copies[c].frames[name][row] for row, c in enumerate(drawn)] for name in first.frames}
    return replace(first, frames=frames)


def one_hot(examples: Examples) -> Examples:
    """Targets that know one class: 1 for the dominant one. Ties have none, so they keep their votes."""
    classes, targets = examples.dominant, examples.targets.copy()
    known = classes >= 0
    targets[known] = np.eye(len(CLASSES), dtype=np.float32)[classes[known]]
    return replace(examples, targets=targets)


def concatenate(parts: Sequence[Examples]) -> Examples:
    """All examples of `parts`, in order."""
    return Examples(
        ids=tuple(name for part in parts for name in part.ids),
        frames={name: [rows for part in parts for rows in part.frames[name]] for name in parts[0].frames},
        targets=np.concatenate([part.targets for part in parts]),
        attributes=np.concatenate([part.attributes for part in parts]),
        intended=np.concatenate([part.intended for part in parts]),
        speakers=tuple(name for part in parts for name in part.speakers),
        outvoted=np.concatenate([part.outvoted for part in parts]),
    )


def decided(examples: Examples) -> npt.NDArray[np.int64]:
    """Rows that have a dominant class: what selects is judged by these.

    Raises:
        CorpusError: if there is none, so that no score of any guesses exists.
    """
    rows = np.flatnonzero(examples.dominant >= 0)
    if not len(rows):
        raise CorpusError(
            f"none of {len(examples)} held-out clips has a class that most of its raters heard, so nothing can be selected by "
            "them: hold out more speakers, or others (dev_fraction, split_seed)"
        )
    return rows


def balanced_subset(classes: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """A NEW random subset at every call: equally many per dominant class, and as many without consensus (-1).

    The rarest class sets the size; fewer examples without consensus are all taken.

    Raises:
        CorpusError: if no example has a class.
    """
    if not (classes >= 0).any():
        raise CorpusError(
            f"none of {len(classes)} clips has a class that most of its raters heard: balanced draws need clips of some class"
        )
    groups = {label: np.flatnonzero(classes == label) for label in np.unique(classes)}
    size = min(len(rows) for label, rows in groups.items() if label >= 0)
    drawn = [rng.choice(rows, min(size, len(rows)), replace=False) for rows in groups.values()]
    return rng.permutation(np.concatenate(drawn))
